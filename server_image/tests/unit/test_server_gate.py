import asyncio

import pytest
from fastapi import FastAPI

from llmservice_server.app import attach_engine_app
from llmservice_server.lifecycle import Phase
from llmservice_server.settings import ServerSettings
from server_support import Client, make_stack


def engine_app(status: int = 200) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models", status_code=status)
    async def models() -> dict[str, str]:
        return {"object": "list"}

    @app.get("/pause")
    async def pause() -> dict[str, str]:
        return {"paused": "yes"}

    return app


@pytest.mark.parametrize("phase", [Phase.IMPORTING, Phase.LOADING, Phase.WARMING_UP])
async def test_answers_503_with_retry_after_until_the_model_is_ready(phase: Phase) -> None:
    answer = await Client(make_stack(phase).app).get("/v1/models")

    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"] == {
        "message": f"the model is not ready yet (phase {phase}); try again later",
        "type": "ServiceUnavailable",
        "param": None,
        "code": 503,
    }


async def test_serves_once_it_is_ready_although_it_was_asked_before() -> None:
    stack = make_stack(Phase.LOADING)
    assert (await Client(stack.app).get("/v1/models")).status == 503

    attach_engine_app(stack.app, engine_app())
    stack.lifecycle.enter(Phase.READY)

    answer = await Client(stack.app).get("/v1/models")
    assert (answer.status, answer.json()) == (200, {"object": "list"})
    assert "connection" not in answer.headers


async def test_still_serves_at_the_start_of_a_drain_but_closes_the_connection() -> None:
    stack = make_stack()
    attach_engine_app(stack.app, engine_app())
    stack.lifecycle.enter(Phase.DRAINING)

    answer = await Client(stack.app).get("/v1/models")

    assert (answer.status, answer.headers["connection"]) == (200, "close")


async def test_refuses_new_requests_late_in_a_drain() -> None:
    stack = make_stack()
    attach_engine_app(stack.app, engine_app())
    stack.lifecycle.enter(Phase.DRAINING)
    stack.lifecycle.accepts_requests = False

    answer = await Client(stack.app).get("/v1/models")

    assert answer.status == 503
    assert "shutting down" in answer.json()["error"]["message"]
    assert answer.headers["connection"] == "close"
    assert "retry-after" in answer.headers


@pytest.mark.parametrize(
    "path",
    ["/pause", "/metrics", "/v1/load_lora_adapter", "/v1/responses/a/b/c", "/", "/v1/", "/ping"],
)
async def test_routes_that_do_not_serve_are_not_there(path: str) -> None:
    stack = make_stack()
    attach_engine_app(stack.app, engine_app())

    answer = await Client(stack.app).get(path)

    assert answer.status == 404
    assert answer.json()["error"]["code"] == 404


async def test_administration_can_be_opened() -> None:
    stack = make_stack(settings=ServerSettings(administration_routes=True))
    attach_engine_app(stack.app, engine_app())
    assert (await Client(stack.app).get("/pause")).json() == {"paused": "yes"}
    assert (await Client(stack.app).get("/nothing")).status == 404


async def test_a_503_of_the_engine_gets_a_retry_after() -> None:
    stack = make_stack()
    attach_engine_app(stack.app, engine_app(status=503))
    assert "retry-after" in (await Client(stack.app).get("/v1/models")).headers
    full = {"reason": "queue_full"}
    assert stack.registry.get_sample_value("llm_requests_rejected_total", full) == 1


async def test_counts_requests_by_route_and_status() -> None:
    stack = make_stack()
    attach_engine_app(stack.app, engine_app())
    await Client(stack.app).get("/v1/models")
    for path in ("/wp-admin", "/etc/passwd"):
        await Client(stack.app).get(path)

    def counted(route: str, status: int) -> float | None:
        return stack.registry.get_sample_value(
            "llm_requests_total", {"route": route, "status": str(status)}
        )

    assert counted("/v1/models", 200) == 1
    assert counted("unknown", 404) == 2
    assert counted("/wp-admin", 404) is None
    assert (
        stack.registry.get_sample_value(
            "llm_request_duration_seconds_count", {"route": "/v1/models"}
        )
        == 1
    )


async def test_a_request_is_in_flight_until_its_answer_has_ended() -> None:
    stack = make_stack()
    inner = FastAPI()
    go_on = asyncio.Event()

    @inner.get("/v1/models")
    async def slow() -> dict[str, str]:
        await go_on.wait()
        return {}

    attach_engine_app(stack.app, inner)
    asking = asyncio.ensure_future(Client(stack.app).get("/v1/models"))
    while stack.in_flight.count == 0:
        await asyncio.wait((asking,), timeout=0)

    assert stack.registry.get_sample_value("llm_requests_in_flight") == 1
    assert not await stack.in_flight.wait_until_none(timeout=0.01)

    go_on.set()
    await asking
    assert await stack.in_flight.wait_until_none(timeout=0.01)
    assert stack.registry.get_sample_value("llm_requests_in_flight") == 0
