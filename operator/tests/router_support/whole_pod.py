"""A whole router pod on loopback, whose supervisor runs in the process of the tests."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from llmservice_operator.metrics_server.router_updates import RouterClient
from llmservice_operator.names import API_PORT, IDENTITY_PATH, MANAGEMENT_PORT
from llmservice_operator.router.envoy_names import ADMIN_SOCKET
from llmservice_operator.router.processes import program
from llmservice_operator.router.replicas import Resolve
from llmservice_operator.router.supervisor import Supervisor
from llmservice_operator.router_settings import RouterSettings, StepPrior
from operator_support.metrics import Engine
from operator_support.processes import free_port
from router_support.commands import command_of
from shared_support.scrape import metric_of
from shared_support.waiting import eventually_in_loop

NAMESPACE, SERVICE = "team-a", "chat"
METRICS_SERVERS = "metrics-servers.example"
"""DNS name of the metrics servers."""
CHAT = "/v1/chat/completions"
STREAM = {"stream": True, "messages": [{"role": "user", "content": "hi"}]}
PLAIN = {"messages": [{"role": "user", "content": "hi"}]}
DONE = b"data: [DONE]\n\n"


def addresses(number: int) -> list[str]:
    """Return loopback addresses. They are random, because the ports of a replica are fixed."""
    a, b = random.randrange(1, 255), random.randrange(1, 255)
    return [f"127.{a}.{b}.{last}" for last in range(1, number + 1)]


async def until(check: Callable[[], Awaitable[bool]], within: float = 60.0) -> None:
    """Wait until an asynchronous check succeeds."""
    async with asyncio.timeout(within):
        while not await check():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@dataclass
class ServedReplica:
    """A model server without a model, at both of its ports."""

    address: str
    pod: str
    namespace: str = NAMESPACE
    service: str = SERVICE
    phase: str = "ready"
    is_draining: bool = False
    tokens: int = 3
    token_seconds: float = 0.02
    first_token: asyncio.Event | None = None
    """Delays each answer until this event is set; None delays nothing."""
    status: int = 200
    requests: list[web.BaseRequest] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    active: int = 0
    questions: int = 0
    """Number of times that the replica was asked for its report."""
    dies: bool = False
    """Whether the replica closes the connection of each request."""
    adapters: dict[str, str] = field(default_factory=dict)
    """State of each LoRA adapter."""
    is_older: bool = False
    """Whether the replica runs a release that does not report its identity."""
    is_silent: bool = False
    """Whether the replica never answers requests for its report."""
    reports_status: int = 200
    """HTTP status with which the replica answers requests for its report."""
    _runners: list[web.ServerRunner] = field(default_factory=list)

    @property
    def is_serving(self) -> bool:
        return bool(self._runners)

    async def start(self) -> None:
        for port, handler in ((API_PORT, self._answer), (MANAGEMENT_PORT, self._manage)):
            server = web.Server(handler, access_log=None, handler_cancellation=True)
            runner = web.ServerRunner(server, shutdown_timeout=0)
            await runner.setup()
            await web.TCPSite(runner, self.address, port, reuse_address=True).start()
            self._runners.append(runner)

    async def stop(self) -> None:
        """Stop immediately, and close every connection."""
        for runner in self._runners:
            server = runner.server
            assert server is not None
            for connection in list(server.connections):
                if connection.transport is not None:
                    connection.transport.abort()
            await runner.cleanup()
        self._runners.clear()

    async def _manage(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == IDENTITY_PATH:
            name = f"{self.namespace}/{self.service}"
            return web.Response(headers={"x-envoy-upstream-healthchecked-cluster": name})
        self.questions += 1
        if self.is_silent:
            await asyncio.Event().wait()
        if self.reports_status != 200:
            return web.Response(status=self.reports_status)
        report = Engine(phase=self.phase).autoscale()
        if not self.is_older:
            identity = {"namespace": self.namespace, "service": self.service}
            report["replica"] = identity | {"pod": self.pod, "uid": f"uid-of-{self.pod}"}
            report["draining"] = self.is_draining
            report["adapters"] = [
                {"name": name, "source": f"hf://example/{name}", "state": state}
                for name, state in self.adapters.items()
            ]
        return web.json_response(report)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        self.active += 1
        try:
            return await self._generate(request)
        finally:
            self.active -= 1

    async def _generate(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        self.bodies.append(body)
        if self.dies and request.transport is not None:
            request.transport.abort()
        if self.first_token is not None:
            await self.first_token.wait()
        if self.status != 200:
            error = {"message": "the prompt is too long", "type": "BadRequestError"}
            return web.json_response({"error": error}, status=self.status)
        if not (body and json.loads(body).get("stream")):
            return web.json_response({"replica": self.pod})
        headers = {"content-type": "text/event-stream", "x-replica": self.pod}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        for number in range(self.tokens):
            await response.write(f'data: {{"token": {number}}}\n\n'.encode())
            await asyncio.sleep(self.token_seconds)
        await response.write(DONE)
        return response


@dataclass
class Names:
    """The answers of DNS."""

    addresses: list[str] = field(default_factory=list)
    """Addresses of the replicas."""
    metrics_servers: list[str] = field(default_factory=list)
    fails: bool = False

    async def resolve(self, host: str) -> list[str]:
        if self.fails:
            raise OSError("no answer")
        return list(self.metrics_servers if host == METRICS_SERVERS else self.addresses)


@dataclass
class RouterPod:
    supervisor: Supervisor
    names: Names
    client: aiohttp.ClientSession
    running: asyncio.Task[int]

    @property
    def settings(self) -> RouterSettings:
        return self.supervisor.settings

    async def knows(self, *replicas: ServedReplica) -> None:
        """Wait until requests go to these replicas and to no others."""
        expected = sorted(f"{each.address}:{API_PORT}" for each in replicas)

        async def is_so() -> bool:
            views = self.supervisor.replicas.views()
            told = sorted(each.address for each in views if not each.is_draining)
            return told == expected and await self.healthy("replicas") == len(expected)

        await until(is_so)

    async def healthy(self, cluster: str) -> int:
        """Return the number of endpoints of a cluster that Envoy finds healthy."""
        name = f"cluster.{cluster}.membership_healthy"
        answer = await self.envoy(f"/stats?filter=^{name}$")
        return int(answer.partition(": ")[2] or -1)

    async def envoy(self, path: str) -> str:
        """Return the answer of Envoy's admin socket; empty while Envoy does not respond."""
        connector = aiohttp.UnixConnector(str(self.settings.run_directory / ADMIN_SOCKET))
        try:
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.get(f"http://envoy{path}") as answer,
            ):
                return await answer.text()
        except (aiohttp.ClientError, OSError):
            return ""

    async def forwarded(self, metric: str) -> float:
        """Return the value of a metric of the forwarder; 0 if the metric is missing."""
        return metric_of(await self.metrics(), metric)

    async def probe(self, path: str) -> tuple[int, Any]:
        url = f"http://127.0.0.1:{self.settings.management_port}{path}"
        async with self.client.get(url) as answer:
            return answer.status, await answer.json()

    async def metrics(self) -> str:
        url = f"http://127.0.0.1:{self.settings.management_port}/metrics"
        async with self.client.get(url) as answer:
            return await answer.text()

    async def end(self) -> int:
        self.supervisor.stop.set()
        return await self.running


