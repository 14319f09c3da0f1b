"""`kubectl llm top`: the present load of each replica, and the router's picks.

The plugin asks every pod through a port-forward, so that the right `create pods/portforward` is
enough and NetworkPolicies need no exception. The load of a replica, the effective GPU utilization,
comes from the metrics server. It is unknown to users without rights in its namespace.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from llmservice_operator.api import Manifest
from llmservice_operator.api.load_report import LoadReport
from llmservice_operator.kubectl_plugin.forwards import Forwards
from llmservice_operator.kubectl_plugin.kubectl import Kubectl
from llmservice_operator.kubectl_plugin.objects import (
    read_metrics_servers,
    read_replicas,
    read_router_pods,
    read_service,
)
from llmservice_operator.kubectl_plugin.pod_reports import PodReports, RouterCounts
from llmservice_operator.kubectl_plugin.report_token import ReportToken
from llmservice_operator.kubectl_plugin.screen import console_for, show, show_json, table
from llmservice_operator.scaling.signals import Snapshot

MOST_PODS: Final = 32
"""Largest number of replicas, and of router pods, that are asked. Each one needs a process."""
FIRST_SECONDS: Final = 1.0
"""Time in seconds between the two reports of a table that is shown once."""


@dataclass(frozen=True)
class ReplicaLoad:
    """The load of one replica; a value is None while it is unknown."""

    pod: str
    phase: str | None
    load_percent: float | None
    """Effective GPU utilization."""
    running: int | None
    waiting: int | None
    kv_percent: float | None
    answer_tokens_per_second: float | None
    prompt_tokens_per_second: float | None
    """Prompt tokens that the engine computed, without those from the prefix cache."""


@dataclass(frozen=True)
class RouterLoad:
    """The work of one router pod; a value is None while it is unknown."""

    pod: str
    picks_per_second: float | None
    picks: str | None
    """Picks per second by their reason."""
    held: float | None
    """Requests that wait for a replica."""


@dataclass(frozen=True)
class Top:
    """The load of a service at one time."""

    service: str
    load: str | None
    """Load and target per replica, as in the status."""
    replicas: tuple[ReplicaLoad, ...]
    routers: tuple[RouterLoad, ...]
    notes: tuple[str, ...]
    """Sentences about values that are unknown."""


@dataclass(frozen=True)
class Round:
    """The reports of all pods at one time, by the names of the pods."""

    at: float
    replicas: Mapping[str, tuple[str, Snapshot] | None]
    routers: Mapping[str, RouterCounts | None]


def show_top(kubectl: Kubectl, name: str, *, as_json: bool, watch: bool, interval: float) -> None:
    """Print the load once, or with `watch` until Ctrl-C. Raises KubectlFailed."""
    asyncio.run(_show(kubectl, name, as_json=as_json, watch=watch, interval=interval))


async def _show(
    kubectl: Kubectl, name: str, *, as_json: bool, watch: bool, interval: float
) -> None:
    console = console_for()
    seconds = interval if watch else FIRST_SECONDS
    is_live = watch and console.is_terminal and not as_json
    with (
        Live(console=console, auto_refresh=False, screen=False)
        if is_live
        else nullcontext() as live
    ):
        async for top in _tops(kubectl, name, seconds):
            if as_json:
                show_json(top)
            elif isinstance(live, Live):
                live.update(top_screen(top), refresh=True)
            else:
                show(top_screen(top), console)
            console.file.flush()
            if not watch:
                return


async def _tops(kubectl: Kubectl, name: str, seconds: float) -> AsyncIterator[Top]:
    """Yield the load again and again."""
    with Forwards(kubectl) as forwards:
        async with PodReports(forwards) as reports:
            before: Round | None = None
            token = ReportToken(kubectl)
            while True:
                service, replicas, routers = await asyncio.to_thread(_pods, kubectl, name)
                servers, note = await asyncio.to_thread(read_metrics_servers, kubectl, service)
                wanted = [*replicas[:MOST_PODS], *routers[:MOST_PODS], *servers[:1]]
                await asyncio.to_thread(forwards.keep, wanted)
                now = await _ask(reports, replicas[:MOST_PODS], routers[:MOST_PODS])
                if before is not None:
                    namespace = service["metadata"]["namespace"]
                    headers: Mapping[str, str] = {}
                    if servers:
                        headers = await asyncio.to_thread(token.headers, servers[0])
                    report = await reports.load_report(servers[:1], namespace, name, headers)
                    loads = {} if report is None else _loads(report)
                    notes = _notes(replicas, note or token.problem, report)
                    yield top_of(service, before, now, loads, notes)
                before = now
                await asyncio.sleep(seconds)


def _pods(kubectl: Kubectl, name: str) -> tuple[Manifest, list[Manifest], list[Manifest]]:
    service = read_service(kubectl, name)
    replicas = sorted(read_replicas(kubectl, name), key=_name)
    has_router = service.get("status", {}).get("router") is not None
    routers = sorted(read_router_pods(kubectl, name), key=_name) if has_router else []
    return service, replicas, routers


def _name(pod: Manifest) -> str:
    return str(pod["metadata"]["name"])


async def _ask(
    reports: PodReports, replicas: Sequence[Manifest], routers: Sequence[Manifest]
) -> Round:
    engines, pickers = await asyncio.gather(
        asyncio.gather(*(reports.replica(_name(each)) for each in replicas)),
        asyncio.gather(*(reports.router(_name(each)) for each in routers)),
    )
    return Round(
        time.monotonic(),
        dict(zip(map(_name, replicas), engines, strict=True)),
        dict(zip(map(_name, routers), pickers, strict=True)),
    )


def _loads(report: LoadReport) -> dict[str, float | None]:
    return {each.pod: each.utilization_percent for each in report.replicas}


def _notes(
    replicas: Sequence[Manifest], note: str | None, report: LoadReport | None
) -> tuple[str, ...]:
    found = []
    if len(replicas) > MOST_PODS:
        found.append(f"{len(replicas) - MOST_PODS} further replicas are not shown.")
    if report is None:
        found.append(f"LOAD is unknown: {note or 'the metrics server does not answer'}.")
    elif report.missing is not None:
        found.append(f"LOAD is unknown: {report.message}")
    return tuple(found)


def top_of(
    service: Manifest,
    before: Round,
    now: Round,
    loads: Mapping[str, float | None],
    notes: tuple[str, ...],
) -> Top:
    seconds = now.at - before.at
    return Top(
        service=service["metadata"]["name"],
        load=service.get("status", {}).get("autoscaling", {}).get("load"),
        replicas=tuple(
            _replica(pod, before.replicas.get(pod), report, seconds, loads.get(pod))
            for pod, report in now.replicas.items()
        ),
        routers=tuple(
            _router(pod, before.routers.get(pod), counts, seconds)
            for pod, counts in now.routers.items()
        ),
        notes=notes,
    )


def _replica(
    pod: str,
    before: tuple[str, Snapshot] | None,
    now: tuple[str, Snapshot] | None,
    seconds: float,
    load: float | None,
) -> ReplicaLoad:
    if now is None:
        return ReplicaLoad(pod, None, load, None, None, None, None, None)
    phase, snapshot = now
    flow = None if before is None else snapshot.since(before[1])
    capacity = snapshot.kv_capacity_tokens
    return ReplicaLoad(
        pod,
        phase,
        load,
        snapshot.running,
        snapshot.waiting,
        100 * snapshot.kv_tokens / capacity if capacity else None,
        None if flow is None else flow.generated_tokens / seconds,
        None if flow is None else flow.prompt_tokens_computed / seconds,
    )


def _router(
    pod: str, before: RouterCounts | None, now: RouterCounts | None, seconds: float
) -> RouterLoad:
    if now is None or before is None:
        return RouterLoad(pod, None, None, None if now is None else now.held)
    rates = {
        reason: max(0.0, count - before.picks.get(reason, 0.0)) / seconds
        for reason, count in now.picks.items()
    }
    picks = ", ".join(f"{reason} {rate:.1f}" for reason, rate in sorted(rates.items()) if rate)
    return RouterLoad(pod, sum(rates.values()), picks or None, now.held)


def top_screen(top: Top) -> RenderableType:
    """Return the tables of a load."""
    columns = (
        "REPLICA",
        "PHASE",
        "LOAD",
        "RUNNING",
        "WAITING",
        "KV",
        "ANSWER TOK/S",
        "PROMPT TOK/S",
    )
    rows = [
        (
            each.pod,
            each.phase,
            _percent(each.load_percent),
            each.running,
            each.waiting,
            _percent(each.kv_percent),
            _rate(each.answer_tokens_per_second),
            _rate(each.prompt_tokens_per_second),
        )
        for each in top.replicas
    ]
    if len(top.replicas) > 1:
        rows.append(_total(top.replicas))
    parts: list[RenderableType] = []
    if top.load is not None:
        parts += [Text(f"{top.service}: {top.load} per replica (current/target)"), Text()]
    parts.append(table(columns, rows, right=6))
    if top.routers:
        routed = [
            (each.pod, _whole(each.held), _rate(each.picks_per_second), each.picks)
            for each in top.routers
        ]
        parts += [Text(), table(("ROUTER", "HELD", "PICKS/S", "BY REASON"), routed)]
    parts += [Text(each, style="dim") for each in top.notes]
    return Group(*parts)


def _total(
    replicas: Sequence[ReplicaLoad],
) -> tuple[str, None, None, int, int, None, str | None, str | None]:
    return (
        "total",
        None,
        None,
        sum(each.running or 0 for each in replicas),
        sum(each.waiting or 0 for each in replicas),
        None,
        _rate(_sum(each.answer_tokens_per_second for each in replicas)),
        _rate(_sum(each.prompt_tokens_per_second for each in replicas)),
    )


def _sum(values: Iterable[float | None]) -> float:
    return sum(each for each in values if each is not None)


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f} %"


def _whole(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f}"


def _rate(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"
