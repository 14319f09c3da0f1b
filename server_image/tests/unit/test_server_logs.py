import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from llmservice_server import logs
from llmservice_server.failures import read_facts


def record_of(error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("vllm.x", logging.ERROR, "f", 1, "went %s", ("wrong",), info)


def test_a_record_is_one_line_of_json() -> None:
    line = logs.JsonFormatter().format(record_of(ValueError("two\nlines")))

    assert "\n" not in line
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["message"]) == ("ERROR", "vllm.x", "went wrong")
    assert "two\nlines" in entry["error"]


def test_the_engine_leaves_its_first_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "error.0"
    monkeypatch.setenv(logs.ENGINE_ERROR_FILE, str(path))
    handler = logs.EngineErrorHandler()

    handler.emit(record_of())
    handler.emit(record_of(ValueError("root")))
    handler.emit(record_of(RuntimeError("follows from it")))

    assert [fact.text for fact in read_facts(path)] == ["root"]


def test_the_server_leaves_none_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"error.{os.getpid()}"
    monkeypatch.setenv(logs.ENGINE_ERROR_FILE, str(path))
    logs.EngineErrorHandler().emit(record_of(ValueError("a bad request")))
    assert not path.exists()


def test_the_configuration_is_valid_and_keeps_what_the_user_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configured: dict[str, Any] = {}
    monkeypatch.setattr("logging.config.dictConfig", configured.update)
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", "/mine.json")

    logs.configure()

    assert os.environ["VLLM_LOGGING_CONFIG_PATH"] == "/mine.json"
    formatter = configured["formatters"]["json"]["()"].rpartition(".")
    assert getattr(sys.modules[formatter[0]], formatter[2]) is logs.JsonFormatter