def settings_of_pod(folder: Path, **settings: Any) -> RouterSettings:
    defaults: dict[str, Any] = {
        "client_port": free_port(),
        "management_port": free_port(),
        "picker_port": free_port(),
        "forwarder_port": free_port(),
        "heartbeat_seconds": 1,
        "drain_seconds": 0,
        "metrics_servers_host": METRICS_SERVERS,
        "replicas_host": "replicas.example",
    }
    return RouterSettings(
        namespace=NAMESPACE,
        service=SERVICE,
        step_prior=StepPrior(fixed=0.01, prefill=1e-4, sequence=1e-5, kv=1e-9),
        run_directory=folder,
        **{**defaults, **settings},
    )


def supervisor_of(settings: RouterSettings, resolve: Resolve) -> Supervisor:
    """Return a supervisor whose processes are not forked, because the tests have threads."""
    picker, forwarder = (program(*command_of(each, settings)) for each in ("picker", "forwarder"))
    return Supervisor(settings, picker, forwarder, resolve)


@asynccontextmanager
async def router_pod(
    folder: Path, *replicas: ServedReplica, **settings: Any
) -> AsyncIterator[RouterPod]:
    """Start the replicas, and run a pod in front of them. Wait until the pod knows them."""
    configured = settings_of_pod(folder, **settings)
    # The tests send the lists of a metrics server from this address.
    names = Names([each.address for each in replicas], metrics_servers=["127.0.0.1"])
    supervisor = supervisor_of(configured, names.resolve)
    for each in replicas:
        await each.start()
    running = asyncio.create_task(supervisor.run())
    url = f"http://127.0.0.1:{configured.client_port}"
    try:
        async with aiohttp.ClientSession(url) as client:
            pod = RouterPod(supervisor, names, client, running)
            await eventually_in_loop(lambda: not supervisor.why_not_ready() or running.done())
            await pod.knows(*replicas)

            async def has_picker() -> bool:
                return await pod.healthy("pickers") == 1

            await until(has_picker)
            yield pod
    finally:
        supervisor.stop.set()
        await asyncio.wait([running], timeout=60)
        for each in replicas:
            await each.stop()


@asynccontextmanager
async def client_of(pod: RouterPod) -> AsyncIterator[RouterClient]:
    """Yield a metrics server's client of the pod."""
    client = RouterClient(pod.settings.management_port)
    try:
        yield client
    finally:
        await client.close()
