"""POST /generate: the smallest way to ask the model, plain or as server-sent events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse

from llmservice_server.context_limit import why_it_does_not_fit
from llmservice_server.errors import EngineUnavailable, RequestRefused, error_body
from llmservice_server.streaming import STREAM_END, event, prefetched, until_disconnect

_LARGEST_SEED = 2**63 - 1
"""Seeds travel to the engine as signed 64-bit integers."""

_CLIENT_LEFT = 499
"""What proxies log for it; nobody receives it, but it is counted."""

StopText = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


class GenerateRequest(BaseModel):
    """What a client may ask. Unknown fields are refused: a misspelt one must not be ignored."""

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
    """A prompt as the engine takes it."""

    tokens: int
    """Its length."""

    engine_input: Any
    """The engine's own form; nobody else looks into it."""


@dataclass(frozen=True)
class Piece:
    """Some more generated text: all of it when nothing is streamed."""

    text: str
    tokens: int
    finish_reason: str | None
    """Set on the last piece."""


class TextEngine(Protocol):
    """What /generate needs from an engine."""

    @property
    def max_model_len(self) -> int:
        """Longest prompt and answer together, in tokens."""

    async def tokenize(self, prompt: str) -> TokenizedPrompt:
        """Return the prompt in tokens."""

    def generate(
        self, prompt: TokenizedPrompt, wanted: GenerateRequest
    ) -> AsyncGenerator[Piece, None]:
        """Generate; closing the generator or cancelling its task aborts in the engine.

        Raises EngineUnavailable when the engine dies on the way.
        """


def create_generate_router(engine: TextEngine) -> APIRouter:
    """Return the route, bound to an engine."""
    router = APIRouter(tags=["generate"])

    @router.post("/generate", summary="Generate text from a prompt")
    async def generate(wanted: GenerateRequest, request: Request) -> Response:
        prompt = await engine.tokenize(wanted.prompt)
        _check_fits(prompt, wanted, engine.max_model_len)
        pieces = engine.generate(prompt, wanted)
        try:
            if wanted.stream:
                begun = await until_disconnect(request, prefetched(pieces))
                return StreamingResponse(_events(begun, prompt), media_type="text/event-stream")
            return JSONResponse(await until_disconnect(request, _whole(pieces, prompt)))
        except ClientDisconnect:
            return Response(status_code=_CLIENT_LEFT)

    return router


def _check_fits(prompt: TokenizedPrompt, wanted: GenerateRequest, max_model_len: int) -> None:
    """Refuse what the engine would cut silently at the end of its context."""
    if reason := why_it_does_not_fit(prompt.tokens, wanted.max_tokens, max_model_len):
        is_prompt_alone_too_long = prompt.tokens >= max_model_len
        raise RequestRefused(reason, "prompt" if is_prompt_alone_too_long else "max_tokens")


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
    """Frame the pieces; only a stream that reached its end carries usage and the end mark."""
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
