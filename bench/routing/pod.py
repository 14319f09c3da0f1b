"""Measures Envoy and the picker of a router pod, on loopback.

Run `PYTHONPATH=bench:operator:operator/tests:testing python -m routing.pod`. The replicas are fake
and answer after a fixed time. For comparison, a plain Envoy, which chooses by the number of
requests, serves the same load. The CPU time per request is that of the processes, less the time
that they use while idle.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from llmservice_operator.router.picker import SERVICE
from router_support.pod import Pod, replicas_of, settings_of, snapshot
from router_support.replicas import SECONDS, FakeReplica, running
from routing.gates import gate_line
from shared_support import cpu_time

CHUNKS = 65
SMALL, LARGE = 2_000, 400_000
CPU_MS = {"cpu_2k": 6.0, "cpu_400k": 12.0}
CPU_RATIO, ADDED_TTFT_RATIO = 1.7, 2.0
PICKS_PER_SECOND, PICK_P99_MS = 1000.0, 10.0
"""Limits of the gates. The ratios compare the router with a plain Envoy, at 2 KB. The second one
compares the times that both add to the replicas' time until the first token."""

IN_FLIGHT = 16
"""Number of requests that the picker gets at the same time when its largest rate is measured."""


@dataclass(frozen=True)
class Load:
    """Streamed requests of one size, at equal intervals."""

    size: int
    """Bytes of the prompt."""
    rate: float
    """Requests per second."""
    seconds: float


@dataclass(frozen=True)
class Cost:
    """What a load costs a router."""

    cpu_ms: float
    """CPU time per request, in milliseconds."""
    ttft_ms: list[float]
    """Times until the first byte in milliseconds, in ascending order."""

    def __str__(self) -> str:
        return (
            f"{self.cpu_ms:.2f} ms CPU, TTFT p50 {percentile(self.ttft_ms, 50):.1f} "
            f"p99 {percentile(self.ttft_ms, 99):.1f} ms"
        )


class PlainEnvoy(Pod):
    """Envoy that asks no picker."""

    def _write(self, name: str, content: dict[str, Any]) -> None:
        if name == "envoy.json":
            for listener in content["static_resources"]["listeners"]:
                manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
                manager["http_filters"] = manager["http_filters"][-1:]
                for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
                    route.pop("typed_per_filter_config", None)
        super()._write(name, content)


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that processes have used, in seconds."""
    return sum(map(cpu_time.cpu_seconds, pids))


async def at_rate(rate: float, seconds: float, send: Callable[[], Awaitable[None]]) -> None:
    """Call `send` at equal intervals, and wait for all calls."""
    started, sent = time.monotonic(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(started + number / rate - time.monotonic())
        sent.append(asyncio.ensure_future(send()))
    await asyncio.gather(*sent)


async def serve(load: Load, *, with_picker: bool) -> Cost:
    """Start a router, and send it a load."""
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(Path(folder))
        pod = Pod(settings) if with_picker else PlainEnvoy(settings, pickers=0)
        replicas = replicas_of(4)
        for each in replicas:
            each.chunks, each.chunk_seconds = CHUNKS, 0.001
        pod.start()
        try:
            async with running(*replicas), aiohttp.ClientSession(pod.url) as client:
                await pod.tell(replicas)
                await pod.ready(replicas)
                return await _measure(pod, replicas, client, load)
        finally:
            pod.stop()


async def _measure(
    pod: Pod, replicas: list[FakeReplica], client: aiohttp.ClientSession, load: Load
) -> Cost:
    assert pod.envoy is not None
    pids = [pod.envoy.pid, *(each.pid for each in pod.pickers_running)]
    times: list[float] = []

    async def send() -> None:
        text = random.randbytes(load.size // 2).hex()
        body = {"stream": True, "messages": [{"role": "user", "content": text}]}
        started = time.perf_counter()
        async with client.post("/v1/chat/completions", json=body) as response:
            assert response.status == 200
            times.append(1000 * (time.perf_counter() - started))
            await response.read()

    await at_rate(load.rate, 1, send)  # opens the connections
    await pod.tell(replicas, reports=[snapshot() for _ in replicas])
    before = cpu_seconds(pids)
    await asyncio.sleep(load.seconds)
    idle, before = cpu_seconds(pids) - before, cpu_seconds(pids)
    times.clear()
    await at_rate(load.rate, load.seconds, send)
    used = cpu_seconds(pids) - before - idle
    return Cost(1000 * used / len(times), sorted(times))


async def pick(call: Any, body: bytes) -> None:
    """Ask the picker for a replica as Envoy does for a small body. Then report the first token and
    the end of the answer.
    """
    stream = call()
    await stream.write(
        pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=True))
    )
    answer = await stream.read()
    assert answer.WhichOneof("response") == "request_body"
    await stream.write(pb.ProcessingRequest(response_headers=pb.HttpHeaders()))
    await stream.read()
    stream.cancel()


async def pick_rates(seconds: float) -> tuple[float, float, list[float]]:
    """Return the largest number of picks per second, the CPU time of a pick, and the response times
    at 400 picks per second. Times are in milliseconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        pod, replicas = Pod(settings_of(Path(folder))), replicas_of(4)
        pod.start()
        try:
            async with running(*replicas):
                await pod.tell(replicas)
                await pod.ready(replicas)
                await pod.tell(replicas, reports=[snapshot() for _ in replicas])
                address = f"127.0.0.1:{pod.settings.picker_port}"
                async with grpc.aio.insecure_channel(address) as channel:
                    call = channel.stream_stream(
                        f"/{SERVICE}/Process",
                        request_serializer=pb.ProcessingRequest.SerializeToString,
                        response_deserializer=pb.ProcessingResponse.FromString,
                    )
                    return await _pick_rates(call, pod.pickers_running[0].pid, seconds)
        finally:
            pod.stop()


