"""Client of the OpenAI API of a service. It streams answers and measures their latency."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

import aiohttp

from llmservice_operator.errors import OperatorError
from llmservice_operator.kubectl_plugin.endpoint import Endpoint

CONNECT_SECONDS: Final = 10.0
LONGEST_LINE: Final = 2**20
"""Longest part of an answer that is read, in bytes."""


class RequestFailed(OperatorError):
    """The API refused a request, or did not answer it."""


@dataclass(frozen=True)
class Part:
    """A part of a streamed answer."""

    text: str = ""
    reasoning: str = ""
    """Text that the model writes before its answer."""
    prompt_tokens: int | None = None
    """Length of the prompt; the last part has it."""
    answer_tokens: int | None = None
    """Length of the whole answer; the last part has it."""


@dataclass
class Timing:
    """Times of one streamed answer, in seconds since the request was sent."""

    sent: float = 0.0
    first: float | None = None
    """Time of the first token; None if there is none."""
    last: float = 0.0
    tokens: int = 0
    prompt_tokens: int = 0

    def note(self, part: Part) -> None:
        """Take the times and the lengths of a part that has just arrived."""
        if part.text or part.reasoning:
            self.last = time.monotonic() - self.sent
            self.first = self.last if self.first is None else self.first
        self.tokens = self.tokens if part.answer_tokens is None else part.answer_tokens
        self.prompt_tokens = part.prompt_tokens or self.prompt_tokens

    @property
    def mean_itl(self) -> float | None:
        """Mean time between two tokens; None for fewer than two tokens."""
        if self.first is None or self.tokens < 2:
            return None
        return (self.last - self.first) / (self.tokens - 1)


class ApiClient:
    """Connections to one API. Use it as an asynchronous context manager."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __aenter__(self) -> Self:
        key = self._endpoint.api_key
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_SECONDS, sock_read=self._endpoint.timeout
            ),
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            connector=aiohttp.TCPConnector(limit=0, ssl=self._endpoint.tls or True),
            read_bufsize=LONGEST_LINE,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def model(self) -> str:
        """Return the model to ask. Raises RequestFailed."""
        if self._endpoint.model is not None:
            return self._endpoint.model
        async with self._send("GET", "/v1/models") as answer:
            try:
                return str(json.loads(await answer.read())["data"][0]["id"])
            except (ValueError, LookupError, TypeError) as error:
                raise RequestFailed("the API lists no models: name one with --model") from error

    async def stream(
        self, path: str, body: Mapping[str, Any], timing: Timing
    ) -> AsyncIterator[Part]:
        """Send a request and yield the parts of its streamed answer. Raises RequestFailed."""
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        timing.sent = time.monotonic()
        async with self._send("POST", path, asked) as answer:
            async for line in answer.content:
                data = line.decode(errors="replace").removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                if data:
                    part = _part(data)
                    timing.note(part)
                    yield part
        raise RequestFailed("the answer ended early: the replica has ended, so ask again")

    @asynccontextmanager
    async def _send(
        self, method: str, path: str, body: Any = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        endpoint = self._endpoint
        try:
            async with self._session.request(
                method,
                f"{endpoint.url}{path}",
                json=body,
                server_hostname=endpoint.host if endpoint.url.startswith("https:") else None,
                allow_redirects=False,
            ) as answer:
                if answer.status != 200:
                    raise RequestFailed(_refusal(answer.status, await answer.read()))
                yield answer
        except ssl.SSLError as error:
            raise RequestFailed(_untrusted(error)) from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise RequestFailed(_untrusted(error)) from error
        except TimeoutError as error:
            raise RequestFailed(
                f"no answer within {endpoint.timeout:g} s: raise --timeout, or see `kubectl llm "
                "top` for the load"
            ) from error
        except (aiohttp.ClientError, asyncio.IncompleteReadError, ValueError) as error:
            raise RequestFailed(
                f"the connection to the service failed, so ask again: {error or type(error)}"
            ) from error


def _untrusted(error: Exception) -> str:
    return f"the certificate is not trusted: pass its authority with --ca-file: {error}"


def _part(data: str) -> Part:
    """Return the part in the JSON of an event. Raises RequestFailed for an error of the server."""
    try:
        event = json.loads(data)
        if "error" in event:
            raise RequestFailed(f"the service ended the answer: {_message(event)}")
        usage = event.get("usage") or {}
        counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not event.get("choices"):
            return Part("", "", *counts)
        choice = event["choices"][0]
        delta = choice.get("delta", {})
        reasoning = delta.get("reasoning") or delta.get("reasoning_content") or ""
        return Part(delta.get("content") or choice.get("text") or "", reasoning, *counts)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RequestFailed(f"the answer is not one of the OpenAI API: {data[:200]}") from error


def _refusal(status: int, body: bytes) -> str:
    text = body[:2000].decode(errors="replace")
    try:
        text = _message(json.loads(text))
    except (ValueError, LookupError, TypeError):
        text = text.strip() or "no message"
    if status in (401, 403):
        return f"the service refuses the API key: pass another one with --api-key-file: {text}"
    return f"the service answers {status}: {text}"


def _message(answer: Any) -> str:
    """Return the message of an error. Raises LookupError or TypeError if there is none."""
    error = answer.get("error", answer)
    return str(error["message"] if isinstance(error, dict) else error)
