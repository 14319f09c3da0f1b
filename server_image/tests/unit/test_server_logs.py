import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmservice_server import logs
from llmservice_server.failures import read_facts
from llmservice_server.request_ids import current_request_id

FATAL = "EngineCore encountered a fatal error."


def record_of(
    error: BaseException | None = None, message: str = "went %s", *values: str
) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    values = values or ("wrong",) * message.count("%s")
    return logging.LogRecord("vllm.x", logging.ERROR, "f", 1, message, values, info)


@pytest.fixture
def engine_error_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of the error file. The fixture sets the environment variable with this path, by which
    the logs module recognizes the process of an engine."""
    path = tmp_path / "error.0"
    monkeypatch.setenv(logs.ENGINE_ERROR_FILE, str(path))
    return path


def test_a_record_is_one_line_of_json() -> None:
    line = logs.JsonFormatter().format(record_of(ValueError("two\nlines")))

    assert "\n" not in line
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["message"]) == ("ERROR", "vllm.x", "went wrong")
    assert "two\nlines" in entry["error"]


def test_an_engine_leaves_the_first_error_that_it_ends_of(engine_error_file: Path) -> None:
    handler = logs.EngineErrorHandler()

    handler.emit(record_of(None, FATAL))
    handler.emit(record_of(ValueError("root"), "WorkerProc failed to start."))
    handler.emit(record_of(RuntimeError("follows from it"), FATAL))

    assert [fact.text for fact in read_facts(engine_error_file)] == ["root"]


OF_A_REQUEST = [
    ("Failed to compile grammar for request %s", "cmpl-1"),
    ("Unexpected error pre-processing request %s", "cmpl-1"),
    ("Invocation of %s method failed", "add_lora"),
]


@pytest.mark.parametrize("said", OF_A_REQUEST, ids=lambda said: said[0])
def test_an_error_that_ends_one_request_is_never_the_reason_of_the_engines_end(
    engine_error_file: Path, said: tuple[str, str]
) -> None:
    handler = logs.EngineErrorHandler()

    handler.emit(record_of(ValueError("bad pattern: (cuda out of memory)*"), *said))
    assert not engine_error_file.exists()

    handler.emit(record_of(RuntimeError("the end"), FATAL))
    assert [fact.text for fact in read_facts(engine_error_file)] == ["the end"]


@pytest.mark.usefixtures("engine_error_file")
@pytest.mark.parametrize("said", OF_A_REQUEST, ids=lambda said: said[0])
def test_an_error_that_the_engine_survives_is_logged_by_its_place_and_not_by_its_words(
    said: tuple[str, str],
) -> None:
    with pytest.raises(ValueError, match="tulip") as failed:
        int("tulip")

    entry = json.loads(logs.JsonFormatter().format(record_of(failed.value, *said)))

    assert entry["message"] == said[0] % said[1]
    assert "ValueError" in entry["error"]
    assert "test_server_logs.py" in entry["error"]
    assert "invalid literal" not in entry["error"]


@pytest.mark.usefixtures("engine_error_file")
def test_the_error_that_an_engine_ends_of_is_logged_in_its_words() -> None:
    line = logs.JsonFormatter().format(record_of(ValueError("no room for the KV cache"), FATAL))
    assert "no room for the KV cache" in json.loads(line)["error"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vllm.v1.structured_output.backend_guidance", "LLMatcher error: %s"),
        ("vllm.logging_utils.dump_input", "Dumping scheduler output for model execution: %s"),
    ],
)
def test_what_the_engine_says_of_structures_and_steps_is_logged_without_what_was_asked_for(
    name: str, message: str
) -> None:
    record = logging.LogRecord(name, logging.ERROR, "f", 1, message, ("tulip",), None)
    assert json.loads(logs.JsonFormatter().format(record))["message"] == message


def test_the_server_leaves_none_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"error.{os.getpid()}"
    monkeypatch.setenv(logs.ENGINE_ERROR_FILE, str(path))
    logs.EngineErrorHandler().emit(record_of(ValueError("the server's own"), FATAL))
    assert not path.exists()


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {}
    monkeypatch.setattr("logging.config.dictConfig", found.update)
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", "/mine.json")
    return found


def test_the_configuration_is_ours_in_every_process(configured: dict[str, Any]) -> None:
    logs.configure()

    # Another configuration would log the engine's messages about prompts.
    assert os.environ["VLLM_LOGGING_CONFIG_PATH"] == str(logs.CONFIGURATION)
    for used in (*configured["formatters"].values(), *configured["filters"].values()):
        module, _, name = used["()"].rpartition(".")
        assert hasattr(sys.modules[module], name)


@pytest.mark.parametrize(("level", "set_to"), [("debug", "DEBUG"), ("", "INFO"), ("x", "INFO")])
def test_the_level_can_be_chosen(
    configured: dict[str, Any], monkeypatch: pytest.MonkeyPatch, level: str, set_to: str
) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", level)
    logs.configure()
    assert configured["loggers"]["vllm"]["level"] == set_to


@pytest.fixture
def in_a_request() -> Iterator[None]:
    token = current_request_id.set("the-id")
    yield
    current_request_id.reset(token)


@pytest.mark.usefixtures("in_a_request")
def test_an_error_of_a_request_is_logged_by_its_place_and_not_by_its_words() -> None:
    def fail() -> None:
        try:
            int("tulip")
        except ValueError as error:
            raise RuntimeError("rose") from error

    with pytest.raises(RuntimeError) as failed:
        fail()
    entry = json.loads(logs.JsonFormatter().format(record_of(failed.value)))

    assert entry["requestId"] == "the-id"
    assert "ValueError" in entry["error"]
    assert "RuntimeError" in entry["error"]
    assert "test_server_logs.py" in entry["error"]
    assert '"rose"' in entry["error"]  # this is a line of code, which is not secret
    assert "invalid literal" not in entry["error"]


@pytest.mark.usefixtures("in_a_request")
@pytest.mark.parametrize(
    ("name", "level", "is_logged"),
    [
        ("vllm.x", logging.DEBUG, False),
        ("vllm.x", logging.INFO, True),
        ("llmservice_server.gate", logging.DEBUG, True),
    ],
)
def test_what_others_debug_about_a_request_is_not_logged(
    name: str, level: int, is_logged: bool
) -> None:
    record = logging.LogRecord(name, level, "f", 1, "a prompt", (), None)
    assert logs.OwnDebugOnly().filter(record) is is_logged


def test_what_others_debug_outside_of_a_request_is_logged() -> None:
    record = logging.LogRecord("vllm.x", logging.DEBUG, "f", 1, "a step", (), None)
    assert logs.OwnDebugOnly().filter(record)


def test_a_line_is_ascii_whatever_it_says() -> None:
    record = logging.LogRecord("x", logging.INFO, "f", 1, "\x1b[31m \x9b \u2028 \ud800 é", (), None)
    line = logs.JsonFormatter().format(record)
    assert line.isascii()
    assert line.isprintable()


@pytest.mark.usefixtures("in_a_request")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vllm.x", "no model %s"),
        ("uvicorn.error", "no model %s"),
        ("llmservice_server.gate", "no model tulip"),
    ],
)
def test_what_others_say_of_a_request_is_logged_without_what_the_client_said(
    name: str, message: str
) -> None:
    record = logging.LogRecord(name, logging.ERROR, "f", 1, "no model %s", ("tulip",), None)
    assert json.loads(logs.JsonFormatter().format(record))["message"] == message


def test_what_a_library_attaches_to_a_record_is_not_logged() -> None:
    record = record_of()
    record.color_message = "tulip"  # uvicorn sets this attribute
    assert list(json.loads(logs.JsonFormatter().format(record))) == [
        *("time", "level", "logger", "message", "process"),
    ]
