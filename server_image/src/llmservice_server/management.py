"""The application on the management port: probes and metrics, from the first second."""

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from llmservice_server.engine_usage import EngineUsage
from llmservice_server.lifecycle import Lifecycle


def create_management_app(
    lifecycle: Lifecycle, registry: CollectorRegistry, usage: EngineUsage
) -> FastAPI:
    """Return the application; every probe's body says the phase and how long it has lasted."""
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

    @app.get("/metrics")
    def metrics() -> Response:
        # Not async: rendering some hundred families must not hold up the event loop.
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/autoscale")
    async def autoscale() -> Response:
        # A slow driver must not hold up the event loop. The rest is told by the loop that counts
        # it, and so of one moment.
        gpus = {"gpuDutyCyclePercent": await run_in_threadpool(usage.gpu_duty_cycle_percent)}
        return JSONResponse(usage.report() | gpus | {"phase": lifecycle.phase.value})

    return app
