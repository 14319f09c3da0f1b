"""The limits of the measured figures, and the printed lines."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llmservice_operator.sharding import Shares
from scrape.cluster import keys_of
from scrape.member import Plan, State
from scrape.servers import address_of

CORES: Final = 1.0
MIB: Final = 400.0
ASKED_SECONDS: Final = 10.0
OLDEST_SECONDS: Final = 20.0
ROUND_CPU_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Figures:
    """The work of one metrics server in the measured time."""

    seconds: float
    rounds: int
    cpu_seconds: float
    rss_mib: float
    """Greatest resident memory."""
    asked_seconds: float
    """Longest time between two questions to a replica of its share. Infinite if one was not asked.
    """
    oldest_seconds: float
    """Greatest age of the last answer of a replica that answers."""
    unknown: int
    """Number of services without a known load at the end, of all services."""

    @classmethod
    def of(
        cls,
        plan: Plan,
        before: State,
        states: Sequence[State],
        seconds: float,
        asked: Mapping[str, Sequence[float]],
    ) -> "Figures":
        """`asked` is the longest time between two questions to each address, as its last item."""
        after = states[-1]
        shares = Shares(plan.me, frozenset(plan.members))
        keys = list(keys_of(plan.services))
        expected = [
            address_of(each, answers=each >= plan.silent)
            for each in range(plan.pods)
            if shares.keeps(keys[each % plan.services])
        ]
        return cls(
            seconds,
            after.rounds - before.rounds,
            after.cpu_seconds - before.cpu_seconds,
            max(it.rss_mib for it in states),
            max(asked[it][-1] if it in asked else float("inf") for it in expected),
            max(
                (it.oldest_answer_seconds for it in states if it.rounds > before.rounds),
                default=float("inf"),
            ),
            plan.services - after.known,
        )


def line(name: str, value: float, limit: float) -> str:
    verdict = "PASS" if value <= limit else "FAIL"
    return f"GATE {name} {value:.3g} {limit:g} {verdict}"


def lines_of_one(found: Figures) -> Iterator[str]:
    """Yield the lines of a metrics server without others."""
    cpu = found.cpu_seconds / found.rounds if found.rounds else float("inf")
    yield line("scrape_2000_round_cpu_seconds", cpu, ROUND_CPU_SECONDS)
    yield line("scrape_2000_unknown", found.unknown, 0)


def lines_of_cell(name: str, found: Figures) -> Iterator[str]:
    """Yield the lines of one of four metrics servers."""
    yield line(f"{name}_cores", found.cpu_seconds / found.seconds, CORES)
    yield line(f"{name}_mib", found.rss_mib, MIB)
    yield line(f"{name}_asked_seconds", found.asked_seconds, ASKED_SECONDS)
    yield line(f"{name}_oldest_answer_seconds", found.oldest_seconds, OLDEST_SECONDS)
    yield line(f"{name}_unknown", found.unknown, 0)


def lines_of_group(states: Sequence[Sequence[State]], services: int) -> Iterator[str]:
    """Yield the lines of metrics servers of which the first was stopped in the middle."""
    whole = [each[min(len(states[0]), len(each)) - 1] for each in states]
    shared = abs(sum(it.learned for it in whole) - services)
    shared += abs(sum(it.followed for it in whole) - services)
    yield line("scrape_together_shared_wrongly", shared, 0)
    yield line("scrape_together_unknown", max(services - it.known for it in whole), 0)
    left = [each[-1] for each in states[1:]]
    yield line("scrape_after_a_loss_unknown", max(services - it.known for it in left), 0)
    ages = max(it.newest_at - it.oldest_at for it in left)
    yield line("scrape_after_a_loss_oldest_report_seconds", ages, OLDEST_SECONDS)
