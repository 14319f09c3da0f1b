"""Measures the operator with one number of services: create, restart, idle, change, delete."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from llmservice_operator.kinds import LLMSERVICES, PODS, kind_of
from operator_bench import process
from operator_bench.client import Client, Key, Manifest, Watched, for_each
from operator_bench.figures import Cell
from operator_bench.hindrances import hanging_server, hanging_webhook
from operator_bench.latency import Latency
from operator_bench.services import (
    NAMESPACES,
    children_of,
    create,
    has_ready_replica,
    keys,
    kinds_of_children,
    make_ready,
)
from operator_support.processes import OperatorProcess
from shared_support.cpu_time import cpu_seconds
from shared_support.waiting import eventually_in_loop


class InstalledOperator(OperatorProcess):
    """An operator in an environment without the packages of the tests, as in its image."""

    python = os.environ.get("LLMSERVICE_BENCH_PYTHON", sys.executable)


OPERATOR_NAMESPACE = "bench-operator"
SAMPLES = 300
"""Maximum number of changes from which a quantile is computed."""
PHASE_SECONDS = 900.0
"""Time limit of one phase in seconds. The whole bench has a separate limit."""


class Measurement:
    """Fills the figures of one cell, phase by phase.

    An interrupted measurement keeps the figures of the earlier phases.
    """

    def __init__(self, client: Client, cell: Cell, folder: Path, idle_seconds: float) -> None:
        self._client = client
        self._cell = cell
        self._folder = folder
        self._idle_seconds = idle_seconds
        self._keys = keys(cell.services)
        self._latency = Latency(client)
        self._child_kinds = kinds_of_children(self._keys[0])
        self._seen = Watched(client, [LLMSERVICES, PODS, *self._child_kinds])
        self._ready: set[Key] = set()
        """Services that have reported a ready replica since their creation."""

    async def run(self, *, beside_others: bool) -> None:
        """Measure one cell.

        With `beside_others`, also measure a bare client, and the operator beside servers that hang.
        """
        await self._make_namespaces()
        async with self._seen.watching(), self._kubelet():
            if beside_others:
                await self._measure_bare_client()
            with self._operator() as operator:
                await self._measure_create(operator)
            with self._operator() as operator:
                await self._measure_restart(operator)
                await self._measure_idle()
                await self._measure_changes(operator, beside_others)
                if not beside_others:
                    await self._measure_delete(operator)
            if beside_others:
                await self._measure_hanging_metrics_server()
                with self._operator() as operator:
                    await self._until_all_passed(operator)
                    await self._measure_delete(operator)
        await self._drop_namespaces()

    def _operator(self, **settings: str) -> OperatorProcess:
        return InstalledOperator(self._folder / "operator.log", OPERATOR_NAMESPACE, **settings)

    async def _make_namespaces(self) -> None:
        for name in sorted({namespace for namespace, _ in self._keys}):
            await self._client.send("POST", "/api/v1/namespaces", {"metadata": {"name": name}})

    async def _drop_namespaces(self) -> None:
        for name in sorted({namespace for namespace, _ in self._keys}):
            await self._client.send("DELETE", f"/api/v1/namespaces/{name}")

    @asynccontextmanager
    async def _kubelet(self) -> AsyncIterator[None]:
        """Report every pod as ready soon after its creation."""
        made: asyncio.Queue[Key] = asyncio.Queue()
        self._seen.on_added[PODS] = made.put_nowait
        self._seen.on_service = self._note_service

        async def report() -> None:
            while True:
                await make_ready(self._client, await made.get())

        async with asyncio.TaskGroup() as group:
            reporting = [group.create_task(report()) for _ in range(4)]
            yield
            for task in reporting:
                task.cancel()

    async def _create_services(self) -> list[Manifest]:
        stored: list[Manifest] = []

        async def make(numbered: tuple[int, Key]) -> None:
            stored.append(await create(self._client, *numbered))

        await for_each(enumerate(self._keys), make)
        return stored

    async def _measure_bare_client(self) -> None:
        services = await self._create_services()
        built = [children_of(service) for service in services]

        async def apply(children: list[Manifest]) -> None:
            for child in children:
                await self._client.apply(kind_of(child), child)

        started = time.monotonic()
        await for_each(built, apply)
        self._cell.plain_create_seconds = time.monotonic() - started
        await self._until(lambda: self._seen.count(PODS) == len(services))
        self._cell.plain_delete_seconds = await self._delete_all()

    async def _measure_create(self, operator: OperatorProcess) -> None:
        await asyncio.to_thread(process.until_leading, operator)
        self._ready.clear()
        made = await asyncio.to_thread(process.passes, operator)
        used, started = cpu_seconds(operator.pid), time.monotonic()
        services = await self._create_services()
        expected = sum(len(children_of(service)) for service in services)
        await self._until(lambda: sum(map(self._seen.count, self._child_kinds)) == expected)
        last = max(self._seen.changed_at[kind] for kind in self._child_kinds)
        self._cell.create_seconds = last - started
        await self._until(lambda: len(self._ready) == len(services))
        self._cell.converge_seconds = time.monotonic() - started
        await asyncio.to_thread(process.until_idle, operator, len(services), PHASE_SECONDS)
        used = cpu_seconds(operator.pid) - used
        made = await asyncio.to_thread(process.passes, operator) - made
        self._cell.cpu_ms_per_service = 1000 * used / len(services)
        self._cell.cpu_ms_per_pass = 1000 * used / made
        self._note_memory(operator)

    async def _measure_restart(self, operator: OperatorProcess) -> None:
        started = time.monotonic()
        await self._until_all_passed(operator)
        self._cell.restart_seconds = time.monotonic() - started
        self._cell.restart_writes = await asyncio.to_thread(operator.writes)
        self._note_memory(operator)

    async def _measure_idle(self) -> None:
        await asyncio.to_thread(process.until_quiet)
        log, started = process.AuditLog(), time.monotonic()
        await asyncio.sleep(self._idle_seconds)
        requests = await asyncio.to_thread(log.requests)
        self._cell.idle_requests_per_second = requests.total() / (time.monotonic() - started)
        shown = ", ".join(f"{number} {what}" for what, number in requests.most_common())
        print(f"{self._cell.services} idle services: {shown or 'no requests'}", flush=True)

    async def _measure_changes(self, operator: OperatorProcess, beside_others: bool) -> None:
        async with self._latency.watching():
            self._cell.event_ms["quiet"] = await self._latency.sample(self._keys[:SAMPLES])
            self._note_memory(operator)
            if beside_others:
                await self._measure_hanging_webhook()

    async def _measure_hanging_webhook(self) -> None:
        stuck = self._keys[0][0]
        held = [key for key in self._keys if key[0] == stuck][: SAMPLES // NAMESPACES]
        others = [key for key in self._keys if key[0] != stuck][:SAMPLES]
        with hanging_webhook(stuck, self._folder):
            await for_each(held, self._latency.change)
            self._cell.event_ms["webhook hangs"] = await self._latency.sample(others)

    async def _measure_hanging_metrics_server(self) -> None:
        with hanging_server() as url, self._operator(METRICS_SERVER_URL=url) as operator:
            await self._until_all_passed(operator)
            await asyncio.to_thread(process.until_quiet)
            async with self._latency.watching():
                took = await self._latency.sample(self._keys[:SAMPLES])
            self._cell.event_ms["metrics server hangs"] = took
            self._note_memory(operator)

    async def _measure_delete(self, operator: OperatorProcess) -> None:
        self._cell.delete_seconds = await self._delete_all()
        self._note_memory(operator)

    async def _delete_all(self) -> float:
        async def delete(key: Key) -> None:
            await self._client.send("DELETE", LLMSERVICES.path(*key))

        started = time.monotonic()
        await for_each(self._keys, delete)
        kinds = [LLMSERVICES, PODS, *self._child_kinds]
        await self._until(lambda: not any(map(self._seen.count, kinds)))
        return max(self._seen.changed_at[kind] for kind in kinds) - started

    async def _until_all_passed(self, operator: OperatorProcess) -> None:
        await asyncio.to_thread(process.until_leading, operator)
        await asyncio.to_thread(process.until_idle, operator, len(self._keys), PHASE_SECONDS)

    def _note_service(self, key: Key, service: Manifest) -> None:
        if has_ready_replica(service):
            self._ready.add(key)

    def _note_memory(self, operator: OperatorProcess) -> None:
        self._cell.rss_mib = max(self._cell.rss_mib or 0.0, process.highest_rss_mib(operator))

    async def _until(self, check: Callable[[], object]) -> None:
        await eventually_in_loop(check, PHASE_SECONDS)
