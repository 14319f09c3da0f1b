"""Measures what speculative decoding gains on text that repeats and on text that does not.

The other measurement of speculation checks formulas on a random model, whose answers never repeat
their prompt. This measurement uses a trained model. Every method is compared with the same server
without speculation, and the servers get their requests one after another.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from serving import servers
from serving.gates import Interval, Ratios, paired_ratio
from serving.load import Load, run
from serving.report import Row
from serving.servers import Server
from serving.speculation import Counted, count
from serving.texts import OTHER, REPEATING

_TEXTS = {"repeating": REPEATING, "other": OTHER}
_DRAFTED = 5
"""Number of tokens that the methods ngram and `the model itself` draft per step."""


@dataclass(frozen=True)
class Effort:
    """Size of each measurement."""

    concurrent: tuple[int, ...] = (1, 4, 16)
    rounds: int = 5
    tokens: int = 16


@dataclass
class Gains:
    """Rows of the table, and the gain of each method, text and number of concurrent requests."""

    rows: list[Row]
    found: dict[tuple[str, str, int], Interval]

    def ratios(self) -> dict[str, Ratios]:
        """Return the gain of the better of the two methods that draft from text.

        The gain is that of one request at a time on repeating text. The result is empty if this
        gain was not measured.
        """
        from_text = [
            gain
            for (method, text, concurrent), gain in self.found.items()
            if method in ("ngram", "suffix") and text == "repeating" and concurrent == 1
        ]
        if not from_text:
            return {}
        return {"speculation_gain": Ratios(max(from_text, key=lambda gain: gain.low))}


def measure(
    python: Path, model: Path, suffix_packages: Path, folder: Path, effort: Effort
) -> Gains:
    """Measure every method on every text."""
    gains = Gains([], {})
    with ExitStack() as stack:
        plain = stack.enter_context(servers.ours(python, model, folder, name="no draft"))
        running = {
            name: stack.enter_context(
                servers.ours(
                    python,
                    model,
                    folder,
                    [f"--speculative-config={json.dumps(configuration)}"],
                    name=name,
                    packages=suffix_packages,
                )
            )
            for name, configuration in _methods(model).items()
        }
        for text, prompts in _TEXTS.items():
            for concurrent in effort.concurrent:
                _compare(gains, plain, running, text, prompts, concurrent, effort)
                print(f"speculation: {text} text, {concurrent} at once", flush=True)
    return gains


def _methods(model: Path) -> dict[str, dict[str, object]]:
    return {
        "ngram": {
            "method": "ngram",
            "num_speculative_tokens": _DRAFTED,
            "prompt_lookup_min": 2,
            "prompt_lookup_max": 4,
        },
        # The rounds repeat their prompts, so a cache of earlier answers would contain the answers
        # that are to be drafted.
        "suffix": {"method": "suffix", "suffix_decoding_max_cached_requests": 0},
        "the model itself": {
            "method": "draft_model",
            "model": str(model),
            "num_speculative_tokens": _DRAFTED,
        },
    }


def _compare(
    gains: Gains,
    plain: Server,
    running: dict[str, Server],
    text: str,
    prompts: Sequence[str],
    concurrent: int,
    effort: Effort,
) -> None:
    def ask(server: Server) -> Load:
        lengths = [effort.tokens] * max(concurrent, len(prompts))
        return run(server, lengths, concurrency=concurrent, stream=False, prompts=prompts)

    every = {"none": plain, **running}
    # The first requests compile the drafting code and fill the prefix cache.
    for server in every.values():
        ask(server)
    before = {name: count(server) for name, server in every.items()}
    speeds: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(effort.rounds):
        for name, server in every.items():
            speeds[name].append(ask(server).throughput)
    for name, server in every.items():
        gain = paired_ratio(speeds[name], speeds["none"])
        if gain is not None:
            gains.found[name, text, concurrent] = gain
        counted = count(server).since(before[name])
        gains.rows.append(_row(name, text, concurrent, counted, speeds[name], gain))


def _row(
    method: str,
    text: str,
    concurrent: int,
    counted: Counted,
    speeds: Sequence[float],
    gain: Interval | None,
) -> Row:
    return {
        "text": text,
        "concurrent": concurrent,
        "draft": method,
        "acceptance": counted.acceptance,
        "tokens/step": counted.tokens_per_step / concurrent,
        "tokens/s": sum(speeds) / len(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "gain": gain.middle if gain else 0.0,
        "low": gain.low if gain else 0.0,
        "high": gain.high if gain else 0.0,
    }
