import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi import FastAPI

from llmservice_server.app import attach_engine_app
from llmservice_server.keys import ApiKeys
from llmservice_server.lifecycle import Phase
from server_support.in_process import Client, Stack, make_stack


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def mount(folder: Path, version: str, **keys: str) -> None:
    """Write a Secret as the kubelet does: write a new folder, then replace one link atomically."""
    data = folder / f"..{version}"
    data.mkdir()
    for name, key in keys.items():
        (data / name).write_text(key)
    link = folder / "..next"
    link.symlink_to(data.name)
    link.rename(folder / "..data")
    for old in folder.iterdir():
        if not old.name.startswith("..") and old.name not in keys:
            old.unlink()
    for name in keys:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data", name))


def protected(folder: Path, clock: Clock, phase: Phase = Phase.READY) -> Stack:
    stack = make_stack(phase, keys=ApiKeys(folder, clock))
    inner = FastAPI()

    @inner.get("/v1/models")
    @inner.get("/health")
    @inner.get("/ping")
    async def models() -> dict[str, str]:
        return {}

    attach_engine_app(stack.app, inner)
    return stack


async def status_with(stack: Stack, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return (await Client(stack.app).request("GET", "/v1/models", headers=named)).status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": "Bearer first"}, 200),
        ({"authorization": "bearer second"}, 200),
        ({"x_api_key": "first"}, 200),
        ({}, 401),
        ({"authorization": "Bearer fir"}, 401),
        ({"authorization": "Bearer firstly"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Basic first"}, 401),
        ({"authorization": "first"}, 401),
        ({"x_api_key": ""}, 401),
    ],
    ids=str,
)
async def test_any_of_the_keys_opens_the_api_and_nothing_else_does(
    tmp_path: Path, clock: Clock, headers: dict[str, str], status: int
) -> None:
    mount(tmp_path, "1", one="first\n", two="second", empty="")
    assert await status_with(protected(tmp_path, clock), **headers) == status


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD", "BREW"])
async def test_without_a_key_every_route_answers_401_in_every_phase(
    tmp_path: Path, clock: Clock, phase: Phase, method: str
) -> None:
    mount(tmp_path, "1", one="first")
    stack = protected(tmp_path, clock, phase)
    for path in ("/v1/models", "/generate", "/docs", "/openapi.json", "/load", "/", "/nothing"):
        answer = await Client(stack.app).request(method, path)
        assert answer.status == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
        assert method == "HEAD" or answer.json()["error"]["code"] == 401
    assert stack.registry.get_sample_value(
        "llm_requests_rejected_total", {"reason": "unauthorized"}
    )


@pytest.mark.parametrize("path", ["/health", "/ping"])
@pytest.mark.parametrize("phase", list(Phase))
async def test_whether_the_server_is_up_is_told_without_a_key(
    tmp_path: Path, clock: Clock, phase: Phase, path: str
) -> None:
    mount(tmp_path, "1", one="first")
    answer = await Client(protected(tmp_path, clock, phase).app).get(path)
    assert answer.status == (200 if phase is Phase.READY else 503)


async def test_follows_a_rotation_without_a_restart(tmp_path: Path, clock: Clock) -> None:
    mount(tmp_path, "1", key="old")
    stack = protected(tmp_path, clock)
    assert await status_with(stack, authorization="Bearer old") == 200

    mount(tmp_path, "2", key="old", next="new")
    clock.seconds += 1.5
    assert await status_with(stack, authorization="Bearer old") == 200
    assert await status_with(stack, authorization="Bearer new") == 200

    mount(tmp_path, "3", next="new")
    clock.seconds += 1.5
    assert await status_with(stack, authorization="Bearer old") == 401
    assert await status_with(stack, authorization="Bearer new") == 200


async def test_a_secret_without_a_key_opens_the_api_to_nobody_and_says_so(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    mount(tmp_path, "1", key=" \n")
    assert await status_with(protected(tmp_path, clock), authorization="Bearer ") == 401
    assert "there is no API key in the mounted Secret" in caplog.text


async def test_keeps_the_known_keys_while_the_folder_cannot_be_read(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    mount(folder, "1", key="old")
    stack = protected(folder, clock)
    assert await status_with(stack, authorization="Bearer old") == 200

    os.rename(folder, tmp_path / "gone")
    clock.seconds += 1.5

    assert await status_with(stack, authorization="Bearer old") == 200
    assert "could not be read" in caplog.text


async def test_no_log_shows_a_key(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    mount(tmp_path, "1", key="tulip-in-the-vault")
    stack = protected(tmp_path, clock)
    for key in ("tulip-in-the-vault", "a-wrong-rose"):
        await status_with(stack, authorization=f"Bearer {key}")
    assert "read 1 API keys" in caplog.text
    assert "tulip" not in caplog.text
    assert "rose" not in caplog.text


@pytest.mark.parametrize("keys", [{}, {"key": " \n"}], ids=["no file", "an empty file"])
def test_a_server_without_any_key_ends_before_it_loads_and_says_why(
    tmp_path: Path, keys: dict[str, str]
) -> None:
    folder, log = tmp_path / "keys", tmp_path / "termination-log"
    folder.mkdir()
    log.touch()
    mount(folder, "v1", **keys)
    variables = {
        "API_KEYS_DIRECTORY": str(folder),
        "TERMINATION_LOG": str(log),
        "API_PORT": "0",
        "MANAGEMENT_PORT": "0",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "llmservice_server", "--model=org/model"],
        env={**os.environ, **{f"LLMSERVICE_{name}": value for name, value in variables.items()}},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    said = json.loads(log.read_text())
    assert said["reason"] == "SecretMissing"
    # The operator adds the hint of the reason, which names the field to correct.
    assert "the Secret with the API keys" in said["message"]
