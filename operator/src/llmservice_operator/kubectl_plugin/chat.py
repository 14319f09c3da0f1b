"""`kubectl llm chat`: asks a service, and prints the answer while it arrives."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from rich.text import Text

from llmservice_operator.errors import OperatorError
from llmservice_operator.kubectl_plugin.api_client import ApiClient, RequestFailed, Timing
from llmservice_operator.kubectl_plugin.endpoint import Endpoint, EndpointOptions, open_endpoint
from llmservice_operator.kubectl_plugin.kubectl import Kubectl
from llmservice_operator.kubectl_plugin.objects import read_service
from llmservice_operator.kubectl_plugin.screen import console_for, printable, show_json

MOST_MESSAGES: Final = 100
"""Largest number of messages of a conversation that are sent again with each question."""

Message = dict[str, str]


class NoQuestion(OperatorError):
    """The user asks nothing."""


@dataclass(frozen=True)
class ChatOptions:
    """Arguments of the command line about the conversation."""

    question: str | None = None
    """The only question; None reads questions from the standard input."""
    system: str | None = None
    """System prompt; None sends none."""
    max_tokens: int | None = None
    """Maximum length of an answer in tokens; None means that the context of the model limits it."""
    temperature: float | None = None
    """Sampling temperature; None means the default of the model."""
    as_json: bool = False


@dataclass(frozen=True)
class Reply:
    """An answer and its measurements."""

    model: str
    answer: str
    prompt_tokens: int
    answer_tokens: int
    ttft_seconds: float | None
    itl_seconds: float | None
    seconds: float


def chat(kubectl: Kubectl, name: str, where: EndpointOptions, options: ChatOptions) -> None:
    """Ask one question, or hold a conversation if the standard input is a terminal.

    Raises NoQuestion, RequestFailed, Unreachable and KubectlFailed.
    """
    service = read_service(kubectl, name)
    is_talk = options.question is None and sys.stdin.isatty()
    question = options.question
    if question is None and not is_talk:
        question = sys.stdin.read().strip()
    if question == "":
        raise NoQuestion("there is no question: pass one as an argument or on standard input")
    messages: list[Message] = []
    if options.system is not None:
        messages.append({"role": "system", "content": options.system})
    with open_endpoint(kubectl, service, where) as endpoint:
        if question is not None:
            _turn(endpoint, messages, question, options)
        else:
            _talk(endpoint, messages, options)


def _talk(endpoint: Endpoint, messages: list[Message], options: ChatOptions) -> None:
    """Ask until the user ends the input."""
    with suppress(ImportError):  # Windows has no such module
        import readline  # noqa: F401  keys such as arrows then edit the question

    first = len(messages)
    print("Ctrl-D ends the conversation, and /new begins another one.", file=sys.stderr)
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            print(file=sys.stderr)
            return
        if question == "/new":
            del messages[first:]
        elif question:
            try:
                _turn(endpoint, messages, question, options)
            except RequestFailed as error:
                print(f"kubectl llm: {printable(str(error))}", file=sys.stderr)
                del messages[-1]
            del messages[first : max(first, len(messages) - MOST_MESSAGES)]


def _turn(endpoint: Endpoint, messages: list[Message], question: str, options: ChatOptions) -> None:
    """Ask a question, and add it and its answer to the messages. Raises RequestFailed."""
    messages.append({"role": "user", "content": question})
    reply = asyncio.run(ask(endpoint, messages, options))
    messages.append({"role": "assistant", "content": reply.answer})
    if options.as_json:
        show_json(reply)
    elif sys.stderr.isatty():
        console_for(sys.stderr).print(Text(_summary(reply), style="dim"))


async def ask(endpoint: Endpoint, messages: list[Message], options: ChatOptions) -> Reply:
    timing, answer, has_reasoned = Timing(), [], False
    async with ApiClient(endpoint) as client:
        model = await client.model()
        limits = {"max_tokens": options.max_tokens, "temperature": options.temperature}
        chosen = {name: value for name, value in limits.items() if value is not None}
        body = {"model": model, "messages": messages, **chosen}
        async for part in client.stream("/v1/chat/completions", body, timing):
            answer.append(part.text)
            if not options.as_json:
                if part.reasoning:
                    has_reasoned = True
                    sys.stderr.write(printable(part.reasoning))
                    sys.stderr.flush()
                elif part.text and has_reasoned:
                    has_reasoned = False
                    sys.stderr.write("\n\n")
                sys.stdout.write(printable(part.text))
                sys.stdout.flush()
    if not options.as_json:
        sys.stdout.write("\n")
    return Reply(
        model,
        "".join(answer),
        timing.prompt_tokens,
        timing.tokens,
        timing.first,
        timing.mean_itl,
        timing.last,
    )


def _summary(reply: Reply) -> str:
    parts = [f"{reply.model}: {reply.answer_tokens} tokens in {reply.seconds:.1f} s"]
    if reply.ttft_seconds is not None:
        parts.append(f"TTFT {1000 * reply.ttft_seconds:.0f} ms")
    if reply.itl_seconds is not None:
        parts.append(f"ITL {1000 * reply.itl_seconds:.1f} ms")
    return ", ".join(parts)
