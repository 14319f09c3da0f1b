"""Measures the acceptance and speedup of speculative decoding against the two usual formulas.

Let g be the number of tokens drafted in a step, a the probability that a drafted token is accepted,
and c the cost of a drafted token relative to a step of the target model. The predicted speedups
are:

    linear     g / (1 + (1 - a)*g)
    geometric  (1 - a^(g+1)) / ((1 - a)*(g*c + 1))

The geometric formula follows from accepting drafted tokens until the first miss. Its numerator over
1 - a is the number of tokens per step, and g*c + 1 is the cost of a step. Both are also measured
separately, so that the table shows which part of the formula differs from reality.
"""

import json
import math
import re
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from serving import servers
from serving.gates import paired_ratio
from serving.load import Load, run
from serving.report import Row
from serving.servers import Server

_PROMPT = " ".join(["one two three four five six seven eight nine ten"] * 8)


@dataclass(frozen=True)
class Draft:
    """A drafting method, and the cost of a drafted token relative to a step of the target model."""

    name: str
    configuration: dict[str, object]
    cost: float
    temperatures: tuple[float, ...]
    """Temperatures of the target model. The higher the temperature, the fewer tokens of a greedy
    draft are accepted."""


@dataclass(frozen=True)
class Effort:
    """Size of each measurement."""

    gammas: tuple[int, ...] = (2, 5)
    rounds: int = 5
    requests: int = 3
    tokens: int = 100


@dataclass(frozen=True)
class Counted:
    """Counters of an engine since its start."""

    steps: float
    tokens: float
    drafts: float
    accepted: tuple[float, ...]
    """Drafted tokens that were accepted, by their place in the draft."""

    def since(self, before: "Counted") -> "Counted":
        """Return the counts since an earlier reading."""
        earlier = before.accepted or (0.0,) * len(self.accepted)
        return Counted(
            self.steps - before.steps,
            self.tokens - before.tokens,
            self.drafts - before.drafts,
            tuple(now - then for now, then in zip(self.accepted, earlier, strict=True)),
        )

    @property
    def acceptance(self) -> float:
        """Probability that a drafted token is accepted if all tokens before it are: `a` in the
        formulas.

        The first token of a draft is always tried. A later token is tried only if the token before
        it was accepted.
        """
        tried = self.drafts + sum(self.accepted[:-1])
        return sum(self.accepted) / tried if tried else 0.0

    @property
    def tokens_per_step(self) -> float:
        return self.tokens / self.steps


def linear(alpha: float, gamma: int) -> float:
    """Return the speedup according to the linear formula."""
    return gamma / (1 + (1 - alpha) * gamma)


def geometric_tokens(alpha: float, gamma: int) -> float:
    """Return the tokens per step according to the geometric formula.

    At an acceptance of 1, these are all drafted tokens and one more.
    """
    return gamma + 1 if alpha >= 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)


def geometric(alpha: float, gamma: int, cost: float) -> float:
    """Return the speedup according to the geometric formula."""
    return geometric_tokens(alpha, gamma) / (gamma * cost + 1)


def measure(python: Path, model: Path, folder: Path, effort: Effort) -> list[Row]:
    """Measure the draft with every pair of g and temperature, and return one row for each pair."""
    found = []
    with servers.ours(python, model, folder) as plain:
        for gamma in effort.gammas:
            draft = _draft(model, gamma)
            flag = f"--speculative-config={json.dumps(draft.configuration)}"
            with servers.ours(python, model, folder, [flag], name="drafting") as drafting:
                found += [
                    _row(plain, drafting, draft, gamma, temperature, effort)
                    for temperature in draft.temperatures
                ]
            print(f"speculation: {draft.name}, g = {gamma}", flush=True)
    return found


def verdict(rows: list[Row]) -> str:
    """Return a line with the typical error of each formula and the name of the better one."""
    errors = {
        formula: math.exp(
            sum(
                abs(math.log(float(str(row["speedup"])) / float(str(row[formula])))) for row in rows
            )
            / len(rows)
        )
        for formula in ("linear", "geometric")
    }
    nearer = min(errors, key=errors.__getitem__)
    told = ", ".join(f"{name} {factor:.2f}x" for name, factor in errors.items())
    return f"speculation: reality follows the {nearer} formula (typical error: {told})"


def _draft(model: Path, gamma: int) -> Draft:
    return Draft(
        "the model itself",
        {"method": "draft_model", "model": str(model), "num_speculative_tokens": gamma},
        1.0,
        (0.0, 0.1),
    )


def _row(
    plain: Server, drafting: Server, draft: Draft, gamma: int, temperature: float, effort: Effort
) -> Row:
    def ask(server: Server) -> Load:
        return run(
            server,
            [effort.tokens] * effort.requests,
            concurrency=1,
            stream=False,
            prompts=[_PROMPT],
            temperature=temperature,
        )

    # The first requests compile the drafting code.
    for server in (plain, drafting):
        ask(server)
    before = count(drafting)
    pairs = [(ask(drafting).throughput, ask(plain).throughput) for _ in range(effort.rounds)]
    counted = count(drafting).since(before)
    ratio = paired_ratio(*zip(*pairs, strict=True))
    assert ratio is not None, "fewer rounds than an interval needs"
    alpha = counted.acceptance
    by_linear, by_geometric = linear(alpha, gamma), geometric(alpha, gamma, draft.cost)
    nearer = abs(math.log(ratio.middle / by_linear)) < abs(math.log(ratio.middle / by_geometric))
    return {
        "draft": draft.name,
        "gamma": gamma,
        "temperature": temperature,
        "acceptance": alpha,
        "tokens/step": counted.tokens_per_step,
        "geometric tokens/step": geometric_tokens(alpha, gamma),
        "step cost": counted.tokens_per_step / ratio.middle,
        "gc+1": gamma * draft.cost + 1,
        "speedup": ratio.middle,
        "low": ratio.low,
        "high": ratio.high,
        "linear": by_linear,
        "geometric": by_geometric,
        "nearer": "linear" if nearer else "geometric",
    }


def count(server: Server) -> Counted:
    """Read the counters of a server's engine."""
    with urllib.request.urlopen(f"{server.management_url}/metrics") as response:
        page = response.read().decode()
    with urllib.request.urlopen(f"{server.management_url}/autoscale") as response:
        usage = json.load(response)["counters"]
    accepted = re.findall(
        r'^vllm:spec_decode_num_accepted_tokens_per_pos_total\{.*position="(\d+)".*\} (\S+)$',
        page,
        re.MULTILINE,
    )
    drafts = re.findall(r"^vllm:spec_decode_num_drafts_total\{.*\} (\S+)$", page, re.MULTILINE)
    return Counted(
        steps=usage["steps"]["moments"][0],
        tokens=usage["generatedTokens"],
        drafts=sum(map(float, drafts)),
        accepted=tuple(float(value) for _, value in sorted(accepted, key=lambda x: int(x[0]))),
    )
