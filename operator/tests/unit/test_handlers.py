import inspect
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from llmservice_operator import handlers
from llmservice_operator.children import REQUIRED_KINDS
from llmservice_operator.cluster import Cache, Key
from llmservice_operator.handlers import EndlessBackoffs, build_registry, build_settings
from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES
from llmservice_operator.telemetry import Metrics

Note = Callable[..., Awaitable[None]]


class Resource:
    plural = "llmservices"


@pytest.fixture
def enqueued() -> list[Key]:
    return []


@pytest.fixture
def note(enqueued: list[Key]) -> Note:
    registry = build_registry(Cache(), enqueued.append, Metrics(), REQUIRED_KINDS)
    (function,) = {handler.fn for handler in registry._watching.get_all_handlers()}
    return cast(Note, function)


def event(type_: str | None, version: int, **metadata: Any) -> dict[str, Any]:
    manifest = {
        "apiVersion": LLMSERVICES.api_version,
        "kind": LLMSERVICES.kind,
        "metadata": {
            "name": "llama",
            "namespace": "team",
            "uid": "1",
            "resourceVersion": str(version),
            **metadata,
        },
    }
    return {"type": type_, "object": manifest}


def test_every_watched_kind_has_the_event_handler_and_no_other_kind_of_handler() -> None:
    registry = build_registry(Cache(), lambda key: None, Metrics(), REQUIRED_KINDS)
    selectors = [handler.selector for handler in registry._watching.get_all_handlers()]
    watched = {selector.any_name for selector in selectors if selector is not None}
    assert watched == {kind.plural for kind in REQUIRED_KINDS}
    assert not registry._changing.get_all_handlers()
    assert not registry._spawning.get_all_handlers()


async def test_an_event_enqueues_its_service_and_its_echo_does_not(
    note: Note, enqueued: list[Key]
) -> None:
    await note(event=event("ADDED", 1), resource=Resource)
    await note(event=event(None, 1), resource=Resource)
    assert enqueued == [("team", "llama")]
    await note(event=event("MODIFIED", 2), resource=Resource)
    await note(event=event("DELETED", 3), resource=Resource)
    assert enqueued == [("team", "llama")] * 3


async def test_an_object_of_nobody_enqueues_nothing(note: Note, enqueued: list[Key]) -> None:
    stranger = event("ADDED", 1)
    stranger["object"] |= {"apiVersion": DEPLOYMENTS.api_version, "kind": DEPLOYMENTS.kind}
    await note(event=stranger, resource=Resource)
    assert enqueued == []


def test_handlers_are_short() -> None:
    source, _ = inspect.getsourcelines(handlers.build_registry)
    start = next(n for n, line in enumerate(source) if "async def note" in line)
    body = itertools.takewhile(lambda line: line.strip(), source[start + 1 :])
    assert len(list(body)) < 15


def test_children_are_filtered_by_the_api_server_and_nothing_is_posted_or_scanned() -> None:
    settings = build_settings(REQUIRED_KINDS)
    selectors = settings.watching.label_selectors
    assert selectors["apps", "v1", "deployments"] == (
        "app.kubernetes.io/managed-by=llmservice-operator"
    )
    assert len(selectors) == len(REQUIRED_KINDS) - 1
    assert not settings.posting.enabled
    assert settings.scanning.disabled


def test_requests_of_the_watches_are_retried_for_ever_with_bounded_delays() -> None:
    delays = list(itertools.islice(EndlessBackoffs(), 1000))
    assert 0.8 <= delays[0] <= 1.2
    assert max(delays) <= 18.0
    assert min(delays[10:]) >= 12.0
    assert len(set(delays[10:])) > 100
