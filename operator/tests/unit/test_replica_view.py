from dataclasses import replace

import pytest

from llmservice_operator.router.replica_view import (
    LONGEST_LINE,
    ReplicaView,
    View,
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
READY = ReplicaView("chat-1", "10.0.0.1:8000", False, REPORT, 100.0, ("sql", "tone"))
LINE = encode(View((READY,), ("10.0.0.8:9002",)))
SILENT = ReplicaView("chat-2", "[fd00::2]:8000", True, None, 0.0)


@pytest.mark.parametrize("replicas", [(), (READY,), (SILENT, READY)])
def test_a_line_gives_back_the_replicas_and_the_pickers(replicas: tuple[ReplicaView, ...]) -> None:
    view = View(replicas, ("10.0.0.8:9002", "[fd00::8]:9002"))
    line = encode(view)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line) == view


def test_a_thousand_replicas_fit_in_a_line() -> None:
    busy = replace(REPORT, counters=Counters(prompt_lengths=(123456.5,) * 21))
    replicas = (
        ReplicaView(f"{'x' * 240}-{i}", f"10.0.{i // 250}.{i % 250}:8000", False, busy, 1e6)
        for i in range(1000)
    )
    assert len(encode(View(tuple(replicas)))) < LONGEST_LINE


def test_a_line_that_would_be_too_long_leaves_the_adapters_out() -> None:
    names = tuple(f"adapter-{number:04}" * 20 for number in range(400))
    replicas = tuple(
        ReplicaView(f"chat-{number}", f"10.0.0.{number}:8000", False, REPORT, 1e6, names)
        for number in range(100)
    )
    others = ("10.0.1.1:9002",)
    line = encode(View(replicas, others))
    assert len(line) < LONGEST_LINE
    assert decode(line) == View(tuple(replace(each, adapters=()) for each in replicas), others)
    assert decode(encode(View(replicas[:10]))) == View(replicas[:10])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"", "the line: Invalid JSON"),
        (LINE[:-3], "the line: Invalid JSON"),
        (LINE.replace(b"10.0.0.1:8000", b"model.example"), "replicas.0.address: String"),
        (LINE.replace(b"12.5", b"NaN"), "replicas.0.report.at: "),
        (LINE.replace(b"10.0.0.8:9002", b"router.example"), "other_pickers.0: String"),
        (encode(View((READY, replace(SILENT, name="chat-1")))), "two replicas have the same name"),
        (encode(View((READY, replace(SILENT, address=READY.address)))), "have the same address"),
    ],
)
def test_another_text_is_refused_with_the_place(line: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match="no list of replicas") as refused:
        decode(line)
    assert problem in str(refused.value)
    assert refused.value.__cause__ is None
