"""Speculative decoding: measured acceptance and speedup beside the two usual formulas.

With g tokens drafted a step, each accepted with probability a, and a draft token costing c of a
target step:

    linear     g / (1 + (1 - a)*g)
    geometric  (1 - a^(g+1)) / ((1 - a)*(g*c + 1))

The geometric one follows from accepting until the first miss; the table says which is nearer.
"""

import json
import math
import re
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from serving import servers
from serving.load import run
from serving.servers import Server

_REPETITIVE = " ".join(["one two three four five six seven eight nine ten"] * 8)
"""A prompt that an n-gram draft can continue."""


@dataclass(frozen=True)
class Draft:
    """A way of drafting, and what a drafted token costs of a target step."""

    name: str
    configuration: dict[str, object]
    cost: float


def linear(alpha: float, gamma: int) -> float:
    """Return the speedup by the linear formula."""
    return gamma / (1 + (1 - alpha) * gamma)


def geometric(alpha: float, gamma: int, cost: float) -> float:
    """Return the speedup by the geometric formula; its limit where every draft is accepted."""
    tokens = gamma + 1 if alpha >= 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)
    return tokens / (gamma * cost + 1)


def rows(
    python: Path, model: Path, folder: Path, gammas: tuple[int, ...], tokens: int
) -> list[dict[str, object]]:
    """Measure every draft at every g; return a row each."""
    with servers.ours(python, model, folder) as server:
        plain = _tokens_per_second(server, tokens)
    found = []
    for gamma in gammas:
        for draft in _drafts(model, gamma):
            flag = f"--speculative-config={json.dumps(draft.configuration)}"
            with servers.ours(python, model, folder, [flag]) as server:
                speedup = _tokens_per_second(server, tokens) / plain
                found.append(_row(draft, gamma, _acceptance(server), speedup))
            print(f"speculation: {draft.name}, g = {gamma}", flush=True)
    return found


def _drafts(model: Path, gamma: int) -> tuple[Draft, ...]:
    return (
        Draft(
            "ngram",
            {
                "method": "ngram",
                "num_speculative_tokens": gamma,
                "prompt_lookup_max": 4,
                "prompt_lookup_min": 2,
            },
            0.0,
        ),
        Draft(
            "the model itself",
            {"method": "draft_model", "model": str(model), "num_speculative_tokens": gamma},
            1.0,
        ),
    )


def _row(draft: Draft, gamma: int, alpha: float, speedup: float) -> dict[str, object]:
    by_linear, by_geometric = linear(alpha, gamma), geometric(alpha, gamma, draft.cost)
    nearer = abs(math.log(speedup / by_linear)) < abs(math.log(speedup / by_geometric))
    return {
        "draft": draft.name,
        "gamma": gamma,
        "acceptance": alpha,
        "speedup": speedup,
        "linear": by_linear,
        "geometric": by_geometric,
        "nearer": "linear" if nearer else "geometric",
    }


def _tokens_per_second(server: Server, tokens: int) -> float:
    """Return the speed of one answer at a time, after a first one that compiles."""
    run(server, [tokens], concurrency=1, stream=False, prompt=_REPETITIVE)
    return run(server, [tokens] * 3, concurrency=1, stream=False, prompt=_REPETITIVE).throughput


def _acceptance(server: Server) -> float:
    """Return the share of steps whose first drafted token was accepted: the a of both formulas."""
    with urllib.request.urlopen(f"{server.management_url}/metrics") as response:
        page = response.read().decode()
    accepted = _sample(
        page, r'vllm:spec_decode_num_accepted_tokens_per_pos_total\{.*position="0".*'
    )
    drafts = _sample(page, r"vllm:spec_decode_num_drafts_total\{.*")
    return accepted / drafts if drafts else 0.0


def _sample(page: str, pattern: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in re.findall(f"^{pattern}$", page, re.M))
