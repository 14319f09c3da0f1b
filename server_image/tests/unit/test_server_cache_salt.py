"""Tests the salts of the engine's prefix cache.

Each API key has its own salt, and so has each pair of a key and a salt that a client chooses.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from llmservice_server.cache_salt import current_key, salted


@contextmanager
def request_with(key: bytes | None) -> Iterator[None]:
    token = current_key.set(key)
    try:
        yield
    finally:
        current_key.reset(token)


def salt(key: bytes | None, own: str | None = None) -> str | None:
    with request_with(key):
        return salted(own)


def test_a_request_whose_prompts_are_not_kept_apart_keeps_the_salt_that_its_client_asks_for() -> (
    None
):
    assert salt(None) is None
    assert salt(None, "mine") == "mine"


def test_every_key_has_a_salt_of_its_own_that_stays() -> None:
    assert salt(b"a") == salt(b"a")
    assert salt(b"a") not in (None, salt(b"b"))


def test_a_client_cannot_choose_the_salt_of_another() -> None:
    chosen = [
        salt(b"a"),
        salt(b"a", "mine"),
        salt(b"a", salt(b"b")),
        salt(b"b"),
        salt(b"b", "mine"),
    ]
    assert len({*chosen}) == len(chosen)
