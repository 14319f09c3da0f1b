"""Tests percentiles of the last minute from cumulative histograms."""

import pytest

from llmservice_operator.scaling.latency import (
    LATENCY_BUCKETS,
    Latencies,
    LatencyWindow,
    percentile_milliseconds,
)


def histogram(**counts: float) -> tuple[float, ...]:
    return tuple(counts.get(f"b{i}", 0.0) for i in range(LATENCY_BUCKETS))


def latencies(**counts: float) -> Latencies:
    return Latencies(histogram(**counts), histogram(**counts))


def test_a_percentile_lies_in_the_bucket_that_holds_it() -> None:
    spread = histogram(b20=90, b40=10)

    assert percentile_milliseconds(spread, 0.5) == pytest.approx(2 ** (19.56 / 4), rel=0.01)
    assert 2 ** (39 / 4) < (percentile_milliseconds(spread, 0.95) or 0) <= 2 ** (40 / 4)
    assert percentile_milliseconds(histogram(), 0.95) is None
    assert percentile_milliseconds(histogram(b0=3), 0.95) == pytest.approx(1, rel=0.2)


def test_only_the_last_minute_counts_and_old_counters_only_set_a_mark() -> None:
    window = LatencyWindow().add(0, {"a": latencies(b40=1000)}, ["a"])
    assert sum(window.total.ttft) == 0

    window = window.add(5, {"a": latencies(b40=1000, b10=7)}, ["a"])
    assert window.total.ttft == histogram(b10=7)

    for at in range(10, 75, 5):
        window = window.add(at, {"a": latencies(b40=1000, b10=7)}, ["a"])
    assert sum(window.total.ttft) == 0


def test_a_restart_counts_from_zero_and_a_silent_replica_loses_nothing() -> None:
    window = LatencyWindow().add(0, {"a": latencies(b10=5)}, ["a"])
    window = window.add(5, {}, ["a"])
    window = window.add(10, {"a": latencies(b10=9)}, ["a"])
    assert window.total.ttft == histogram(b10=4)

    window = window.add(15, {"a": latencies(b20=2)}, ["a"])
    assert window.total.itl == histogram(b10=4, b20=2)

    window = window.add(20, {}, [])
    assert window.marks == {}
