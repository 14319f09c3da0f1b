"""Tests the chain of hashes of a prompt: equal prefixes, and no others, have equal hashes."""

import json
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice_operator.routing.prefixes import BLOCK_BYTES
from llmservice_operator.routing.prompts import MOST_BYTES, prompt_of

LONG = "All happy families are alike. " * 200
PICTURE = "data:image/png;base64," + "iVBORw0KGgo" * 100


def chat(*texts: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text} for text in texts], **more}


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def chain(body: dict[str, Any], adapter: str = "model") -> Sequence[int]:
    return prompt_of(body, adapter).chain


def test_a_longer_conversation_begins_with_the_chain_of_the_shorter_one() -> None:
    first, second = chain(chat(LONG)), chain(chat(LONG, "And unhappy ones?", LONG))
    assert len(first) == len(LONG) // BLOCK_BYTES
    assert shared(first, second) == len(first)
    assert len(second) > len(first)


def test_a_difference_at_the_beginning_leaves_no_block_in_common() -> None:
    assert shared(chain(chat("A" + LONG)), chain(chat("B" + LONG))) == 0


def test_a_difference_in_the_third_block_leaves_two_blocks_in_common() -> None:
    changed = LONG[: 2 * BLOCK_BYTES + 100] + "!" + LONG[2 * BLOCK_BYTES + 101 :]
    assert shared(chain(chat(LONG)), chain(chat(changed))) == 2


def test_spaces_and_the_order_of_keys_make_no_difference() -> None:
    body = chat(LONG, tools=[{"type": "function", "function": {"name": "f", "strict": True}}])
    turned = dict(reversed(body.items()))
    turned["messages"] = [dict(reversed(each.items())) for each in body["messages"]]
    spaced = json.loads(json.dumps(turned, indent=4))
    assert chain(spaced) == chain(body)


@pytest.mark.parametrize("more", [{"temperature": 0.5}, {"stream": True}, {"max_tokens": 9}])
def test_sampling_does_not_belong_to_the_prompt(more: dict[str, Any]) -> None:
    assert chain(chat(LONG, **more)) == chain(chat(LONG))


@pytest.mark.parametrize("more", [{"tools": [{"name": "f"}]}, {"cache_salt": "mine"}])
def test_tools_and_a_cache_salt_separate_prompts(more: dict[str, Any]) -> None:
    assert shared(chain(chat(LONG, **more)), chain(chat(LONG))) == 0


def test_an_adapter_separates_prompts() -> None:
    assert shared(chain(chat(LONG), "one"), chain(chat(LONG), "two")) == 0


def picture(url: str, text: str = LONG) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": parts}]}


def test_a_picture_counts_by_its_digest_and_not_by_its_bytes() -> None:
    prompt, other = prompt_of(picture(PICTURE), "m"), prompt_of(picture(PICTURE + "A"), "m")
    assert prompt.media == 1
    assert abs(prompt.size - prompt_of(picture("http://it.example/a.png"), "m").size) < 100
    assert prompt.chain == prompt_of(picture(PICTURE), "m").chain
    assert shared(prompt.chain, other.chain) == 0


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": LONG},
        {"prompt": [1234] * 3000},
        {"prompt": [LONG, LONG]},
        {"input": LONG},
        {"input": [{"role": "user", "content": LONG}], "instructions": "Be brief."},
        {"system": LONG, "messages": []},
        {"query": "Which?", "documents": [LONG, LONG]},
    ],
)
def test_every_route_has_a_chain(body: dict[str, Any]) -> None:
    assert len(chain(body)) >= len(LONG) // BLOCK_BYTES


def test_a_prompt_beyond_the_limit_is_compared_by_its_beginning() -> None:
    prompt = prompt_of({"prompt": "x" * (3 * MOST_BYTES)}, "m")
    assert len(prompt.chain) == MOST_BYTES // BLOCK_BYTES
    assert prompt.size > 3 * MOST_BYTES


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["messages", "prompt", "input", "tools"]), JSON))
def test_any_json_has_a_chain_and_the_same_one_each_time(body: dict[str, Any]) -> None:
    again = json.loads(json.dumps(body))
    assert prompt_of(body, "m") == prompt_of(again, "m")


def test_a_lone_surrogate_is_no_error() -> None:
    assert prompt_of(json.loads('{"prompt": "\\ud800"}'), "m").size > 0
