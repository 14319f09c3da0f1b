"""Sends requests at a given rate, without waiting for earlier answers, and judges them by the
client's clock.
"""

import asyncio
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from llmservice_operator.engine_metrics import UsageReport
from llmservice_operator.scaling.conditions import ServiceLevelObjective
from llmservice_operator.scaling.signals import Counters, Snapshot
from serving.servers import SERVED_NAME, Server
from utilization.mixes import LONGEST_ANSWER, PROBE, Mix
from utilization.truth import Trial

SETTLE_SECONDS = 2.5
"""Seconds of traffic before the measurement of a level begins. Requests of this time are not
judged, because the engine has not reached its steady load yet."""
SAMPLE_SECONDS = 0.2
PROBE_TOKENS = 100
"""Length of the answer of a probe, which takes about as many engine steps."""


@dataclass(frozen=True)
class Answer:
    """Latencies of one request at the client, in seconds. They are infinite if no complete answer
    arrived in time.
    """

    ttft: float = math.inf
    itl: float = math.inf
    """Mean inter-token latency of the request, in seconds."""

    def meets(self, slo: ServiceLevelObjective, patience: float = 1.0) -> bool:
        """Return whether the request met the latency limits of the SLO, multiplied by
        `patience`.
        """
        ttft, itl = slo.ttft_seconds, slo.itl_seconds
        return (ttft is None or self.ttft <= patience * ttft) and (
            itl is None or self.itl <= patience * itl
        )


@dataclass(frozen=True)
class Level:
    """Results of one mix at one rate."""

    rate: float
    """Mean rate of the arrivals, in requests per second. The number of arrivals is random, so
    `offered` may differ."""
    seconds: float
    done: Counters
    """Increase of the server's counters during the level."""
    answers: Sequence[Answer]
    samples: Sequence[Snapshot]
    pace: float
    """Mean duration in seconds of the engine steps of two probes: the same single request, right
    before and right after the level."""

    def attainment(self, slo: ServiceLevelObjective) -> float:
        """Return the share of the requests that met the SLO by the client's clock.

        Raises RuntimeError when no request arrived.
        """
        if not self.answers:
            raise RuntimeError(f"no request in {self.seconds:.0f} s: measure for longer")
        return sum(answer.meets(slo) for answer in self.answers) / len(self.answers)

    def trial(self, slo: ServiceLevelObjective, slowness: float = 1.0) -> Trial:
        """Return the outcomes of the requests, scaled to a machine that is faster by the factor
        `slowness`.
        """
        missed = sum(not answer.meets(slo, slowness) for answer in self.answers)
        return Trial(self.offered * slowness, len(self.answers), missed)

    @property
    def offered(self) -> float:
        """Requests per second that arrived."""
        return len(self.answers) / self.seconds

    @property
    def busy(self) -> float:
        """Share of the time in which the engine had work, like the duty cycle of a GPU."""
        return _mean([each.running + each.waiting > 0 for each in self.samples])

    @property
    def kv_usage(self) -> float:
        """Mean share of the KV cache in use."""
        return _mean([each.kv_tokens / each.kv_capacity_tokens for each in self.samples])

    @property
    def batch_share(self) -> float:
        """Mean number of running sequences, as a share of the engine's maximum."""
        return _mean([each.running / each.max_sequences for each in self.samples])


def offer(
    server: Server, mix: Mix, rate: float, seconds: float, slo: ServiceLevelObjective, seed: int
) -> Level:
    """Send requests at random times until the engine has settled, and then for `seconds`.

    Only the requests of the second part are judged.
    """
    return asyncio.run(_offer(server, mix, rate, seconds, slo, random.Random(seed)))


