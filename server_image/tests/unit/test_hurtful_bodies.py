"""Tests the generation of the hurtful bodies that the engine tests send."""

import json
import random

from server_support.hurtful import LARGEST_BYTES, SHAPES, Attack, attacks
from server_support.hurtful_structures import tools

EXAMPLES = {"/generate": {"prompt": "Hello", "max_tokens": 1}, "/tokenize": {"prompt": "Hello"}}
FORMS = ("/v1/audio/transcriptions",)


def drawn(seed: int, number: int) -> list[Attack]:
    return list(attacks(seed, EXAMPLES, FORMS, number))


def test_a_seed_always_draws_the_same_bodies() -> None:
    assert drawn(1, 12) == drawn(1, 12)
    assert drawn(1, 12) != drawn(2, 12)


def test_every_route_gets_bodies_and_no_shape_is_left_out() -> None:
    found = drawn(1, 45)
    assert {each.path for each in found} == {*EXAMPLES, *FORMS}
    assert {each.shape for each in found} >= set(SHAPES)
    assert all(0 < len(each.body) <= 2 * LARGEST_BYTES for each in found)
    assert any(each.content_type.startswith("multipart/") for each in found)


def test_tools_have_about_the_wanted_size_however_long_their_schema_is() -> None:
    wanted = 100_000
    some = [tools(random.Random(seed), wanted) for seed in range(50)]
    assert max(len(json.dumps(each)) for each in some) < 2 * wanted
