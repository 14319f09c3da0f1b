"""Treats the requested length of an answer as a limit, which the context may lower.

Clients send the maximum length that they accept, whatever the model's context is. vLLM lowers this
number to the room that the prompt leaves, and the answer ends with the finish reason `length`. But
vLLM refuses a number above the whole context, and leaves only one token for the answer to a prompt
that it truncates. It also tokenizes all of that prompt first, however long the text is. Meanwhile,
the texts of other requests wait.
"""

from typing import Any

from llmservice_server.compat import Vllm

_ROOM_SHARE = 4
"""Divisor of the context length. The quotient is the room that a truncated prompt leaves for an
answer of unknown length."""

_MAX_ROOM = 1024
"""Maximum room in tokens for an answer of unknown length. It estimates the length of a long one."""


def room_for_answer(context: int, max_tokens: int) -> int:
    """Return the number of tokens that a truncated prompt leaves for the answer.

    A `max_tokens` of 0 or of at least the whole context is ignored, because it states no usable
    length.
    """
    if 0 < max_tokens < context:
        return max_tokens
    return max(1, min(context // _ROOM_SHARE, _MAX_ROOM))


def why_no_room(prompt_tokens: int, context: int) -> str | None:
    """Return the message for the client; None if the context has room for an answer."""
    if prompt_tokens < context:
        return None
    return (
        f"the prompt has {prompt_tokens} tokens, which leaves no room for an answer in the model's "
        f"context of {context}; shorten the prompt"
    )


def cut_texts(vllm: Vllm) -> None:
    """Make vLLM shorten the text of a prompt before it tokenizes and truncates the prompt.

    The rest has as many characters as the text of a prompt may have without truncation, so its
    tokens fill the context. Call this function once per process.
    """
    prepare = vllm.TokenizeParams.apply_pre_tokenization

    def cut_and_prepare(lengths: Any, tokenizer: Any, prompt: Any) -> Any:
        context = lengths.max_total_tokens
        if None not in (context, tokenizer, lengths.truncate_prompt_tokens):
            most = context * tokenizer.max_chars_per_token
            text = prompt["prompt"]
            if len(text) > most:
                side = lengths.truncation_side or tokenizer.truncation_side
                prompt["prompt"] = text[-most:] if side == "left" else text[:most]
        return prepare(lengths, tokenizer, prompt)

    vllm.TokenizeParams.apply_pre_tokenization = cut_and_prepare


def cap_answers(vllm: Vllm) -> None:
    """Make vLLM lower the requested length of an answer instead of refusing the request.

    This function changes the class that contains the lengths of a request. All routes that generate
    text use this class. Call it once per process, and only for a model that generates text.
    """
    check = vllm.TokenizeParams.__post_init__
    check_prompt = vllm.TokenizeParams.apply_post_tokenization

    def cap_and_check(lengths: Any) -> None:
        context = lengths.max_total_tokens
        if context is not None:
            wanted, kept = lengths.max_output_tokens or 0, lengths.truncate_prompt_tokens
            # The class is frozen, so the field is set through `object`. With 0, vLLM's check
            # ignores the length of the answer, and the routes lower the number in the request.
            object.__setattr__(lengths, "max_output_tokens", 0)
            if kept is not None and (kept < 0 or kept == context):
                room = room_for_answer(context, wanted)
                object.__setattr__(lengths, "truncate_prompt_tokens", context - room)
        check(lengths)

    def check_room(lengths: Any, tokenizer: Any, prompt: Any) -> Any:
        checked = check_prompt(lengths, tokenizer, prompt)
        tokens = checked.get("prompt_token_ids")
        if tokens is None:
            tokens = checked.get("prompt_embeds", ())
        context = lengths.max_total_tokens
        # vLLM would report that max_tokens is 0, whatever the client sent.
        if context is not None and (reason := why_no_room(len(tokens), context)):
            raise vllm.VLLMValidationError(reason, parameter="input_tokens")
        return checked

    vllm.TokenizeParams.__post_init__ = cap_and_check
    vllm.TokenizeParams.apply_post_tokenization = check_room