async def _offer(
    server: Server,
    mix: Mix,
    rate: float,
    seconds: float,
    slo: ServiceLevelObjective,
    chance: random.Random,
) -> Level:
    timeout, connector = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        paces = [await _pace(session, server)]
        early = await _send(session, server, mix, rate, SETTLE_SECONDS, chance)
        before, began = await read_snapshot(session, server), time.perf_counter()
        samples: list[Snapshot] = []
        sampling = asyncio.create_task(_sample(session, server, samples))
        judged = await _send(session, server, mix, rate, seconds, chance)
        after, took = await read_snapshot(session, server), time.perf_counter() - began
        sampling.cancel()
        # A request without a complete answer has missed its limits once the SLO's time for the
        # longest answer is over. Disconnecting ends these requests in the engine, so that the next
        # level begins with an empty engine.
        patience = (slo.ttft_seconds or 0.0) + LONGEST_ANSWER * (slo.itl_seconds or 0.0)
        _, late = await asyncio.wait([*early, *judged], timeout=patience)
        for task in late:
            task.cancel()
        await asyncio.gather(*early, *judged, return_exceptions=True)
        answers = [Answer() if task.cancelled() else task.result() for task in judged]
        while not _is_idle(await read_snapshot(session, server)):
            await asyncio.sleep(SAMPLE_SECONDS)
        paces.append(await _pace(session, server))
    return Level(rate, took, after.since(before), answers, samples, _mean(paces))


async def _pace(session: aiohttp.ClientSession, server: Server) -> float:
    """Send a probe to an idle engine, and return the mean duration of its steps in seconds.

    The steps of all probes have the same content, so their duration differs only because the speed
    of the machine does.
    """
    before = await read_snapshot(session, server)
    await _ask(session, server, list(PROBE), PROBE_TOKENS)
    steps = (await read_snapshot(session, server)).since(before).steps
    return steps.seconds / steps.steps


def _is_idle(snapshot: Snapshot) -> bool:
    return snapshot.running + snapshot.waiting == 0


async def read_snapshot(session: aiohttp.ClientSession, server: Server) -> Snapshot:
    """Request one report from the management port, and parse it as the metrics server does."""
    async with session.get(f"{server.management_url}/autoscale") as response:
        return UsageReport.model_validate_json(await response.read()).snapshot(time.time())


async def _send(
    session: aiohttp.ClientSession,
    server: Server,
    mix: Mix,
    rate: float,
    seconds: float,
    chance: random.Random,
) -> list["asyncio.Task[Answer]"]:
    """Send requests as a Poisson process for `seconds`.

    Return their tasks, some of which may still be running.
    """
    started, due = time.perf_counter(), chance.expovariate(rate)
    requests = mix.requests(max(1, round(rate * seconds)), chance)
    tasks = []
    while due < seconds:
        await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
        prompt, length = next(requests)
        tasks.append(asyncio.create_task(_ask(session, server, prompt, length)))
        due += chance.expovariate(rate)
    await asyncio.sleep(max(0.0, started + seconds - time.perf_counter()))
    return tasks


async def _ask(
    session: aiohttp.ClientSession, server: Server, prompt: list[int], length: int
) -> Answer:
    body = {
        "model": SERVED_NAME,
        "prompt": prompt,
        "max_tokens": length,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    asked = time.perf_counter()
    first = last = 0.0
    tokens = 0
    async with session.post(f"{server.url}/v1/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"the server answered {response.status}: {await response.text()}")
        async for line in response.content:
            if b'"usage":{' in line:
                tokens = json.loads(line.removeprefix(b"data: "))["usage"]["completion_tokens"]
            elif line.startswith(b"data: {"):
                last = time.perf_counter()
                first = first or last
    if tokens != length:
        raise RuntimeError(f"the server gave {tokens} of {length} tokens")
    return Answer(first - asked, (last - first) / max(length - 1, 1))


async def _sample(session: aiohttp.ClientSession, server: Server, into: list[Snapshot]) -> None:
    while True:
        into.append(await read_snapshot(session, server))
        await asyncio.sleep(SAMPLE_SECONDS)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
