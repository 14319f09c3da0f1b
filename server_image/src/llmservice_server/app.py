"""Builds the application on the API port: the gate around the engine's OpenAI application."""

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from llmservice_server.cors import Origins
from llmservice_server.errors import answer_http_exception, answer_unexpected
from llmservice_server.gate import Admission, Gate


def create_app(admission: Admission) -> FastAPI:
    """Return the application without an engine; it refuses requests with 503."""
    app = FastAPI(title="LLMService", openapi_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, answer_http_exception)
    app.add_exception_handler(Exception, answer_unexpected)
    app.add_middleware(Gate, admission=admission)
    app.state.engine_app = None
    app.state.origins = None
    return app


def attach_engine_app(app: FastAPI, engine_app: ASGIApp) -> None:
    """Put the engine's application behind the gate, which then calls it directly."""
    app.state.engine_app = engine_app


def allow_origins(app: FastAPI, origins: Origins | None) -> None:
    """Set which pages of other sites may call the API; None allows none."""
    app.state.origins = origins
