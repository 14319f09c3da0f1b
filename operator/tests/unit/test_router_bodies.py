import asyncio
import json
import time

import pytest

from llmservice_operator.router.bodies import MAX_COMMAS, MOST_TOKENS, BodyReader, read_body
from llmservice_operator.routing.prompts import prompt_of


def _chat(words: int, **more: object) -> bytes:
    messages = [{"role": "user", "content": "a word " * words}]
    return json.dumps({"model": "m", "messages": messages, **more}).encode()


def test_a_whole_body_is_the_prompt_of_its_json() -> None:
    content = _chat(2000, stream=True)
    body = read_body(content)
    assert body.prompt == prompt_of(json.loads(content), "m")
    assert (body.size, body.is_stream) == (len(content), True)
    assert not read_body(_chat(10, stream="true")).is_stream


def test_a_body_names_the_stored_response_that_it_continues() -> None:
    assert read_body(_chat(1)).previous == ""
    assert read_body(_chat(1, previous_response_id="resp_1")).previous == "resp_1"
    assert read_body(_chat(1, previous_response_id=["resp_1"])).previous == ""


@pytest.mark.parametrize(
    ("fields", "tokens", "answers"),
    [
        ({}, None, 1),
        ({"max_tokens": 7}, 7, 1),
        ({"max_completion_tokens": 7, "max_tokens": 5, "n": 3}, 7, 3),
        ({"max_output_tokens": 0}, 0, 1),
        ({"max_tokens": -1, "n": "3", "best_of": 4}, None, 4),
        ({"max_tokens": 10**30, "n": True}, MOST_TOKENS, 1),
        ({"max_tokens": 9, "prompt": ["a", "b"], "n": 2}, 9, 4),
        ({"max_tokens": 9, "prompt": [1, 2, 3]}, 9, 1),
    ],
)
def test_a_body_tells_the_longest_answer(
    fields: dict[str, object], tokens: int | None, answers: int
) -> None:
    body = read_body(json.dumps(fields).encode())
    assert (body.is_text, body.answer_tokens, body.answers) == (True, tokens, answers)


def test_the_size_of_a_file_tells_nothing_about_tokens() -> None:
    assert not read_body(b"--boundary\r\n").is_text
    assert read_body(b' {"a": ').is_text


def test_the_beginning_of_a_body_has_the_prefix_of_the_whole() -> None:
    content = _chat(20_000)
    whole, beginning = read_body(content), read_body(content[:100_000], len(content))
    assert len(beginning.prompt.chain) > 90
    assert beginning.prompt.chain == whole.prompt.chain[: len(beginning.prompt.chain)]
    assert abs(beginning.prompt.size - whole.prompt.size) < 100


def test_a_body_that_ends_inside_a_character_has_a_prefix() -> None:
    content = json.dumps({"prompt": "é" * 10_000}, ensure_ascii=False).encode()
    whole = read_body(content).prompt.chain
    for end in (8000, 8001):
        beginning = read_body(content[:end]).prompt.chain
        assert len(beginning) == end // 1024
        assert beginning == whole[: len(beginning)]


def test_another_text_than_an_object_is_compared_as_text() -> None:
    for content in (b"\xff" * 5000, b"[1, 2]" * 1000, b"--boundary\r\n" * 500, b'{"a": ' * 1000):
        body = read_body(content)
        assert body.prompt.chain
        assert body.prompt.chain == read_body(content).prompt.chain
    assert read_body(b'\xff {"stream" : true').is_stream


@pytest.mark.parametrize(("commas", "is_parsed"), [(MAX_COMMAS, True), (MAX_COMMAS + 1, False)])
def test_a_body_with_very_many_values_is_not_parsed(commas: int, is_parsed: bool) -> None:
    content = b'{"prompt": [' + b"[]," * commas + b"1]}"
    started = time.process_time()
    is_text = read_body(content).prompt == prompt_of({"prompt": content.decode()}, "")
    assert is_text is not is_parsed
    assert time.process_time() - started < 1


def test_bodies_that_differ_have_different_digests() -> None:
    beginning = b"x" * 100
    digests = {read_body(beginning, announced).digest for announced in (None, 200, 300)}
    assert len(digests) == 3
    assert read_body(b"y").digest != read_body(b"z").digest


async def test_a_long_body_is_read_while_the_loop_continues() -> None:
    content, turns = _chat(149_000), []
    # On a busy machine, the loop may get no turn during one reading.
    for _ in range(20):
        reading = asyncio.ensure_future(BodyReader().read(content, len(content)))
        turns.append(0)
        while not reading.done():
            await asyncio.wait({reading}, timeout=0.001)
            turns[-1] += 1
        assert (await reading).size == len(content)
        if turns[-1] > 1:
            break
    assert max(turns) > 1
