from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI

from llmservice_server.lookups import create_lookup_router
from server_support.in_process import Client


class Card(SimpleNamespace):
    def model_dump(self) -> dict[str, Any]:
        return vars(self)


class Models:
    async def show_available_models(self) -> SimpleNamespace:
        return SimpleNamespace(data=[Card(id="owner/a-model"), Card(id="adapter")])


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    app.include_router(create_lookup_router(Models(), lambda: 3))
    return app


@pytest.mark.parametrize("name", ["owner/a-model", "adapter"])
async def test_tells_one_model_by_its_name(app: FastAPI, name: str) -> None:
    assert (await Client(app).get(f"/v1/models/{name}")).json() == {"id": name}


async def test_tells_which_models_there_are_when_asked_for_another(app: FastAPI) -> None:
    answer = await Client(app).get("/v1/models/other")
    assert answer.status == 404
    assert answer.json()["error"] == {
        "message": "no model other is served here, but owner/a-model, adapter",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }


async def test_tells_the_load_without_the_request_that_asks(app: FastAPI) -> None:
    assert (await Client(app).get("/load")).json() == {"server_load": 2}
