"""Tests Kopf's watches with an API server in this process."""

import asyncio
import gc
import itertools
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import kopf
import pytest
from kopf._core.reactor.inventory import ResourceMemory

from llmservice_operator.cluster.watching import (
    DELETED,
    LISTED,
    WATCHED_CHUNK,
    EndlessBackoffs,
    build_registry,
    build_settings,
    quieten,
    watch,
)
from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES, PODS
from operator_support.watched import ApiServer, Watching, an_api_server, event, pod, watching
from shared_support.waiting import PATIENCE, eventually_in_loop

KINDS = (LLMSERVICES, DEPLOYMENTS, PODS)


@pytest.fixture
def server(
    unused_tcp_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ApiServer]:
    with an_api_server(unused_tcp_port, tmp_path, monkeypatch) as found:
        yield found


async def test_every_object_and_every_change_arrives_in_the_event_loop_of_the_caller(
    server: ApiServer,
) -> None:
    long, longer = (pod("long", it, annotations={"note": it * 20_000 * "x"}) for it in (12, 13))
    server.lists = [[pod("a", 5), pod("b", 6)]]
    server.watches = [
        [event("ADDED", long), event("MODIFIED", longer)],
        [event("BOOKMARK", pod("", 14)), event(DELETED, pod("b", 15))],
    ]
    async with server.serving(), watching() as found:
        # If an object changes several times, the earlier states may be skipped.
        await eventually_in_loop(
            lambda: found.newest.get("long") == longer and (DELETED, "b") in found.events, 20
        )
        assert (LISTED, "a") in found.events
        assert found.threads == {threading.get_ident()}
        await eventually_in_loop(lambda: len(server.queries) == 4)
        versions = [query.get("resourceVersion") for query in server.queries]
        assert versions == [None, "10", "13", "15"]
        assert {query["labelSelector"] for query in server.queries} == {PODS.label_selector}


async def test_a_version_that_is_too_old_leads_to_a_new_list(server: ApiServer) -> None:
    server.lists = [[pod("a", 5)], [pod("b", 6)]]
    server.watches = [[event("ERROR", {"code": 410, "message": "too old resource version"})]]
    async with server.serving(), watching() as found:
        await found.until((LISTED, "a"), (LISTED, "b"))


async def test_the_watches_survive_an_unreachable_api_server(server: ApiServer) -> None:
    server.lists = [[pod("a", 5)]]
    async with watching() as found:
        # The server is unreachable when the watches start, and once more while they run.
        async with server.serving():
            await found.until((LISTED, "a"))
        server.watches = [[event("ADDED", pod("b", 20))]]
        async with server.serving():
            await found.until((LISTED, "a"), ("ADDED", "b"))


async def test_the_watches_survive_a_right_that_is_missing_for_a_while(server: ApiServer) -> None:
    server.lists = [[pod("a", 5)]]
    server.status = 403
    async with server.serving(), watching() as found:
        await eventually_in_loop(lambda: server.refusals > 0)
        server.status = 200
        await found.until((LISTED, "a"))


async def test_an_error_in_a_watch_leads_to_a_new_list(server: ApiServer) -> None:
    server.lists = [[pod("a", 5)], [pod("b", 6)]]
    server.watches = [[event("ERROR", {"code": 500, "message": "etcd is lost"})]]
    async with server.serving(), watching() as found:
        await found.until((LISTED, "a"), (LISTED, "b"))


async def test_signals_and_tasks_of_the_process_are_left_alone(server: ApiServer) -> None:
    loop, heeded, broken_off = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, heeded.set)
    try:
        async with server.serving(), watching() as found:
            server.lists = [[pod("a", 5)]]
            await eventually_in_loop(lambda: len(server.queries) > 1)
            younger = asyncio.create_task(broken_off.wait())
            found.stop.set()
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(heeded.wait(), PATIENCE)
        assert not younger.done()
        broken_off.set()
        await younger
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_no_thread_outlives_watches_that_are_cancelled(server: ApiServer) -> None:
    before = threading.active_count()
    async with server.serving():
        running = asyncio.create_task(watch((PODS,), [None], Watching().note, asyncio.Event()))
        await eventually_in_loop(lambda: len(server.queries) > 1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    await eventually_in_loop(lambda: threading.active_count() == before)


def test_every_kind_has_the_event_handler_and_no_other_kind_of_handler() -> None:
    registry = build_registry(KINDS, lambda *_: None)
    selectors = [handler.selector for handler in registry._watching.get_all_handlers()]
    watched = {selector.any_name for selector in selectors if selector is not None}
    assert watched == {kind.plural for kind in KINDS}
    assert not registry._changing.get_all_handlers()
    assert not registry._spawning.get_all_handlers()


def test_children_are_filtered_by_the_api_server_and_nothing_is_posted_or_scanned() -> None:
    settings = build_settings(KINDS)
    selectors = settings.watching.label_selectors
    assert selectors["apps", "v1", "deployments"] == (
        "app.kubernetes.io/managed-by=llmservice-operator"
    )
    assert len(selectors) == len(KINDS) - 1
    assert not settings.posting.enabled
    assert settings.scanning.disabled


def test_a_dead_connection_is_noticed_after_a_minute_without_even_a_bookmark() -> None:
    assert 60 < build_settings(KINDS).watching.inactivity_timeout < 90


async def test_a_list_arrives_in_pages_and_kopf_keeps_no_object(server: ApiServer) -> None:
    server.lists = [[{**pod("a", 5), "spec": {"nodeName": "n"}}]]
    async with server.serving(), watching() as found:
        await found.until((LISTED, "a"))
        assert server.queries[0]["limit"] == str(WATCHED_CHUNK)
        assert server.encodings == {"identity"}
        assert found.newest["a"]["spec"] == {"nodeName": "n"}
        # The references are those of `newest` and of the call itself.
        await eventually_in_loop(lambda: sys.getrefcount(found.newest["a"]["spec"]) == 2)


async def test_kopf_drops_what_it_has_of_an_object_soon_after_its_event(server: ApiServer) -> None:
    server.lists = [[pod(f"pod-{number}", 5) for number in range(50)]]
    async with server.serving(), watching() as found:
        await eventually_in_loop(lambda: len(found.events) == 50)
        # Kopf's own default is 5 seconds.
        await eventually_in_loop(lambda: not _workers(), 4)
        assert not [each for each in gc.get_objects() if isinstance(each, ResourceMemory)]


def _workers() -> list[Any]:
    """Return the tasks in which Kopf processes the events of single objects."""
    tasks = (each for each in gc.get_objects() if isinstance(each, asyncio.Task))
    return [each for each in tasks if each.get_name().startswith("worker for") and not each.done()]


def test_kopf_computes_no_differences_and_leaves_no_annotation() -> None:
    storage = build_settings(KINDS).persistence.diffbase_storage
    body = kopf.Body(cast(kopf.RawBody, pod("a", 5, annotations={"note": "x"})))
    assert storage.build(body=body, extra_fields=()) == {}
    assert storage.fetch(body=body) is None


def test_requests_of_the_watches_are_retried_for_ever_with_bounded_delays() -> None:
    delays = list(itertools.islice(EndlessBackoffs(), 1000))
    assert 0.8 <= delays[0] <= 1.2
    assert max(delays) <= 18.0
    assert min(delays[10:]) >= 12.0
    assert len(set(delays[10:])) > 100


def test_the_chatter_of_kopf_is_left_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    quieten()
    logging.getLogger("kopf.objects").info("Handler succeeded")
    logging.getLogger("kopf.objects").warning("Handler failed")
    assert caplog.messages == ["Handler failed"]
