"""`kubectl llm bench`: a short load on a service, and its latencies beside those of the status."""

from __future__ import annotations

import asyncio
import math
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Group, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from llmservice_operator.errors import OperatorError
from llmservice_operator.kubectl_plugin.api_client import ApiClient, RequestFailed, Timing
from llmservice_operator.kubectl_plugin.endpoint import EndpointOptions, open_endpoint
from llmservice_operator.kubectl_plugin.kubectl import Kubectl
from llmservice_operator.kubectl_plugin.objects import read_service
from llmservice_operator.kubectl_plugin.screen import console_for, show, show_json, table
from llmservice_operator.kubectl_plugin.story import Slo, tell_story

MOST_REQUESTS: Final = 10_000
MOST_FAILURES: Final = 20
"""Failures after which the load ends early if no request was answered."""
GRACE_SECONDS: Final = 60.0
"""Longest time in seconds for which answers in progress are awaited at the end."""


class LoadFailed(OperatorError):
    """Requests of the load failed."""


@dataclass(frozen=True)
class BenchOptions:
    """The load."""

    seconds: int = 15
    """Time in seconds in which requests begin."""
    clients: int = 4
    """Number of requests at a time."""
    prompt_words: int = 100
    """Length of a prompt in words. Every prompt is different, so that no cache helps."""
    max_tokens: int = 64
    """Length of every answer in tokens."""
    as_json: bool = False


@dataclass(frozen=True)
class Latency:
    """Percentiles in milliseconds; None without a measurement."""

    p50: float | None
    p95: float | None
    p99: float | None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Return the percentiles of durations in seconds."""
        return cls(*(_percentile(seconds, share) for share in (0.50, 0.95, 0.99)))


@dataclass(frozen=True)
class Result:
    """Measurements of a load."""

    service: str
    model: str
    seconds: float
    """Duration of the load until its last answer."""
    clients: int
    requests: int
    """Answered requests."""
    failures: int
    first_failure: str | None
    requests_per_second: float
    answer_tokens_per_second: float
    prompt_tokens_per_second: float
    ttft: Latency
    itl: Latency
    """Percentiles of the requests' mean time between two tokens."""
    within_slo_percent: float | None
    """Share of the answered requests within the limits of spec.slo; None without limits."""
    status_slo: Slo | None
    """Limits and measurements in the status, before the load."""


def bench(kubectl: Kubectl, name: str, where: EndpointOptions, options: BenchOptions) -> None:
    """Send a load and print its measurements. Raises LoadFailed if a request failed."""
    service = read_service(kubectl, name)
    slo = tell_story(service, ()).slo
    with open_endpoint(kubectl, service, where) as endpoint:
        console = console_for(sys.stderr)
        columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("", total=options.seconds)

            def tell(seconds: float, answered: int) -> None:
                progress.update(task, description=f"{answered} answers", completed=seconds)

            load = Load(ApiClient(endpoint), options, tell)
            model = asyncio.run(load.run())
    result = measure(name, model, load, options, slo)
    if options.as_json:
        show_json(result)
    else:
        through = "" if where.url else f", through a port-forward to one pod of service/{name}"
        show(bench_screen(result, options, through), console_for())
    if result.failures:
        said = f"{result.failures} requests failed, the first one with: {result.first_failure}"
        raise LoadFailed(said)


