"""Writes the chunks of streams byte for byte as vLLM does, but without its pydantic models.

For every token, vLLM builds and validates two or three pydantic models of values that it has
created itself. This takes an eighth of the CPU time of a streamed token. A stand-in replaces such a
model and writes the usual values directly. For other values, it builds vLLM's model.
"""

import logging
import sys
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Any, ClassVar

logger = logging.getLogger(__name__)

_USUAL = {"exclude_unset": True}
"""Options that vLLM uses to write every chunk of a stream except the last one."""


class StandIn:
    """Values of a chunk, not validated, in place of one of vLLM's models."""

    stands_for: ClassVar[Any]
    """vLLM's model that the stand-in replaces."""
    names: ClassVar[tuple[str, ...]]
    """Names of the usual values, in the order in which vLLM passes them."""

    def __init__(self, **values: Any) -> None:
        self.__dict__ = values

    def as_model(self) -> Any:
        """Return vLLM's model with the values."""
        return self.stands_for(**{name: _as_model(value) for name, value in vars(self).items()})

    def model_dump_json(self, **options: Any) -> str:
        """Return the JSON that vLLM's model returns."""
        usual = self.usual() if options == _USUAL else None
        return self.as_model().model_dump_json(**options) if usual is None else str(usual)

    def usual(self) -> str | None:
        """Return the JSON if all values are usual; None otherwise."""
        return self.write(*vars(self).values()) if tuple(vars(self)) == self.names else None

    def write(self, *values: Any) -> str | None:
        """Return the JSON of the named values; None if one of them is unusual."""
        raise NotImplementedError


class _CompletionChoice(StandIn):
    names = (
        *("index", "text", "logprobs", "finish_reason", "stop_reason"),
        *("prompt_token_ids", "token_ids"),
    )

    def write(
        self, index: int, text: str, logprobs: Any, finish: Any, stop: Any, prompt: Any, ids: Any
    ) -> str | None:
        if not (logprobs is prompt is ids is None):
            return None
        return (
            f'{{"index":{index},"text":{encode_basestring(text)},"logprobs":null,'
            f'"finish_reason":{_scalar(finish)},"stop_reason":{_scalar(stop)},'
            '"prompt_token_ids":null,"token_ids":null}'
        )


class _CompletionChunk(StandIn):
    names = ("id", "object", "created", "model", "choices")

    def write(self, id: str, kind: str, created: int, model: str, choices: Any) -> str | None:
        return _chunk(id, kind, created, model, choices)


class _Delta(StandIn):
    role: str | None = None
    reasoning: str | None = None
    tool_calls: ClassVar = ()
    names = ("content",)

    def write(self, content: str | None) -> str:
        return f'{{"content":{_scalar(content)}}}'


class _ChatChoice(StandIn):
    names = ("index", "delta", "logprobs", "finish_reason", "token_ids")
    delta: Any

    @property
    def tool_calls(self) -> Any:
        """Tool calls of the delta. vLLM's filter of tool calls treats a stand-in as a delta."""
        return self.delta.tool_calls

    @tool_calls.setter
    def tool_calls(self, calls: Any) -> None:
        self.delta.tool_calls = calls

    def write(self, index: int, delta: Any, logprobs: Any, finish: Any, ids: Any) -> str | None:
        if not (logprobs is ids is None):
            return None
        # A parser of tool calls or reasoning returns vLLM's model.
        is_plain = isinstance(delta, _Delta)
        written = delta.usual() if is_plain else delta.model_dump_json(exclude_unset=True)
        if written is None:
            return None
        return (
            f'{{"index":{index},"delta":{written},"logprobs":null,'
            f'"finish_reason":{_scalar(finish)},"token_ids":null}}'
        )


class _ChatChunk(StandIn):
    names = ("id", "object", "created", "choices", "model")

    def write(self, id: str, kind: str, created: int, choices: Any, model: str) -> str | None:
        return _chunk(id, kind, created, model, choices)


def _chunk(id: str, kind: str, created: int, model: str, choices: Any) -> str | None:
    written = choices[0].usual() if len(choices) == 1 else None
    if written is None:
        return None
    return (
        f'{{"id":{encode_basestring(id)},"object":{encode_basestring(kind)},'
        f'"created":{created},"model":{encode_basestring(model)},"choices":[{written}]}}'
    )


def _scalar(value: str | int | None) -> str:
    if value is None:
        return "null"
    return encode_basestring(value) if isinstance(value, str) else str(value)


def _as_model(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_model(each) for each in value]
    return value.as_model() if isinstance(value, StandIn) else value


def _completion(choice: Any, chunk: Any) -> Any:
    named = dict(zip(_CompletionChoice.names, (0, _SAMPLE, *5 * [None]), strict=True))
    values = ("cmpl-1", "text_completion", 1, "a", [choice(**named)])
    return chunk(**dict(zip(_CompletionChunk.names, values, strict=True)))


def _chat(delta: Any, choice: Any, chunk: Any) -> Any:
    said = delta(content=_SAMPLE)
    named = dict(zip(_ChatChoice.names, (0, said, *3 * [None]), strict=True))
    values = ("chatcmpl-1", "chat.completion.chunk", 1, [choice(**named)], "a")
    return chunk(**dict(zip(_ChatChunk.names, values, strict=True)))


_SAMPLE = "".join(map(chr, range(0x180))) + "\u2028\ufffd\U0001f600"

_STAND_INS: tuple[tuple[Callable[..., Any], dict[str, type[StandIn]]], ...] = (
    (
        _completion,
        {
            "CompletionResponseStreamChoice": _CompletionChoice,
            "CompletionStreamResponse": _CompletionChunk,
        },
    ),
    (
        _chat,
        {
            "DeltaMessage": _Delta,
            "ChatCompletionResponseStreamChoice": _ChatChoice,
            "ChatCompletionStreamResponse": _ChatChunk,
        },
    ),
)
"""For each route: a function that makes a chunk from given models, and the models' stand-ins."""


def write_chunks_directly(*servings: Any) -> None:
    """Replace the chunk models in the modules of vLLM's completion and chat handlers.

    A module keeps its models if the stand-ins would write other bytes, which may happen with
    another vLLM version.
    """
    for serving, (sample, stand_ins) in zip(servings, _STAND_INS, strict=True):
        module = sys.modules[type(serving).__module__]
        models = {name: getattr(module, name, None) for name in stand_ins}
        made = {
            name: type(name, (stand_in,), {"stands_for": models[name]})
            for name, stand_in in stand_ins.items()
        }
        try:
            is_same = sample(*made.values()).usual() == sample(*models.values()).model_dump_json(
                exclude_unset=True
            )
        except Exception:
            is_same = False
        if is_same:
            vars(module).update(made)
        else:
            logger.warning("chunks of %s are written by vLLM's models", module.__name__)
