"""Adds two routes that vLLM lacks or answers wrongly: for one served model, and for the load."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from llmservice_server.errors import error_response


def create_lookup_router(models: Any, requests_in_progress: Callable[[], int]) -> APIRouter:
    """Return the routes. `models` is vLLM's list of the served models."""
    router = APIRouter()

    @router.get("/v1/models/{model:path}", summary="Retrieve Model")
    async def retrieve_model(model: str) -> Response:
        served = (await models.show_available_models()).data
        for each in served:
            if each.id == model:
                return JSONResponse(each.model_dump())
        names = ", ".join(each.id for each in served)
        return error_response(f"no model {model[:200]} is served here, but {names}", 404, "model")

    # vLLM tracks the load only if a flag is set, and otherwise reports 0.
    @router.get("/load", summary="Number of requests in progress")
    async def load() -> Response:
        # The request to /load itself is not counted.
        return JSONResponse({"server_load": max(0, requests_in_progress() - 1)})

    return router