class Load:
    """Clients that each send the next request when the last one is answered."""

    def __init__(
        self, client: ApiClient, options: BenchOptions, tell: Callable[[float, int], None]
    ) -> None:
        self._client, self._options, self._tell = client, options, tell
        self.answered: list[Timing] = []
        self.failures: list[str] = []
        self.seconds = 0.0
        self._begun = 0

    async def run(self) -> str:
        """Run the load and return the model. Raises RequestFailed if the model is unknown."""
        async with self._client as client:
            model = await client.model()
            started = time.monotonic()
            end = started + self._options.seconds
            clients = [
                asyncio.create_task(self._ask_until(end, started, model))
                for _ in range(self._options.clients)
            ]
            _, late = await asyncio.wait(clients, timeout=self._options.seconds + GRACE_SECONDS)
            for each in late:
                each.cancel()
                self.failures.append(f"no complete answer {GRACE_SECONDS:g} s after the load")
            await asyncio.gather(*clients, return_exceptions=True)
            self.seconds = time.monotonic() - started
        return model

    async def _ask_until(self, end: float, started: float, model: str) -> None:
        while time.monotonic() < end and self._begun < MOST_REQUESTS and not self._is_hopeless:
            self._begun += 1
            await self._ask(model)
            self._tell(time.monotonic() - started, len(self.answered))

    @property
    def _is_hopeless(self) -> bool:
        return not self.answered and len(self.failures) >= MOST_FAILURES

    async def _ask(self, model: str) -> None:
        words = "river " * self._options.prompt_words
        body = {
            "model": model,
            "prompt": f"{uuid.uuid4()} {words}",
            "max_tokens": self._options.max_tokens,
            "ignore_eos": True,
        }
        timing = Timing()
        try:
            async for _ in self._client.stream("/v1/completions", body, timing):
                pass
        except RequestFailed as error:
            self.failures.append(str(error))
            return
        self.answered.append(timing)


def measure(name: str, model: str, load: Load, options: BenchOptions, slo: Slo | None) -> Result:
    answered = load.answered
    ttfts = [each.first for each in answered if each.first is not None]
    itls = [each.mean_itl for each in answered if each.mean_itl is not None]
    return Result(
        service=name,
        model=model,
        seconds=load.seconds,
        clients=options.clients,
        requests=len(answered),
        failures=len(load.failures),
        first_failure=load.failures[0] if load.failures else None,
        requests_per_second=len(answered) / load.seconds,
        answer_tokens_per_second=sum(each.tokens for each in answered) / load.seconds,
        prompt_tokens_per_second=sum(each.prompt_tokens for each in answered) / load.seconds,
        ttft=Latency.of(ttfts),
        itl=Latency.of(itls),
        within_slo_percent=_within(answered, slo),
        status_slo=slo,
    )


def _percentile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value in milliseconds that is not below this share of the values."""
    if not values:
        return None
    return 1000 * sorted(values)[math.ceil(share * len(values)) - 1]


def _within(answered: Sequence[Timing], slo: Slo | None) -> float | None:
    if slo is None or not answered:
        return None
    met = [
        _is_within(each.first, slo.ttft_limit) and _is_within(each.mean_itl, slo.itl_limit)
        for each in answered
    ]
    return 100 * sum(met) / len(met)


def _is_within(seconds: float | None, limit: int | None) -> bool:
    return seconds is None or limit is None or 1000 * seconds <= limit


def bench_screen(result: Result, options: BenchOptions, through: str) -> RenderableType:
    slo = result.status_slo or Slo(None, None, None, None, None, None, None)
    title = (
        f"{result.service}: {result.requests} answers of {options.max_tokens} tokens in "
        f"{result.seconds:.1f} s from {result.clients} clients{through}"
    )
    rows = [
        ("TTFT p50", _ms(result.ttft.p50), None, None),
        ("TTFT p95", _ms(result.ttft.p95), _ms(slo.ttft_p95), _ms(slo.ttft_limit)),
        ("TTFT p99", _ms(result.ttft.p99), None, None),
        ("ITL p50", _ms(result.itl.p50), None, None),
        ("ITL p95", _ms(result.itl.p95), _ms(slo.itl_p95), _ms(slo.itl_limit)),
        ("ITL p99", _ms(result.itl.p99), None, None),
        (
            "within the SLO",
            _percent(result.within_slo_percent),
            _percent(slo.attainment_percent),
            _percent(slo.objective_percent),
        ),
        ("requests/s", f"{result.requests_per_second:.2f}", None, None),
        ("answer tokens/s", f"{result.answer_tokens_per_second:.1f}", None, None),
        ("prompt tokens/s", f"{result.prompt_tokens_per_second:.1f}", None, None),
        ("failures", result.failures, None, None),
    ]
    columns = ("", "MEASURED", "STATUS", "LIMIT")
    return Group(Text(title), Text(), table(columns, rows, right=3))


def _ms(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f} %"
