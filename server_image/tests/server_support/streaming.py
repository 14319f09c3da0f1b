"""Makes chunks of streams. vLLM's models and their replacements must write them identically."""

import itertools
from collections.abc import Iterator
from typing import Any

from llmservice_server.stream_chunks import write_chunks_directly

TEXTS = ("", " word", "".join(map(chr, range(0x300))), "\u2028\ufeff\uffff\U0001f600")
_COMPLETIONS = ("CompletionResponseStreamChoice", "CompletionStreamResponse")
_CHATS = ("DeltaMessage", "ChatCompletionResponseStreamChoice", "ChatCompletionStreamResponse")


def written(completions: Any, chats: Any) -> Iterator[str]:
    """Yield the JSON of many chunks, written by the models that the two modules now contain."""
    ends = ((None, None), ("length", None), ("stop", "\n\n"), ("stop", 7))
    for text, (finish, stop), ids in itertools.product(TEXTS, ends, (None, [1, 2])):
        choice = completions.CompletionResponseStreamChoice(
            index=3,
            text=text,
            logprobs=None,
            finish_reason=finish,
            stop_reason=stop,
            prompt_token_ids=ids,
            token_ids=ids,
        )
        yield from _in_chunks(completions.CompletionStreamResponse, "text_completion", choice)
        # vLLM passes the stop reason only with the last token.
        last = {} if finish is None else {"stop_reason": stop}
        for said in ({"content": text}, {"role": "assistant", "content": text}, {}):
            choice = chats.ChatCompletionResponseStreamChoice(
                index=3,
                delta=chats.DeltaMessage(**said),
                logprobs=None,
                finish_reason=finish,
                token_ids=ids,
                **last,
            )
            yield from _in_chunks(
                chats.ChatCompletionStreamResponse, "chat.completion.chunk", choice
            )


def _in_chunks(model: Any, kind: str, choice: Any) -> Iterator[str]:
    same = {"id": "x-1", "object": kind, "created": 1}
    # The two routes pass these values in different orders.
    values = {"model": "a/b", "choices": [choice]}
    if kind != "text_completion":
        values = dict(reversed(values.items()))
    yield model(**same, **values).model_dump_json(exclude_unset=True)
    yield model(**same, **values).model_dump_json(exclude_unset=True, exclude_none=True)
    stamped = model(**same, **values)
    stamped.system_fingerprint = "f"
    yield stamped.model_dump_json(exclude_unset=True)
    yield model(**same, **{**values, "choices": []}).model_dump_json(exclude_unset=True)


def replaced(completions: Any, chats: Any) -> dict[str, bool]:
    """Replace the models in two modules; return name -> whether this model was replaced."""
    before = _named(completions, chats)

    def serving(module: Any) -> Any:
        return type("Serving", (), {"__module__": module.__name__})()

    write_chunks_directly(serving(completions), serving(chats))
    after = _named(completions, chats)
    return {name: after[name] is not before[name] for name in before}


def _named(completions: Any, chats: Any) -> dict[str, Any]:
    return {name: getattr(completions, name) for name in _COMPLETIONS} | {
        name: getattr(chats, name) for name in _CHATS
    }
