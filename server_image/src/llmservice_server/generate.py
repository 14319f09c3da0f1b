"""Serves POST /generate, a minimal API that returns JSON or server-sent events."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse

from llmservice_server.context_limit import why_no_room
from llmservice_server.errors import EngineUnavailable, RequestRefused, error_body
from llmservice_server.streaming import STREAM_END, event, prefetched, until_disconnect

_LARGEST_SEED = 2**63 - 1
"""Largest seed. Seeds are sent to the engine as signed 64-bit integers."""

_CLIENT_LEFT = 499
"""Status that proxies log for a client that disconnected. It is only counted and never sent."""

StopText = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


class GenerateRequest(BaseModel):
    """Body of a request. An unknown field is refused, because its name may be misspelt."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"examples": [{"prompt": "The capital of France is", "max_tokens": 16}]},
    )

    prompt: str = Field(min_length=1)
    max_tokens: int = Field(100, ge=1)
    temperature: float = Field(0.8, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, le=2**31 - 1)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=2)
    seed: int | None = Field(None, ge=-_LARGEST_SEED - 1, le=_LARGEST_SEED)
    stop: StopText | list[StopText] = Field(default_factory=list, max_length=256)
    stop_token_ids: list[TokenId] | None = Field(None, max_length=256)
    include_stop_str_in_output: bool = False
    bad_words: list[StopText] | None = Field(None, max_length=256)
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=1024
    )
    allowed_token_ids: list[TokenId] | None = Field(None, min_length=1, max_length=100_000)
    min_tokens: int = Field(0, ge=0, le=2**31 - 1)
    skip_special_tokens: bool = True
    ignore_eos: bool = False
    stream: bool = False


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt in the engine's form."""

    tokens: int
    """Number of tokens."""

    engine_input: Any
    """The engine's own representation, opaque to other code."""


@dataclass(frozen=True)
class Piece:
    """A piece of the generated text. Without streaming, the piece is the whole text."""

    text: str
    tokens: int
    finish_reason: str | None
    """Reason why the text ends; set on the last piece only."""


class TextEngine(Protocol):
    """Operations of an engine that /generate needs."""

    @property
    def max_model_len(self) -> int:
        """Maximum length of prompt and answer together, in tokens."""

    async def tokenize(self, prompt: str) -> TokenizedPrompt:
        """Return the prompt in tokens."""

    def generate(
        self, prompt: TokenizedPrompt, wanted: GenerateRequest
    ) -> AsyncGenerator[Piece, None]:
        """Generate an answer. Closing the generator or cancelling its task aborts the request.

        Raises EngineUnavailable when the engine dies during the request.
        """


def create_generate_router(engine: TextEngine) -> APIRouter:
    """Return the route, bound to an engine."""
    router = APIRouter(tags=["generate"])

    @router.post(
        "/generate", summary="Generate text from a prompt", dependencies=[Depends(_check_type)]
    )
    async def generate(wanted: GenerateRequest, request: Request) -> Response:
        prompt = await engine.tokenize(wanted.prompt)
        pieces = engine.generate(prompt, _capped(wanted, prompt, engine.max_model_len))
        try:
            if wanted.stream:
                begun = await until_disconnect(request, prefetched(pieces))
                return StreamingResponse(_events(begun, prompt), media_type="text/event-stream")
            return JSONResponse(await until_disconnect(request, _whole(pieces, prompt)))
        except ClientDisconnect:
            return Response(status_code=_CLIENT_LEFT)

    return router


def _check_type(request: Request) -> None:
    """Raise RequestRefused if FastAPI would not read the body as JSON.

    curl sends a form unless it is told otherwise. FastAPI would then only say that bytes are no
    object.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not re.fullmatch(r"application/(.+\+)?json", kind):
        raise RequestRefused(
            "The body must be JSON: send the header Content-Type: application/json"
        )


def _capped(wanted: GenerateRequest, prompt: TokenizedPrompt, context: int) -> GenerateRequest:
    """Return the request with a `max_tokens` that fits the context.

    Raises RequestRefused when the prompt leaves no room for an answer.
    """
    if reason := why_no_room(prompt.tokens, context):
        raise RequestRefused(reason, "prompt")
    room = context - prompt.tokens
    return wanted.model_copy(update={"max_tokens": min(wanted.max_tokens, room)})


async def _whole(pieces: AsyncGenerator[Piece, None], prompt: TokenizedPrompt) -> dict[str, object]:
    text, tokens, finish_reason = [], 0, None
    async with aclosing(pieces):
        async for piece in pieces:
            text.append(piece.text)
            tokens += piece.tokens
            finish_reason = piece.finish_reason
    return {
        "text": "".join(text),
        "finish_reason": finish_reason,
        "usage": _usage(prompt.tokens, tokens),
    }


async def _events(
    pieces: AsyncGenerator[Piece, None], prompt: TokenizedPrompt
) -> AsyncGenerator[str, None]:
    """Yield the pieces as events. Only a complete stream has the usage and the end mark."""
    tokens = 0
    async with aclosing(pieces):
        try:
            async for piece in pieces:
                tokens += piece.tokens
                data: dict[str, object] = {
                    "text": piece.text,
                    "finish_reason": piece.finish_reason,
                }
                if piece.finish_reason is not None:
                    data["usage"] = _usage(prompt.tokens, tokens)
                yield event(data)
        except EngineUnavailable as failure:
            yield event(error_body(str(failure), 503))
            return
    yield STREAM_END


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
