"""Sends one test request to the server before it is ready.

The test fails if the answer is empty, contains a number that is not finite, or does not match the
expected pattern.

The request passes through the gate and vLLM's application like the request of a client. A new
replica that fails the test never becomes ready, so the rollout stops.
"""

import array
import asyncio
import base64
import io
import json
import logging
import math
import wave
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import re2
from starlette.types import ASGIApp, Message, Scope

from llmservice_server.failures import Failure, smoke_test_failure
from llmservice_server.gate import OWN_REQUEST
from llmservice_server.settings import ServerSettings

logger = logging.getLogger(__name__)

_PROMPT = "The capital of France is"
_ANSWER_TOKENS = 32
_QUOTED = 500
"""Maximum length of a quotation in a message, in characters."""
_LONGEST_ANSWER_BYTES = 4 * 1024**2
"""Maximum length of an answer in bytes. The longest answers contain a vector for each token of a
prompt."""
_BOUNDARY = "llmservice-smoke-test"
_SAMPLES_PER_SECOND = 16_000


@dataclass(frozen=True)
class Answer:
    """Content of an answer with status 200."""

    text: str = ""
    """Text that the model generated; empty for other kinds of models."""
    numbers: list[float] = field(default_factory=list)
    """Log-probabilities of the tokens, or the vector. NaN represents a number that JSON cannot
    contain."""
    has_numbers: bool = True
    """Whether a correct answer contains numbers."""


@dataclass(frozen=True)
class Question:
    """One request to the server, and the way to read its answer."""

    path: str
    body: bytes
    read: Callable[[str], Answer]
    """Reads the body of an answer. Raises ValueError, KeyError, TypeError or IndexError for a body
    of another form."""
    content_type: str = "application/json"
    is_of_text: bool = False
    """Whether the answer is generated text, which can be compared with a pattern."""


def question_for(paths: Collection[str], prompt: str | None) -> Question | None:
    """Return the question for a model that serves these paths; None if there is no question."""
    wanted = prompt or _PROMPT
    if "/v1/completions" in paths:
        # In a stream, vLLM writes a number that is not finite as null. Without a stream, vLLM
        # fails.
        body = {
            "prompt": wanted,
            "max_tokens": _ANSWER_TOKENS,
            "temperature": 0,
            "logprobs": 0,
            "stream": True,
        }
        return Question("/v1/completions", _json(body), _read_completion, is_of_text=True)
    for path, key in (("/v1/embeddings", "embedding"), ("/pooling", "data")):
        if path in paths:
            # Only base64 can contain numbers that are not finite.
            body = {"input": wanted, "encoding_format": "base64"}
            return Question(path, _json(body), _vector_reader(key))
    if "/v1/audio/transcriptions" in paths:
        content_type = f"multipart/form-data; boundary={_BOUNDARY}"
        return Question("/v1/audio/transcriptions", _silence(), _read_transcript, content_type)
    return None


async def find_failure(
    app: ASGIApp, question: Question, settings: ServerSettings
) -> Failure | None:
    """Send the question, and return the failure of the model; None if there is no failure.

    The model may refuse the default request because that request does not suit the model. So a
    refusal is a failure only if the settings define the request or the expected answer.
    """
    pattern = settings.smoke_test_expect
    if pattern is not None and not question.is_of_text:
        return smoke_test_failure("The model generates no text that a pattern could match.")
    reply = _Reply()
    seconds = settings.smoke_test_timeout_seconds
    try:
        async with asyncio.timeout(seconds):
            await reply.receive_from(app, question)
    except TimeoutError:
        came = f" It began with {_quote(reply.text)}." if reply.text else ""
        return smoke_test_failure(f"The model has not answered within {seconds:g} seconds.{came}")
    is_default = settings.smoke_test_prompt is None and pattern is None
    if 400 <= reply.status < 500 and is_default:
        logger.warning("no smoke test: the model refused the request: %s", _quote(reply.text))
        return None
    return judge(question, reply.status, reply.text, pattern)


def judge(question: Question, status: int, body: str, pattern: str | None) -> Failure | None:
    """Return the failure that an answer shows; None for a right answer."""
    if status != 200:
        return smoke_test_failure(f"The server answered with status {status}: {_quote(body)}.")
    try:
        answer = question.read(body)
    except (ValueError, KeyError, TypeError, IndexError):
        return smoke_test_failure(f"The answer cannot be read: {_quote(body)}.")
    said = f" It answered {_quote(answer.text)}." if question.is_of_text else ""
    if answer.has_numbers and not answer.numbers:
        return smoke_test_failure("The model answered nothing.")
    broken = sum(not math.isfinite(each) for each in answer.numbers)
    if broken:
        kind = "log-probabilities" if question.is_of_text else "numbers"
        return smoke_test_failure(
            f"{broken} of {len(answer.numbers)} {kind} in the model's answer are not finite, "
            f"such as NaN.{said}"
        )
    if pattern is not None and re2.search(pattern, answer.text) is None:
        wanted = _quote(pattern)
        return smoke_test_failure(f"The model's answer does not match the pattern {wanted}.{said}")
    return None


class _Reply:
    """The part of the application's response that has arrived."""

    def __init__(self) -> None:
        self.status = 0
        self._body = bytearray()

    @property
    def text(self) -> str:
        return self._body.decode(errors="replace")

    async def receive_from(self, app: ASGIApp, question: Question) -> None:
        """Send the question to the application, and wait until its response is complete."""
        messages = iter([{"type": "http.request", "body": question.body}])

        async def receive() -> Message:
            if (message := next(messages, None)) is not None:
                return message
            await asyncio.Event().wait()  # the client does not disconnect
            raise AssertionError("unreachable")

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
            else:
                room = _LONGEST_ANSWER_BYTES - len(self._body)
                self._body += message.get("body", b"")[:room]

        await app(_scope(question), receive, send)


def _scope(question: Question) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": question.path,
        "raw_path": question.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", question.content_type.encode()),
            (b"content-length", str(len(question.body)).encode()),
        ],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        OWN_REQUEST: True,
    }


def _read_completion(body: str) -> Answer:
    text, numbers = "", list[float]()
    for line in body.splitlines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            text += choice["text"]
            found = (choice.get("logprobs") or {}).get("token_logprobs") or ()
            numbers += [math.nan if each is None else float(each) for each in found]
    return Answer(text, numbers)


def _vector_reader(key: str) -> Callable[[str], Answer]:
    def read(body: str) -> Answer:
        encoded = json.loads(body)["data"][0][key]
        return Answer(numbers=array.array("f", base64.b64decode(encoded)).tolist())

    return read


def _read_transcript(body: str) -> Answer:
    return Answer(str(json.loads(body)["text"]), has_numbers=False)


def _silence() -> bytes:
    """Return a form with a recording of one second of silence."""
    recording = io.BytesIO()
    with wave.open(recording, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_SAMPLES_PER_SECOND)
        file.writeframes(bytes(2 * _SAMPLES_PER_SECOND))
    head = (
        f"--{_BOUNDARY}\r\n"
        'Content-Disposition: form-data; name="file"; filename="silence.wav"\r\n'
        "Content-Type: audio/wav\r\n\r\n"
    )
    return head.encode() + recording.getvalue() + f"\r\n--{_BOUNDARY}--\r\n".encode()


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


def _quote(text: str) -> str:
    shown = text if len(text) <= _QUOTED else f"{text[:_QUOTED]} ..."
    return json.dumps(shown, ensure_ascii=False)
