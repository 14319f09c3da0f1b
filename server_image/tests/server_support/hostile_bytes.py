"""Generates bytes that violate HTTP. Each kind has a function that draws random bytes."""

import json
import random
from collections.abc import Callable

from server_support.engine import SERVED_NAME

SECRET = "tulip-in-the-vault"
"""Text of every prompt in this module. It must not appear in any log."""

Raw = Callable[[random.Random, bytes], list[bytes]]


def _head(key: bytes, path: bytes = b"/v1/completions", *more: bytes) -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: x", b"Authorization: " + key]
    return b"\r\n".join([*lines, b"Content-Type: application/json", *more, b"", b""])


def _body(stream: bool = True) -> bytes:
    wanted = {"model": SERVED_NAME, "prompt": SECRET, "max_tokens": 20, "stream": stream}
    return json.dumps(wanted).encode()


def _garbage(chance: random.Random, key: bytes) -> list[bytes]:
    return [chance.randbytes(chance.randrange(1, 2000))]


def _cut(chance: random.Random, key: bytes) -> list[bytes]:
    body = _body()
    whole = _head(key, b"/v1/completions", b"Content-Length: %d" % len(body)) + body
    return [whole[: chance.randrange(len(whole))]]


def _slow(chance: random.Random, key: bytes) -> list[bytes]:
    body = _body()
    whole = _head(key, b"/v1/completions", b"Content-Length: %d" % len(body)) + body
    cuts = sorted(chance.sample(range(1, len(whole)), 5))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def _left(chance: random.Random, key: bytes) -> list[bytes]:
    body = _body(stream=chance.random() < 0.5)
    return [_head(key, b"/v1/completions", b"Content-Length: %d" % len(body)) + body]


def _flood(chance: random.Random, key: bytes) -> list[bytes]:
    line = chance.choice((b"a: b\r\n", b"X-Api-Key: x\r\n", b"Cookie: %s\r\n" % (b"c" * 5000)))
    return [b"GET /v1/models HTTP/1.1\r\n" + line * chance.randrange(100, 20_000)]


def _pipelined(chance: random.Random, key: bytes) -> list[bytes]:
    one = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: " + key + b"\r\n\r\n"
    return [one * chance.randrange(2, 60)]


def _chunks(chance: random.Random, key: bytes) -> list[bytes]:
    head = _head(key, b"/v1/completions", b"Transfer-Encoding: chunked")
    body = _body()
    marks = chance.choice((b"%x\r\n", b"%x;a=b\r\n", b"0000%x\r\n", b"-%x\r\n", b"%x \r\n"))
    chunked = marks % len(body) + body + b"\r\n"
    end = chance.choice(
        (b"0\r\n\r\n", b"0\r\nX-Request-Id: a\r\n\r\n", b"00\r\n\r\n", b"", b"g\r\n")
    )
    return [head + chunked + end]


def _smuggled(chance: random.Random, key: bytes) -> list[bytes]:
    inner = b"GET /pause HTTP/1.1\r\nHost: x\r\n\r\n"
    more = chance.choice(
        (
            (b"Content-Length: 0", b"Transfer-Encoding: chunked"),
            (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
            (b"Transfer-Encoding: xchunked", b"Content-Length: 0"),
            (b"Transfer-Encoding:\x0bchunked",),
            (b"Content-Length: 0", b"Content-Length: 35"),
            (b"Content-Length: +0",),
            (b"Content-Length : 0",),
            (b"X: y\r\n\r\n",),
        )
    )
    return [_head(key, b"/v1/completions", *more) + b"0\r\n\r\n" + inner]


def _targets(chance: random.Random, key: bytes) -> list[bytes]:
    target = chance.choice(
        (
            b"*",
            b"//v1/models",
            b"/v1/../pause",
            b"/v1/%2e%2e/pause",
            b"/%70ause",
            b"/v1%2fmodels",
            b"http://other/v1/models",
            b"/v1/models?a=%00",
            b"/v1/responses/%0d%0aX-Injected:%201",
            b"/v1/responses/" + b"a" * 9000,
            b"/\xff\xfe",
            b"x",
            b"/v1/models#a",
            b"/v1/models;a=b",
        )
    )
    method = chance.choice((b"GET", b"POST", b"OPTIONS", b"HEAD", b"PUT", b"TRACE", b"CONNECT"))
    version = chance.choice((b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9"))
    line = method + b" " + target + b" " + version
    return [line + b"\r\nHost: x\r\nAuthorization: " + key + b"\r\n\r\n"]


def _ids(chance: random.Random, key: bytes) -> list[bytes]:
    value = chance.choice(
        (b"a\rX-Injected: 1", b"a\nX-Injected: 1", b"\x00", b"\xff" * 40, b"a" * 60_000, b"a, b")
    )
    body = _body(stream=False)
    length = b"Content-Length: %d" % len(body)
    return [_head(key, b"/generate", length, b"X-Request-Id: " + value) + body]


RAW: tuple[Raw, ...] = (
    _garbage,
    _cut,
    _slow,
    _left,
    _flood,
    _pipelined,
    _chunks,
    _smuggled,
    _targets,
    _ids,
)
"""Functions of all kinds. Their arguments are the random generator and the value of the
`Authorization` header."""
