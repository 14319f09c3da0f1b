"""The HTTP endpoints of a process: /livez, /readyz and /metrics."""

from collections.abc import Callable
from typing import Any, Protocol

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST


class RenderedMetrics(Protocol):
    """The metrics of a process, as text for Prometheus."""

    async def render(self) -> bytes: ...


class Probed(Protocol):
    """The reasons why a process is not alive, not ready or hindered; empty lists if it has none."""

    def why_not_alive(self) -> list[str]: ...

    def why_not_ready(self) -> list[str]: ...

    def why_hindered(self) -> list[str]: ...


def create_app(
    metrics: RenderedMetrics, health: Probed, *further_readiness_paths: str
) -> web.Application:
    """Return the web application with /livez, /readyz and /metrics.

    The further paths give the same answer as /readyz.
    """

    def probe(
        reasons: Callable[[], list[str]], lesser: Callable[[], list[str]] = list
    ) -> Callable[[web.Request], Any]:
        async def answer(_: web.Request) -> web.Response:
            found, hindered = reasons(), lesser()
            status = "not ok" if found else "hindered" if hindered else "ok"
            body = {"status": status, "reasons": [*found, *hindered]}
            return web.json_response(body, status=503 if found else 200)

        return answer

    async def show_metrics(_: web.Request) -> web.Response:
        text = await metrics.render()
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/livez", probe(health.why_not_alive))
    for path in ("/readyz", *further_readiness_paths):
        app.router.add_get(path, probe(health.why_not_ready, health.why_hindered))
    app.router.add_get("/metrics", show_metrics)
    return app


async def start_server(app: web.Application, port: int) -> web.AppRunner:
    """Serve the application on all addresses. The caller must clean up the returned runner.

    Raises OSError if the port cannot be used.
    """
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, host=None, port=port).start()
    return runner
