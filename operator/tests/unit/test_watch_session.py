"""Tests that a bad response ends no other stream, and that a pause precedes each retry."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from llmservice_operator.cluster import watch_session
from llmservice_operator.cluster.watch_session import is_event
from llmservice_operator.cluster.watching import LISTED
from operator_support.watched import ApiServer, an_api_server, event, pod, watching
from shared_support.waiting import eventually_in_loop


@pytest.fixture
def server(
    unused_tcp_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ApiServer]:
    with an_api_server(unused_tcp_port, tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_session, "LONGEST_RETRY_SECONDS", 0.05)


def html() -> web.Response:
    return web.Response(text="<html>Sign in</html>", content_type="text/html")


def truncated() -> web.Response:
    return web.Response(text='{"items": [{"metad', content_type="application/json")


def refused(status: int, **headers: str) -> web.Response:
    body = {"kind": "Status", "code": status, "message": "no"}
    return web.json_response(body, status=status, headers=headers)


PAGES = [
    pytest.param(html, id="html"),
    pytest.param(truncated, id="truncated"),
    *(
        pytest.param(lambda body=body: web.json_response(body), id=f"JSON {number}")
        for number, body in enumerate(
            (
                [],
                {},
                {"metadata": None, "items": []},
                {"metadata": {}, "items": None},
                {"metadata": {}, "items": [5]},
                {"metadata": {}, "items": [{"kind": "Pod"}]},
            )
        )
    ),
    *(
        pytest.param(lambda status=status: refused(status), id=str(status))
        for status in (400, 403, 404, 409, 410, 422, 429, 500, 503)
    ),
]


@pytest.mark.usefixtures("_impatience")
@pytest.mark.parametrize("page", PAGES)
async def test_a_list_with_a_wrong_response_is_repeated_and_the_others_continue(
    server: ApiServer, page: Any
) -> None:
    server.pages = [("namespaces/b/pods?limit", page)] * 3
    async with server.serving(), watching("a", "b") as found:
        await eventually_in_loop(
            lambda: (
                {it.partition("?")[0] for it in server.asked if "watch" in it}
                == {"/api/v1/namespaces/a/pods", "/api/v1/namespaces/b/pods"}
            ),
            20,
        )
        assert server.pages == []
        assert len([it for it in server.asked if "/a/" in it]) == 2
        problems = [problem for path, problem in found.troubles if path.endswith("/b/pods")]
        assert [problem is None for problem in problems] == [False, True]


@pytest.mark.usefixtures("_impatience")
@pytest.mark.parametrize("page", [PAGES[0], *PAGES[8:]])
async def test_a_watch_with_a_wrong_response_is_restarted_and_the_others_continue(
    server: ApiServer, page: Any
) -> None:
    server.pages = [("namespaces/b/pods?watch", page)] * 2
    server.lists = [[], []]
    async with server.serving(), watching("a", "b") as found:
        await eventually_in_loop(
            lambda: len([it for it in server.asked if "/b/pods?watch" in it]) == 3, 20
        )
        server.watches = [[event("ADDED", pod("late", 20))]] * 2
        assert len([it for it in server.asked if "/a/" in it]) == 2
        assert not found.stop.is_set()


@pytest.mark.usefixtures("_impatience")
async def test_a_list_whose_next_page_has_expired_begins_again(server: ApiServer) -> None:
    listed = {"metadata": {"continue": "old", "resourceVersion": "7"}, "items": [pod("a", 5)]}
    server.pages = [
        ("pods?limit", lambda: web.json_response(listed)),
        ("continue=old", lambda: refused(410)),
    ]
    server.lists = [[pod("a", 5), pod("b", 6)]]
    async with server.serving(), watching() as found:
        await eventually_in_loop(lambda: (LISTED, "b") in found.events)
        await eventually_in_loop(lambda: "watch" in server.asked[-1])
        assert [("continue" in it) for it in server.asked] == [False, True, False, False]
        assert found.troubles == []


async def test_a_version_that_is_gone_leads_to_a_new_list(server: ApiServer) -> None:
    server.pages = [("pods?watch", lambda: refused(410))]
    server.lists = [[pod("a", 5)], [pod("b", 6)]]
    async with server.serving(), watching() as found:
        await found.until((LISTED, "a"), (LISTED, "b"))


@pytest.mark.parametrize(
    "line",
    [
        "<html>\n",
        '{"type": "ADDED", "object": {"meta\n',
        "[]\n",
        '{"type": "ADDED"}\n',
        '{"type": "ADDED", "object": {}}\n',
        '{"object": {"metadata": {}}}\n',
        '{"type": "ERROR", "object": {}}\n',
        "{" * 100_000 + "\n",
    ],
)
async def test_a_line_that_is_no_event_leads_to_a_new_list(server: ApiServer, line: str) -> None:
    server.lists = [[pod("a", 5)], [pod("c", 6)]]
    server.watches = [[event("ADDED", pod("b", 12)), line, event("ADDED", pod("lost", 13))]]
    async with server.serving(), watching() as found:
        await found.until((LISTED, "a"), ("ADDED", "b"), (LISTED, "c"))


async def test_a_line_that_is_cut_off_is_awaited_once_more(server: ApiServer) -> None:
    cut = event("ADDED", pod("c", 13))
    server.watches = [[event("ADDED", pod("b", 12)), str(cut)[:40]], [cut]]
    async with server.serving(), watching() as found:
        await found.until(("ADDED", "b"), ("ADDED", "c"))
        versions = [query.get("resourceVersion") for query in server.queries]
        assert versions[1:3] == ["10", "12"]


async def test_watches_that_end_at_once_are_restarted_after_a_growing_pause(
    server: ApiServer,
) -> None:
    server.ends_watches = True
    loop = asyncio.get_running_loop()
    async with server.serving(), watching():
        await eventually_in_loop(lambda: "watch" in "".join(server.asked))
        begun = loop.time()
        await eventually_in_loop(lambda: loop.time() - begun > 4.0)
        watches = [it for it in server.asked if "watch" in it]
        # Watches begin immediately, after 1 more second, and after 2 more seconds.
        assert 3 <= len(watches) <= 5


async def test_a_watch_that_ends_for_the_first_time_is_back_at_once(server: ApiServer) -> None:
    loop = asyncio.get_running_loop()
    server.watches = [[event("ADDED", pod("a", 12))], [event("ADDED", pod("b", 13))]]
    async with server.serving(), watching() as found:
        await eventually_in_loop(lambda: ("ADDED", "a") in found.events)
        begun = loop.time()
        await eventually_in_loop(lambda: ("ADDED", "b") in found.events)
        assert loop.time() - begun < 0.9


@pytest.mark.parametrize(
    ("refusals", "asked", "least", "most"),
    [
        (0, "", 0.8, 1.2),
        (9, "", 48, 72),
        (0, "30", 30, 30),
        (0, "9" * 5000, 60, 60),
        (0, "-1", 0.8, 1.2),
        (0, "soon", 0.8, 1.2),
    ],
)
def test_the_pause_after_a_refusal_grows_and_is_never_endless(
    refusals: int, asked: str, least: float, most: float
) -> None:
    assert least <= watch_session._pause_seconds(refusals, asked) <= most


def test_an_event_that_says_to_list_anew_is_an_event() -> None:
    assert is_event(b'{"type": "ERROR", "object": {"code": 410}}')
    assert is_event(b'{"type": "BOOKMARK", "object": {"metadata": {}}}')
    assert not is_event(b'{"type": "ERROR", "object": {"code": 500}}')
