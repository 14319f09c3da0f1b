"""Builds the application on the management port, which serves probes and metrics from the start."""

import asyncio

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from llmservice_server.engine_usage import EngineUsage
from llmservice_server.errors import error_response
from llmservice_server.lifecycle import Lifecycle, Phase
from llmservice_server.management_thread import run_in
from llmservice_server.routers import Readers

_NAME_HEADER = "x-envoy-upstream-healthchecked-cluster"
"""Header in which Envoy expects the name of a service in the response to a health check. If another
pod has taken over the address of a replica, the name differs, and Envoy sends that pod no
requests."""

_USAGE_SECONDS = 1.5
"""Maximum time in seconds to read the counters. The metrics server waits half a second longer for
the response."""


def create_management_app(
    lifecycle: Lifecycle,
    registry: CollectorRegistry,
    usage: EngineUsage,
    api_loop: asyncio.AbstractEventLoop,
    readers: Readers | None = None,
    identity: dict[str, str] | None = None,
) -> FastAPI:
    """Return the application. The body of every probe contains the phase and its age.

    `api_loop` is the event loop that updates the counters of `usage`. `readers` records the
    addresses that read /autoscale. `identity` names the replica; None outside Kubernetes.
    """
    known = Readers() if readers is None else readers
    of_replica = {} if identity is None else {"replica": identity}
    app = FastAPI(title="Management", openapi_url=None)

    def probe(ok: bool) -> Response:
        return JSONResponse(lifecycle.report(), 200 if ok else 503)

    @app.get("/livez")
    async def livez() -> Response:
        return probe(lifecycle.is_alive)

    @app.get("/startupz")
    async def startupz() -> Response:
        return probe(lifecycle.has_started)

    @app.get("/readyz")
    async def readyz() -> Response:
        return probe(lifecycle.is_ready)

    @app.get("/identity")
    async def name_service() -> Response:
        response = probe(lifecycle.is_ready)
        if identity is not None:
            response.headers[_NAME_HEADER] = f"{identity['namespace']}/{identity['service']}"
        return response

    @app.get("/metrics")
    def metrics() -> Response:
        # This function is not async, so FastAPI runs it in a thread. Rendering about a hundred
        # families must not block the event loop.
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/autoscale")
    async def autoscale(request: Request) -> Response:
        if request.client is not None:
            known.note(request.client.host)
        # A slow GPU driver must not block this event loop. The API's event loop both updates and
        # reads the counters, so all counters are from the same moment.
        gpus = {"gpuDutyCyclePercent": await run_in_threadpool(usage.gpu_duty_cycle_percent)}
        try:
            report = await run_in(api_loop, usage.report, _USAGE_SECONDS)
        except TimeoutError:
            return error_response("the API is busy; its counters cannot be read now", 503)
        phase = lifecycle.phase
        is_ending = phase in (Phase.DRAINING, Phase.FAILED)
        state = {"phase": phase.value, "draining": is_ending}
        return JSONResponse(report | gpus | of_replica | state)

    return app
