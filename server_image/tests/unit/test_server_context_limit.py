"""Tests that the lengths of a request are adapted to the length of the context."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from llmservice_server.context_limit import (
    cap_answers,
    cut_texts,
    room_for_answer,
    why_no_room,
)

CONTEXT = 512


class Invalid(Exception):
    def __init__(self, message: str, parameter: str) -> None:
        super().__init__(message)
        self.parameter = parameter


def lengths_of_vllm(*, subtracts: bool) -> Any:
    """Return a class for the lengths of a request, like that of vLLM.

    With `subtracts`, the length of the answer is subtracted from the maximum
    length of the prompt, as in older versions.
    """

    @dataclass(frozen=True)
    class Lengths:
        max_total_tokens: int | None
        max_output_tokens: int | None = 0
        truncate_prompt_tokens: int | None = None

        def __post_init__(self) -> None:
            if self.max_total_tokens is None:
                return
            if (self.max_output_tokens or 0) > self.max_total_tokens:
                raise Invalid("fewer output tokens", "max_tokens")
            if (self.truncate_prompt_tokens or 0) > self.most_of_the_prompt():
                raise Invalid("a smaller truncation size", "truncate_prompt_tokens")

        def most_of_the_prompt(self) -> int:
            assert self.max_total_tokens is not None
            answer = self.max_output_tokens or 0
            return self.max_total_tokens - (answer if subtracts else 0)

        def apply_post_tokenization(self, tokenizer: object, prompt: dict[str, Any]) -> Any:
            kept = self.truncate_prompt_tokens
            if kept is not None:
                assert kept >= 0, "vLLM would choose a length of its own"
                prompt = {name: tokens[:kept] for name, tokens in prompt.items()}
            if self.max_total_tokens is not None and any(
                len(tokens) > self.most_of_the_prompt() for tokens in prompt.values()
            ):
                raise Invalid("too long", "input_tokens")
            return prompt

    cap_answers(SimpleNamespace(TokenizeParams=Lengths, VLLMValidationError=Invalid))  # type: ignore[arg-type]
    return Lengths


@pytest.fixture(params=[True, False], ids=["subtracts", "keeps"])
def lengths(request: pytest.FixtureRequest) -> Any:
    return lengths_of_vllm(subtracts=request.param)


def tokens(number: int) -> dict[str, list[int]]:
    return {"prompt_token_ids": [5] * number}


@pytest.mark.parametrize("most", [None, 0, 1, CONTEXT - 1, CONTEXT, 2**40])
def test_any_length_of_an_answer_is_accepted_beside_any_prompt_that_fits(
    lengths: Any, most: int | None
) -> None:
    prompt = tokens(CONTEXT - 1)
    assert lengths(CONTEXT, most).apply_post_tokenization(None, prompt) == prompt


@pytest.mark.parametrize("field", ["prompt_token_ids", "prompt_embeds"])
def test_a_prompt_that_fills_the_context_is_refused_for_what_it_is(
    lengths: Any, field: str
) -> None:
    with pytest.raises(Invalid, match="no room for an answer in the model's context of 512") as no:
        lengths(CONTEXT, 5).apply_post_tokenization(None, {field: [5] * CONTEXT})
    assert no.value.parameter == "input_tokens"


@pytest.mark.parametrize("number", [-1, CONTEXT])
@pytest.mark.parametrize(
    ("most", "kept"), [(0, 384), (None, 384), (50, 462), (511, 1), (CONTEXT, 384), (2**40, 384)]
)
def test_a_truncated_prompt_leaves_room(
    lengths: Any, number: int, most: int | None, kept: int
) -> None:
    wanted = lengths(CONTEXT, most, number)
    assert wanted.apply_post_tokenization(None, tokens(9999)) == tokens(kept)


def test_another_number_of_tokens_to_keep_is_left_alone(lengths: Any) -> None:
    wanted = lengths(CONTEXT, 100, 500)
    assert wanted.apply_post_tokenization(None, tokens(9999)) == tokens(500)
    with pytest.raises(Invalid, match="a smaller truncation size"):
        lengths(CONTEXT, 0, CONTEXT + 1)


def test_lengths_without_a_context_are_left_alone(lengths: Any) -> None:
    wanted = lengths(None, 10**6, 7)
    assert (wanted.max_output_tokens, wanted.truncate_prompt_tokens) == (10**6, 7)
    assert wanted.apply_post_tokenization(None, tokens(9999)) == tokens(7)


def test_the_room_for_an_answer_of_unknown_length_is_bounded() -> None:
    assert room_for_answer(context=131_072, max_tokens=0) == 1024
    assert room_for_answer(context=2, max_tokens=0) == 1


def test_only_a_full_context_has_no_room() -> None:
    assert why_no_room(CONTEXT - 1, CONTEXT) is None
    assert why_no_room(CONTEXT, CONTEXT) is not None


@dataclass(frozen=True)
class Tokenizer:
    truncation_side: str = "right"
    max_chars_per_token: int = 3


def prepared(text: str, kept: int | None, side: str | None, tokenizer: Tokenizer | None) -> str:
    """Return the text that vLLM would tokenize, for a context of two tokens."""

    @dataclass(frozen=True)
    class Lengths:
        max_total_tokens: int | None
        truncate_prompt_tokens: int | None
        truncation_side: str | None

        def apply_pre_tokenization(self, tokenizer: object, prompt: dict[str, str]) -> Any:
            return prompt

    cut_texts(SimpleNamespace(TokenizeParams=Lengths))  # type: ignore[arg-type]
    found = Lengths(2, kept, side).apply_pre_tokenization(tokenizer, {"prompt": text})
    return str(found["prompt"])


@pytest.mark.parametrize(
    ("kept", "side", "own_side", "rest"),
    [
        (-1, None, "right", "abcdef"),
        (1, None, "left", "cdefgh"),
        (1, "left", "right", "cdefgh"),
        (1, "right", "left", "abcdef"),
        (None, None, "right", "abcdefgh"),
    ],
)
def test_a_text_that_is_truncated_is_cut_before_it_is_tokenized(
    kept: int | None, side: str | None, own_side: str, rest: str
) -> None:
    assert prepared("abcdefgh", kept, side, Tokenizer(own_side)) == rest
    assert prepared("abcdef", kept, side, Tokenizer(own_side)) == "abcdef"
    assert prepared("abcdefgh", kept, side, None) == "abcdefgh"
