"""Calls of the official `openai` client, to which all compatible servers must respond alike."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import openai
from openai import OpenAI
from openai.types.chat import ChatCompletionFunctionToolParam

MODEL = "smollm2"
QUESTION = "What is the capital of France?"
WEATHER_QUESTION = "How is the weather in Paris?"
WEATHER: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
"""A tool that a request can force. A model this small calls a tool only if the request forces the
call. Without `strict`, the arguments never end."""
SCHEMA = {
    "type": "object",
    "properties": {"capital": {"type": "string", "maxLength": 12}},
    "required": ["capital"],
    "additionalProperties": False,
}


@dataclass
class Answered:
    """The parts of an answer that are compared between two servers."""

    facts: object
    """Values that must be equal."""
    tokens: list[str] = field(default_factory=list)
    """Tokens that must be equal up to the first position with a small gap."""
    gaps: list[float] = field(default_factory=list)
    """Difference between the log-probabilities of each token and of the second most probable token
    at its position."""


Question = Callable[[OpenAI], Answered]


def models(client: OpenAI) -> Answered:
    return Answered([model.id for model in client.models.list()])


def chat(client: OpenAI) -> Answered:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=8,
        logprobs=True,
        top_logprobs=2,
    )
    choice = answer.choices[0]
    assert choice.message.content is not None
    assert "Paris" in choice.message.content
    assert answer.usage is not None
    assert choice.logprobs is not None
    chosen = choice.logprobs.content or []
    return Answered(
        [choice.finish_reason, answer.usage.prompt_tokens, answer.usage.completion_tokens],
        [token.token for token in chosen],
        [token.top_logprobs[0].logprob - token.top_logprobs[1].logprob for token in chosen],
    )


def chat_stream(client: OpenAI) -> Answered:
    reasons, tokens, gaps, usage = [], [], [], None
    with client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=8,
        logprobs=True,
        top_logprobs=2,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                reasons.append(choice.finish_reason)
                for token in (choice.logprobs.content if choice.logprobs else None) or []:
                    tokens.append(token.token)
                    first, second = token.top_logprobs
                    gaps.append(first.logprob - second.logprob)
    assert usage is not None
    assert usage.completion_tokens == len(tokens)
    return Answered([reasons[-1], usage.prompt_tokens], tokens, gaps)


def tools(client: OpenAI) -> Answered:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": WEATHER_QUESTION}],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        temperature=0,
        max_tokens=64,
        logprobs=True,
        top_logprobs=2,
    )
    choice = answer.choices[0]
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.id
    assert set(json.loads(call.function.arguments)) == {"city"}
    assert not choice.message.content
    assert choice.logprobs is not None
    chosen = choice.logprobs.content or []
    return Answered(
        [choice.finish_reason, call.function.name],
        [token.token for token in chosen],
        [token.top_logprobs[0].logprob - token.top_logprobs[1].logprob for token in chosen],
    )


def tools_stream(client: OpenAI) -> Answered:
    reason, names, arguments = None, [], []
    with client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": WEATHER_QUESTION}],
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=64,
        stream=True,
    ) as stream:
        for chunk in stream:
            (choice,) = chunk.choices
            reason = choice.finish_reason or reason
            assert not choice.delta.content
            for call in choice.delta.tool_calls or []:
                assert call.index == 0
                assert call.function is not None
                names += [call.function.name] if call.function.name else []
                arguments += [call.function.arguments] if call.function.arguments else []
    assert len(arguments) > 1
    assert set(json.loads("".join(arguments))) == {"city"}
    return Answered([reason, names], ["".join(arguments)])


def json_schema(client: OpenAI) -> Answered:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "capital", "schema": SCHEMA, "strict": True},
        },
        temperature=0,
        max_tokens=24,
        logprobs=True,
        top_logprobs=2,
    )
    choice = answer.choices[0]
    assert set(json.loads(choice.message.content or "")) == {"capital"}
    assert choice.logprobs is not None
    chosen = choice.logprobs.content or []
    return Answered(
        [choice.finish_reason],
        [token.token for token in chosen],
        [token.top_logprobs[0].logprob - token.top_logprobs[1].logprob for token in chosen],
    )


def completions(client: OpenAI) -> Answered:
    answer = client.completions.create(
        model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=8, logprobs=2
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    gaps = []
    for alternatives in choice.logprobs.top_logprobs or []:
        first, second = sorted(alternatives.values(), reverse=True)[:2]
        gaps.append(first - second)
    return Answered([choice.finish_reason], choice.logprobs.tokens or [], gaps)


def completions_stream(client: OpenAI) -> Answered:
    with client.completions.create(
        model=MODEL,
        prompt=["The capital of France is"],
        temperature=0,
        max_tokens=8,
        logprobs=2,
        stream=True,
    ) as stream:
        tokens, gaps, reason = [], [], None
        for chunk in stream:
            choice = chunk.choices[0]
            reason = choice.finish_reason or reason
            if choice.logprobs is not None:
                tokens += choice.logprobs.tokens or []
                for alternatives in choice.logprobs.top_logprobs or []:
                    first, second = sorted(alternatives.values(), reverse=True)[:2]
                    gaps.append(first - second)
    return Answered([reason], tokens, gaps)


def responses(client: OpenAI) -> Answered:
    answer = client.responses.create(
        model=MODEL, input=QUESTION, temperature=0, max_output_tokens=8, store=False
    )
    return Answered([answer.status], [answer.output_text])


def embeddings(client: OpenAI) -> Answered:
    """Request embeddings, which this model does not support."""
    try:
        client.embeddings.create(model=MODEL, input="Paris")
    except openai.APIStatusError as error:
        return Answered([error.status_code, bool(error.message)])
    raise AssertionError("SmolLM2 has no embeddings")


def unknown_model(client: OpenAI) -> Answered:
    try:
        client.completions.create(model="other", prompt="Hi")
    except openai.NotFoundError as error:
        return Answered(error.code)
    raise AssertionError("there is no such model")


def wrong_value(client: OpenAI) -> Answered:
    try:
        client.completions.create(model=MODEL, prompt="Hi", temperature=-1)
    except openai.BadRequestError as error:
        return Answered([error.code, error.param])
    raise AssertionError("a temperature is not negative")


SUITE: tuple[Question, ...] = (
    models,
    chat,
    chat_stream,
    tools,
    tools_stream,
    json_schema,
    completions,
    completions_stream,
    responses,
    embeddings,
    unknown_model,
    wrong_value,
)


def difference(ours: Answered, theirs: Answered) -> float | None:
    """Return the gap at the first differing token of two answers; None if all tokens are equal.

    Raises AssertionError if the answers differ in more than their tokens.
    """
    assert ours.facts == theirs.facts
    for number, (mine, other) in enumerate(zip(ours.tokens, theirs.tokens, strict=False)):
        if mine != other:
            assert ours.gaps, (ours.tokens, theirs.tokens)
            return ours.gaps[number]
    assert len(ours.tokens) == len(theirs.tokens)
    return None
