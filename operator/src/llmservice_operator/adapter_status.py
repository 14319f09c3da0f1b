"""Decides from the reports of the replicas which LoRA adapters are served, and builds the status of
the adapters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llmservice_operator.api import Manifest
from llmservice_operator.api.load_report import LoadReport, ReplicaAdapter, ReplicaLoad
from llmservice_operator.api.spec import LLMService
from llmservice_operator.api.status import AdapterStatus
from llmservice_operator.desired.adapters import (
    AdapterList,
    ListedAdapter,
    first_list,
    next_list,
    served_adapters,
    wanted_adapters,
)
from llmservice_operator.workload import Replica

_LOADED: Final = "loaded"
_MOST_REPLICAS: Final = 100
_LONGEST_MESSAGE: Final = 512

_UNKNOWN: Final = (
    "The metrics server is off, so the operator does not know which replicas have it. Each replica "
    "serves it as soon as it has it."
)


@dataclass(frozen=True)
class Adapters:
    """The adapters of one service in one reconcile pass."""

    listed: AdapterList | None
    """The list to write; None if the service takes no adapters."""
    status: tuple[AdapterStatus, ...] | None
    """Status of each adapter; None without adapters."""


def see_adapters(
    service: LLMService,
    live: Manifest | None,
    replicas: Iterable[Replica],
    report: LoadReport | None,
    *,
    has_reports: bool,
) -> Adapters:
    """Return the next list of adapters and their status.

    `live` is the live ConfigMap with the present list. `has_reports` is true if there is a metrics
    server, which reports on the replicas.
    """
    if not service.spec.model.takes_adapters:
        return Adapters(None, None)
    running = [each for each in replicas if each.is_running and not each.is_leaving]
    reported = sorted(report.replicas if report else (), key=lambda each: each.pod)
    # A report without a phase means that the model server of the replica does not respond.
    answers = {each.pod: each for each in reported if each.phase is not None}
    held = {pod: _holdings(each) for pod, each in answers.items()}
    ready = [each.name for each in running if each.is_ready]
    if not has_reports:
        listed = AdapterList(wanted_adapters(service), None)
    elif not running:
        listed = first_list(service)
    else:
        holdings = [held.get(name) for name in ready]
        listed = next_list(wanted_adapters(service), served_adapters(live), holdings)
    waits = [name for name in ready if name not in answers]
    status = tuple(
        _status(each, listed, answers, held, waits, len(ready), has_reports=has_reports)
        for each in listed.wanted
    )
    return Adapters(listed, status or None)


def _holdings(replica: ReplicaLoad) -> frozenset[ListedAdapter]:
    return frozenset(_listed(each) for each in replica.adapters or () if each.state == _LOADED)


def _listed(adapter: ReplicaAdapter) -> ListedAdapter:
    return ListedAdapter(adapter.name, adapter.source, adapter.revision)


def _status(
    adapter: ListedAdapter,
    listed: AdapterList,
    answers: Mapping[str, ReplicaLoad],
    held: Mapping[str, frozenset[ListedAdapter]],
    waits: Sequence[str],
    ready: int,
    *,
    has_reports: bool,
) -> AdapterStatus:
    having = [name for name, adapters in held.items() if adapter in adapters]
    message = _message(adapter, answers, waits, having, ready) if has_reports else _UNKNOWN
    return AdapterStatus(
        name=adapter.name,
        served=listed.served is None or (adapter in listed.served and bool(having)),
        replicas=tuple(having[:_MOST_REPLICAS]),
        message=None if message is None else message[:_LONGEST_MESSAGE],
    )


def _message(
    adapter: ListedAdapter,
    answers: Mapping[str, ReplicaLoad],
    waits: Sequence[str],
    having: Sequence[str],
    ready: int,
) -> str | None:
    """Return a message that says why a replica lacks the adapter, or how many replicas have it.

    Returns None if there are replicas and all of them have the adapter.
    """
    for name, replica in answers.items():
        for each in replica.adapters or ():
            if _listed(each) == adapter and each.message:
                return f"{name}: {each.message}"
    for name, replica in answers.items():
        if replica.is_ready and replica.adapters is None:
            return (
                f"{name} runs a model server that takes no adapters: set engine.version to the "
                "operator's vLLM version, or engine.image to a newer image."
            )
    if waits:
        return f"{waits[0]} has not reported yet which adapters it has."
    lacking = [name for name in answers if name not in having]
    if lacking or not answers:
        number = sum(answers[name].is_ready for name in having)
        return f"{number} of {ready} ready replicas have it."
    return None
