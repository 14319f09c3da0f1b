"""Tests the metrics of the picker, and how the supervisor reads them."""

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from llmservice_operator.router.picker_metrics import PickerMetrics, read_metrics, serve_metrics
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


async def test_the_supervisor_reads_the_metrics_of_a_running_picker(tmp_path: Path) -> None:
    metrics = PickerMetrics()
    metrics.note_outcome("sent")
    metrics.watch("held_requests", "Held requests", lambda: 7)
    assert await read_metrics(tmp_path) == b""
    server = await serve_metrics(metrics, tmp_path)
    try:
        assert await read_metrics(tmp_path) == metrics.render()
        assert values(metrics)["llmservice_router_held_requests"] == 7
    finally:
        server.close()
    # A picker that was killed leaves its socket behind, and the next picker replaces it.
    (tmp_path / "picker.sock").touch()
    assert await read_metrics(tmp_path) == b""
