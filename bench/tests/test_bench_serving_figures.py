"""Tests the figures of the serving bench: the inputs of each gate, and the theoretical values."""

import asyncio
import math
import os
import random
import re
import subprocess
import threading
from collections.abc import AsyncIterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from serving.batching import MIXES, continuous_steps, throughput_model
from serving.comparison import Comparison, Starts
from serving.gates import GATES, Interval, lines
from serving.load import Load, _read_stream, quantile, run_chats
from serving.report import commit
from serving.servers import Server
from serving.speculation import Counted, geometric, geometric_tokens, linear, verdict
from serving.speculation_on_text import Gains

NAMES = ("ours", "stock", "stock again")


def compared(**changed: float) -> dict[str, str]:
    """Return the verdict of every gate if our figures are multiplied by the factors in `changed`.

    Without a factor, our figures pass every gate.
    """
    comparison, starts = Comparison(), Starts()
    for number in range(20):
        for name in NAMES:
            factors = {"api_cpu_per_token": 0.9, **changed} if name == "ours" else {}
            for kind, runs in (
                ("plain", comparison.plain),
                ("stream", comparison.streamed),
                ("overload", comparison.overloaded),
            ):
                slow = 1 + 0.001 * (number % 3)
                runs[name].append(
                    Load(
                        tokens=1000,
                        seconds=slow / factors.get(f"throughput_{kind}", 1.0),
                        api_cpu_seconds=0.2 * slow * factors.get("api_cpu_per_token", 1.0),
                        ttft=[0.1] * 98 + [0.2 * factors.get("ttft_p99", 1.0)] * 2,
                        itl=[0.01],
                        latency=[0.5],
                    )
                )
    for start in range(5):
        starts.seconds["ours"].append(8.0 * changed.get("start_to_ready", 1.0))
        starts.seconds["stock, eager"].append(20.0 + start)
    gain = 1.5 * changed.get("speculation_gain", 1.0)
    gains = Gains([], {("ngram", "repeating", 1): Interval(gain, gain, gain)})
    told = lines(comparison.ratios() | starts.ratios() | gains.ratios())
    verdicts = (re.search("PASS|FAIL|UNDECIDED", line) for line in told)
    return {
        line.split()[1]: verdict[0] if verdict else ""
        for line, verdict in zip(told, verdicts, strict=True)
    }


def test_every_gate_passes_where_ours_is_as_good() -> None:
    assert compared() == {gate.name: "PASS" for gate in GATES}


@pytest.mark.parametrize(
    ("gate", "factor"),
    [
        ("throughput_plain", 0.95),
        ("throughput_stream", 0.95),
        ("throughput_overload", 0.95),
        ("ttft_p99", 1.1),
        ("api_cpu_per_token", 1.1),
        ("start_to_ready", 2.0),
        ("speculation_gain", 0.7),
    ],
)
def test_each_gate_fails_on_its_own_figure_alone(gate: str, factor: float) -> None:
    found = compared(**{gate: factor})

    assert [name for name, verdict in found.items() if verdict == "FAIL"] == [gate]


def test_a_quantile_is_a_value_that_was_seen() -> None:
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile(list(range(1, 101)), 0.99) == 99
    assert quantile([5], 0.99) == 5


class Response:
    """Response whose content yields the lines of a stream, as in the client library."""

    def __init__(self, lines: Sequence[bytes]) -> None:
        self.content = self._read(lines)

    async def _read(self, lines: Sequence[bytes]) -> AsyncIterator[bytes]:
        for line in lines:
            yield line


def read(*events: bytes) -> tuple[int, Load]:
    load = Load()
    response: Any = Response([line for event in events for line in (event + b"\n", b"\n")])
    tokens = asyncio.run(_read_stream(cast("aiohttp.ClientResponse", response), load, 0.0))
    return tokens, load


def test_a_stream_counts_its_first_token_once_and_the_gaps_between_pieces() -> None:
    piece = b'data: {"choices":[{"index":0,"text":"a"}]}'
    usage = b'data: {"choices":[],"usage":{"completion_tokens":3}}'

    tokens, load = read(piece, piece, piece, usage, b"data: [DONE]")

    assert tokens == 3
    assert len(load.ttft) == 1
    assert len(load.itl) == 2


def test_a_stream_without_its_end_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="cut"):
        read(b'data: {"choices":[{"index":0,"text":"a"}]}')


