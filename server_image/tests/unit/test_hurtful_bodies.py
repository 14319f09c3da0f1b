"""Tests the generation of the hurtful bodies that the engine tests send."""

from server_support.hurtful import LARGEST_BYTES, SHAPES, Attack, attacks

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