async def _pick_rates(call: Any, pid: int, seconds: float) -> tuple[float, float, list[float]]:
    body, done, times = random.randbytes(SMALL // 2).hex().encode(), 0, []
    body = b'{"messages": [{"role": "user", "content": "' + body + b'"}]}'

    async def client(until: float) -> None:
        nonlocal done
        while time.monotonic() < until:
            await pick(call, body)
            done += 1

    async def timed() -> None:
        started = time.perf_counter()
        await pick(call, body)
        times.append(1000 * (time.perf_counter() - started))

    before, until = cpu_seconds([pid]), time.monotonic() + seconds
    await asyncio.gather(*(client(until) for _ in range(IN_FLIGHT)))
    used = cpu_seconds([pid]) - before
    await at_rate(400, seconds, timed)
    return done / seconds, 1000 * used / done, sorted(times)


def cost_lines(name: str, plain: Cost, ours: Cost) -> list[str]:
    """Return the lines about a load, and the lines of its gates."""
    lines = [
        f"{name}: plain Envoy {plain}",
        f"{name}: router      {ours}",
        gate_line(name, ours.cpu_ms, CPU_MS[name], f"ms; x{ours.cpu_ms / plain.cpu_ms:.2f}"),
    ]
    if name == "cpu_2k":
        added, usual = (percentile(each.ttft_ms, 50) - 1000 * SECONDS for each in (ours, plain))
        lines += [
            gate_line("cpu_ratio", ours.cpu_ms / plain.cpu_ms, CPU_RATIO, "of a plain Envoy"),
            gate_line(
                "ttft_ratio", added / usual, ADDED_TTFT_RATIO, f"{added:.1f} ms : {usual:.1f} ms"
            ),
        ]
    return lines


def pick_lines(rate: float, cpu_ms: float, times: list[float]) -> list[str]:
    """Return the lines of the gates of the picker alone."""
    p50, p99 = percentile(times, 50), percentile(times, 99)
    return [
        gate_line(
            "picks_per_second",
            rate,
            PICKS_PER_SECOND,
            f"{cpu_ms:.2f} ms CPU a pick",
            is_at_least=True,
        ),
        gate_line("pick_p99", p99, PICK_P99_MS, f"ms at 400 picks/s; p50 {p50:.1f} ms"),
    ]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="length of each load")
    seconds = parser.parse_args().seconds
    print(f"replicas send the first of {CHUNKS} chunks after {1000 * SECONDS:.0f} ms")
    for name, load in (
        ("cpu_2k", Load(SMALL, 50, seconds)),
        ("cpu_400k", Load(LARGE, 10, seconds)),
    ):
        plain = await serve(load, with_picker=False)
        ours = await serve(load, with_picker=True)
        print(*cost_lines(name, plain, ours), sep="\n", flush=True)
    rate, cpu_ms, times = await pick_rates(seconds)
    print(*pick_lines(rate, cpu_ms, times), sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