def test_a_place_is_filled_as_soon_as_it_is_free() -> None:
    assert continuous_steps([5, 1, 1, 3], batch=2) == 5
    assert continuous_steps([4, 4, 4], batch=1) == 12


def test_the_model_of_throughput_is_batch_times_length_by_latency() -> None:
    assert throughput_model(16, 50, 2.0) == 400


def test_lengths_of_a_mix_are_the_same_every_time_and_within_bounds() -> None:
    for mix in MIXES:
        lengths = mix.lengths(500)
        assert lengths == mix.lengths(500)
        assert 1 <= min(lengths) < max(lengths) == 200
        assert 35 < sum(lengths) / 500 < 55


def test_the_formulas_have_their_known_values() -> None:
    assert linear(1.0, 3) == 3
    assert linear(0.0, 3) == 0.75
    assert geometric(1.0, 3, 0) == 4
    assert geometric(0.5, 3, 0) == 1.875
    assert geometric(0.5, 3, 1) == 1.875 / 4
    assert geometric_tokens(0.9999999, 3) == pytest.approx(4)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_counts_of_drafts_that_end_at_their_first_miss_give_back_the_acceptance(
    alpha: float,
) -> None:
    chance, gamma, steps = random.Random(3), 4, 20_000
    accepted = [0] * gamma
    for _ in range(steps):
        for place in range(gamma):
            if chance.random() >= alpha:
                break
            accepted[place] += 1
    warm_up = Counted(10, 20, 10, ())
    counted = Counted(
        steps + 10,
        steps + sum(accepted) + 20,
        steps + 10,
        tuple(map(float, accepted)),
    ).since(warm_up)

    assert counted.acceptance == pytest.approx(alpha, abs=0.01)
    assert counted.tokens_per_step == pytest.approx(geometric_tokens(alpha, gamma), rel=0.02)


def test_says_which_formula_the_speedups_follow() -> None:
    rows: list[dict[str, object]] = [
        {"speedup": 2.0, "linear": 1.0, "geometric": 2.2},
        {"speedup": 1.0, "linear": 1.0, "geometric": 1.1},
    ]

    told = verdict(rows)

    assert "follows the geometric formula" in told
    assert f"linear {math.sqrt(2):.2f}x, geometric 1.10x" in told


def test_what_a_bench_writes_does_not_mark_its_commit_as_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, result = tmp_path / "code.py", tmp_path / "bench" / "serving" / "results" / "table.csv"
    result.parent.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert commit() == "unknown"
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    for file in (code, result):
        file.write_text("before")
    for arguments in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "first")):
        subprocess.run(["git", *arguments], check=True)
    name = commit()
    result.write_text("after")
    assert commit() == name
    code.write_text("after")
    assert commit() == f"{name}-dirty"


def test_the_gain_of_speculation_is_that_of_the_better_draft_from_text_for_one_request() -> None:
    gains = Gains(
        [],
        {
            ("ngram", "repeating", 1): Interval(1.5, 1.1, 1.9),
            ("suffix", "repeating", 1): Interval(1.4, 1.3, 1.5),
            ("suffix", "repeating", 4): Interval(9.0, 9.0, 9.0),
            ("suffix", "other", 1): Interval(9.0, 9.0, 9.0),
            ("the model itself", "repeating", 1): Interval(9.0, 9.0, 9.0),
        },
    )
    assert gains.ratios()["speculation_gain"].ours == Interval(1.4, 1.3, 1.5)
    assert Gains([], {}).ratios() == {}


def test_chats_at_a_rate_begin_whether_or_not_earlier_ones_have_ended() -> None:
    begun = 0
    all_begun = threading.Barrier(8, timeout=10)

    class Chats(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal begun
            begun += 1
            self.rfile.read(int(self.headers["content-length"]))
            all_begun.wait()
            self.send_response(200)
            self.end_headers()
            for event in ('{"choices":[],"usage":{"completion_tokens":3}}', "[DONE]"):
                self.wfile.write(f"data: {event}\n\n".encode())

        def log_message(self, format: str, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Chats) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{listening.server_port}"
        server = Server("this", url, url, os.getpid(), 0.0)
        load = run_chats(server, [3] * 8, rate=200)
        listening.shutdown()

    assert begun == 8
    assert load.tokens == 24
    assert load.seconds >= 7 / 200
