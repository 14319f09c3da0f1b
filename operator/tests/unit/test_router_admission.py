from pathlib import Path

import pytest

from llmservice_operator.router.admission import NO_CLIENT, NO_KEY, Admission, ApiKeys
from llmservice_server.keys import ApiKeys as ServerKeys

HEADERS: list[list[tuple[str, bytes]]] = [
    [],
    [("authorization", b"Bearer first")],
    [("authorization", b"bearer  second ")],
    [("authorization", b"Basic first")],
    [("authorization", b"first")],
    [("authorization", b"Bearer ")],
    [("authorization", b"Bearer firs")],
    [("authorization", b"Bearer first\xff")],
    [("x-api-key", b" second ")],
    [("x-api-key", b"")],
    [("authorization", b"Bearer no"), ("x-api-key", b"first")],
    [("cookie", b"first")],
]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    (tmp_path / "a").write_text("first\n")
    (tmp_path / "b").write_text(" second ")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "..data").write_text("hidden")
    return tmp_path


@pytest.mark.parametrize("headers", HEADERS)
def test_router_and_model_server_accept_the_same_keys(
    keys: Path, headers: list[tuple[str, bytes]]
) -> None:
    by_server = ServerKeys(keys).find((name.encode(), value) for name, value in headers)
    expected = None if by_server is None else (by_server.name, by_server.digest.hex())
    assert ApiKeys(keys).find(headers) == expected


def test_a_changed_secret_is_read_within_a_second(keys: Path) -> None:
    now = [0.0]
    found = ApiKeys(keys, lambda: now[0])
    new = [("authorization", b"Bearer third")]
    assert found.find(new) is None
    (keys / "c").write_text("third")
    now[0] = 0.9
    assert found.find(new) is None
    now[0] = 1.1
    assert found.find(new)


def test_an_empty_secret_admits_no_request(tmp_path: Path) -> None:
    admission = Admission(ApiKeys(tmp_path))
    assert admission.admit({":method": b"POST", ":path": b"/v1/models"}) is NO_KEY
    assert Admission(None).admit({":method": b"POST", ":path": b"/v1/models"}) is NO_CLIENT


@pytest.mark.parametrize(
    ("method", "path", "is_open"),
    [
        (b"GET", b"/health", True),
        (b"GET", b"/ping?a=b", True),
        (b"POST", b"/health", False),
        (b"GET", b"/health/", False),
        (b"GET", b"/v1/models", False),
        (b"OPTIONS", b"/v1/models", False),
    ],
)
def test_a_probe_needs_no_key(tmp_path: Path, method: bytes, path: bytes, is_open: bool) -> None:
    admitted = Admission(ApiKeys(tmp_path)).admit({":method": method, ":path": path})
    assert admitted == (NO_CLIENT if is_open else NO_KEY)


def test_the_question_of_a_browser_needs_no_key(tmp_path: Path) -> None:
    headers = {
        ":method": b"OPTIONS",
        ":path": b"/v1/models",
        "origin": b"http://a",
        "access-control-request-method": b"POST",
    }
    assert Admission(ApiKeys(tmp_path)).admit(headers) is NO_CLIENT
