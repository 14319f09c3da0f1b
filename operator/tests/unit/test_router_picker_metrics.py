"""Tests the metrics of the picker, and how the supervisor reads them."""

import asyncio
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmservice_operator.api.router_messages import RefusedRequest, RouterReport
from llmservice_operator.router import picker_status
from llmservice_operator.router.picker_metrics import MOST_KEYS, PickerMetrics
from llmservice_operator.router.picker_status import PickerStatus, read_status, serve_status
from llmservice_operator.routing.replica import Dispatch
from llmservice_operator.routing.router import Pick


def pick(seconds: float | None = 2.0, *, sent: float = 100.0) -> Pick:
    dispatch = Dispatch(sent, size=4000, tokens=1000.0, saved=600.0, uncached=700.0)
    return Pick("r1", seconds, dispatch)


def values(metrics: PickerMetrics) -> dict[str, float]:
    """Return the samples without the buckets. Labels follow the name."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def test_a_stream_compares_the_expected_with_the_real_time_from_the_pick_to_the_first_token() -> (
    None
):
    metrics = PickerMetrics()
    metrics.note_first_token(pick(2.0, sent=100.0), now=105.0)
    metrics.note_first_token(pick(2.0, sent=100.0), now=101.5)
    # Nothing was expected, so there is nothing to compare.
    metrics.note_first_token(pick(None), now=105.0)
    found = values(metrics)
    assert found["llmservice_router_expected_first_token_seconds_count"] == 2
    assert found["llmservice_router_expected_first_token_seconds_sum"] == 4.0
    assert found["llmservice_router_first_token_seconds_sum"] == 6.5
    assert found["llmservice_router_first_token_error_seconds_sum"] == 3.5


def test_the_saved_share_of_the_prompts_is_that_which_the_router_relies_on() -> None:
    metrics = PickerMetrics()
    metrics.note_pick(pick(), "least_work")
    metrics.note_pick(pick(None), "least_requests")
    found = values(metrics)
    assert found["llmservice_router_prompt_tokens_total"] == 2000
    # Of 600 tokens in the index, replicas have had only half in their caches until now.
    assert found["llmservice_router_cached_prompt_tokens_total"] == 600
    assert found["llmservice_router_picks_total least_work"] == 1
    assert found["llmservice_router_picks_total least_requests"] == 1


def test_the_metrics_of_keys_are_bounded() -> None:
    metrics = PickerMetrics()
    for at in range(MOST_KEYS + 5):
        metrics.note_admitted(f"key-{at}")
        metrics.note_limited(f"key-{at}", "tokens")
    found = values(metrics)
    assert found["llmservice_router_key_requests_total key-7"] == 1
    assert found["llmservice_router_key_requests_total other"] == 5
    assert found["llmservice_router_key_limited_total other tokens"] == 5
    assert len([name for name in found if "key_requests" in name]) == MOST_KEYS + 1


def test_a_gauge_is_read_at_each_scrape() -> None:
    metrics, held = PickerMetrics(), [7]
    metrics.watch("held_requests", "Held requests", lambda: held[0])
    assert values(metrics)["llmservice_router_held_requests"] == 7
    held[0] = 8
    assert values(metrics)["llmservice_router_held_requests"] == 8


async def test_the_supervisor_reads_the_status_of_a_running_picker(tmp_path: Path) -> None:
    refused = RefusedRequest(digest="a" * 64, seconds_left=5.0)
    status = PickerStatus(
        metrics="x" * 200_000, report=RouterReport(refused_requests=(refused,) * 100)
    )
    assert await read_status(tmp_path) == PickerStatus()
    server = await serve_status(lambda: status, tmp_path)
    try:
        assert await read_status(tmp_path) == status
    finally:
        server.close()
    # A picker that was killed leaves its socket behind.
    assert await read_status(tmp_path) == PickerStatus()


async def test_a_picker_that_hangs_has_no_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picker_status, "READ_SECONDS", 0.05)

    has_left = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"{")
        await reader.read()
        writer.close()
        await writer.wait_closed()
        has_left.set()

    server = await asyncio.start_unix_server(hang, tmp_path / picker_status.STATUS_SOCKET)
    try:
        assert await read_status(tmp_path) == PickerStatus()
        await has_left.wait()
    finally:
        server.close()
