from dataclasses import replace

import pytest

from llmservice_operator.router.replica_view import (
    LONGEST_LINE,
    ReplicaView,
    decode,
    encode,
)
from llmservice_operator.scaling.signals import STEP_MOMENTS, Counters, Snapshot, StepSums

REPORT = Snapshot(
    at=12.5,
    started=1_700_000_000.25,
    counters=Counters(arrivals=3, steps=StepSums(tuple(map(float, range(STEP_MOMENTS))))),
    running=1,
    waiting=2,
    kv_tokens=10.0,
    kv_capacity_tokens=100.0,
    max_sequences=4,
    max_step_tokens=512,
    engines=2,
)
READY = ReplicaView("chat-1", "10.0.0.1:8000", False, REPORT, 100.0)
SILENT = ReplicaView("chat-2", "[fd00::2]:8000", True, None, 0.0)


@pytest.mark.parametrize("replicas", [(), (READY,), (SILENT, READY)])
def test_a_line_gives_back_the_replicas(replicas: tuple[ReplicaView, ...]) -> None:
    line = encode(replicas)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line) == replicas


def test_a_thousand_replicas_fit_in_a_line() -> None:
    busy = replace(REPORT, counters=Counters(prompt_lengths=(123456.5,) * 21))
    replicas = (
        ReplicaView(f"{'x' * 240}-{i}", f"10.0.{i // 250}.{i % 250}:8000", False, busy, 1e6)
        for i in range(1000)
    )
    assert len(encode(tuple(replicas))) < LONGEST_LINE


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"", "the line: Invalid JSON"),
        (encode((READY,))[:-3], "the line: Invalid JSON"),
        (encode((READY,)).replace(b"10.0.0.1:8000", b"model.example"), "0.address: String"),
        (encode((READY,)).replace(b"12.5", b"NaN"), "0.report.at: "),
        (encode((READY, replace(SILENT, name="chat-1"))), "two replicas have the same name"),
        (encode((READY, replace(SILENT, address=READY.address))), "have the same address"),
    ],
)
def test_another_text_is_refused_with_the_place(line: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match="no list of replicas") as refused:
        decode(line)
    assert problem in str(refused.value)
    assert refused.value.__cause__ is None
