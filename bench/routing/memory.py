"""Measures the memory and the idle CPU time of a whole router pod, on loopback.

Run `PYTHONPATH=bench:operator:operator/tests:testing python -m routing.memory`. The pod is started
by the command of its container, in front of a model server without a model.
"""

import argparse
import asyncio
import re
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from router_support.pod_process import PodProcess, pod_process
from router_support.whole_pod import CHAT, ServedReplica, addresses, settings_of_pod, until
from routing.gates import gate_line
from routing.pod import cpu_seconds
from shared_support.scrape import metric_of

IDLE_MIB, IDLE_MILLICORES = 150.0, 20.0
HELD_KIB = 128.0
"""Limits of the gates."""

HELD, HELD_BYTES = 2000, 16_000
"""Number of held requests, and the bytes of the prompt of each."""

SETTLE_SECONDS = 15.0
"""Time in seconds after the start until the pod counts as idle."""

_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)")


def memory_mib(pids: Iterable[int]) -> float:
    """Return the memory that the processes occupy together, in MiB.

    A page that several of these processes share counts once, as in the limit of a container. A page
    of a file counts in full, even if a process that is not among them uses it too.
    """
    anonymous, files = 0, Counter[str]()
    for pid in pids:
        own = _file_kib(Path(f"/proc/{pid}/smaps").read_text())
        files |= own
        total = _kib(Path(f"/proc/{pid}/smaps_rollup").read_text())
        anonymous += total["Pss_Anon"] + total["Pss_Shmem"]
    return (anonymous + files.total()) / 1024


def _file_kib(smaps: str) -> Counter[str]:
    """Return the resident pages of each mapped file that no process has changed, in KiB."""
    found, path = Counter[str](), ""
    for line in smaps.splitlines():
        if mapping := _MAPPING.fullmatch(line):
            path = mapping[1]
        elif path.startswith("/") and line.startswith(("Rss:", "Anonymous:")):
            sign = 1 if line.startswith("Rss:") else -1
            found[path] += sign * int(line.split()[1])
    return found


def _kib(rollup: str) -> dict[str, int]:
    fields = (line.split() for line in rollup.splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): int(amount) for name, amount, _ in fields}


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[tuple[PodProcess, ServedReplica]]:
    """Run a pod in front of a replica, until it is idle and after that."""
    replica = ServedReplica(addresses(1)[0], "chat-1")
    await replica.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            whole = settings_of_pod(
                Path(folder), replicas_host=replica.address, metrics_servers_host=None, **settings
            )
            async with pod_process(whole, within=600) as pod:
                await asyncio.sleep(SETTLE_SECONDS)
                yield pod, replica
    finally:
        await replica.stop()


async def idle(seconds: float) -> list[str]:
    """Return the lines of the gate idle_router, after some lines about the processes."""
    async with running() as (pod, _):
        pids = pod.pids()
        before = {pid: cpu_seconds([pid]) for pid in pids}
        await asyncio.sleep(seconds)
        used = {pid: 1000 * (cpu_seconds([pid]) - before[pid]) / seconds for pid in pids}
        lines = [
            f"idle {name}: {memory_mib([pid]):.0f} MiB alone, {used[pid]:.1f} millicores"
            for pid, name in pids.items()
        ]
        memory, cpu = memory_mib(pids), sum(used.values())
    return [
        *lines,
        gate_line("idle_router", memory, IDLE_MIB, "MiB"),
        gate_line("idle_router_cpu", cpu, IDLE_MILLICORES, "millicores"),
    ]


async def held() -> list[str]:
    """Return the line of the gate held_memory."""
    async with running(max_held_requests=HELD) as (pod, replica):
        replica.phase = "loading"
        before = memory_mib(pod.pids())
        body = {"messages": [{"role": "user", "content": "x" * HELD_BYTES}]}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(pod.url, connector=connector) as client:

            async def send() -> int:
                async with client.post(CHAT, json=body) as answer:
                    await answer.read()
                    return answer.status

            async def all_held() -> bool:
                return await _held(pod) == HELD

            sent = [asyncio.ensure_future(send()) for _ in range(HELD)]
            await until(all_held, within=600)
            more = memory_mib(pod.pids()) - before
            replica.phase = "ready"
            statuses = Counter(await asyncio.gather(*sent))
    detail = f"KiB; {statuses[200]} of {HELD} answered afterwards"
    return [gate_line("held_memory", 1024 * more / HELD, HELD_KIB, detail)]


async def _held(pod: PodProcess) -> float:
    """Return the number of requests that the picker and the forwarder hold."""
    url = f"http://127.0.0.1:{pod.settings.management_port}/metrics"
    async with aiohttp.ClientSession() as client, client.get(url) as answer:
        scrape = await answer.text()
    names = ("llmservice_router_held_requests", "llmservice_router_forwarder_waiting_requests")
    return sum(metric_of(scrape, name) for name in names)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="length of the idle time")
    parser.add_argument("--only", choices=("idle", "held"), help="measure only this part")
    options = parser.parse_args()
    if options.only != "held":
        print(*await idle(options.seconds), sep="\n", flush=True)
    if options.only != "idle":
        print(*await held(), sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
