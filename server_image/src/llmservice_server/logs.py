"""Writes structured logs: one JSON object per line, never a prompt or an answer.

logging.json in the same folder configures the logs of this process and, through
VLLM_LOGGING_CONFIG_PATH, of the engine process.
"""

import json
import logging
import logging.config
import os
import traceback
from datetime import UTC, datetime
from pathlib import Path

from llmservice_server.failures import facts_of
from llmservice_server.request_ids import current_request_id

CONFIGURATION = Path(__file__).with_name("logging.json")
ENGINE_ERROR_FILE = "LLMSERVICE_ENGINE_ERROR_FILE"
"""Environment variable with the path of the file for the error that ends the engine process.

The path ends with the server's process id. The process with this id writes nothing to the file, so
the file never contains the server's own errors.
"""

LAST_WORDS = frozenset(
    {
        "EngineCore failed to start.",
        "EngineCore encountered a fatal error.",
        "WorkerProc failed to start.",
        "WorkerProc failed.",
    }
)
"""Messages that vLLM's processes log with the error that terminates them. Any other logged error
may concern a single request and quote it."""

_QUOTING = ("vllm.v1.structured_output", "vllm.logging_utils.dump_input")
"""Loggers of the engine's process whose messages may contain a client's input."""

DETAILS = "llmservice_details"
"""Key in a record's `extra` whose entries become entries of the log line."""


def configure() -> None:
    """Configure the logs of this process and, through its environment, of the engine process.

    VLLM_LOGGING_LEVEL sets the level, here and in an engine that is forked from this process.
    VLLM_LOGGING_CONFIG_PATH is overwritten, because another configuration would log prompts.
    """
    configuration = json.loads(CONFIGURATION.read_text())
    level = os.environ.get("VLLM_LOGGING_LEVEL", "").upper()
    if level in logging.getLevelNamesMapping():
        for logger in ("vllm", "llmservice_server"):
            configuration["loggers"][logger]["level"] = level
    logging.config.dictConfig(configuration)
    os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(CONFIGURATION)


class OwnDebugOnly(logging.Filter):
    """Drops debug messages of libraries during a request, because they quote the request."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is logged."""
        return record.levelno >= logging.INFO or current_request_id.get() is None or _is_own(record)


class JsonFormatter(logging.Formatter):
    """Formats each record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        request_id = current_request_id.get()
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record, request_id),
            "process": record.process,
        }
        line.update(getattr(record, DETAILS, {}))
        if request_id is not None:
            line["requestId"] = request_id
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            may_quote = request_id is not None or _is_survived_by_an_engine(record)
            told = _places(error) if may_quote else traceback.format_exception(error)
            line["error"] = "".join(told)
        # JSON in ASCII contains no control characters for a terminal, and a lone surrogate cannot
        # break it.
        return json.dumps(line)


def _message(record: logging.LogRecord, request_id: str | None) -> str:
    """Return a record's message, or only its template if a library's message may quote a request.

    A library may insert values from the client: a name, or an error that quotes the request.
    """
    is_of_a_request = request_id is not None or record.name.startswith(_QUOTING)
    if is_of_a_request and not _is_own(record):
        return str(record.msg)
    return record.getMessage()


def _is_own(record: logging.LogRecord) -> bool:
    return record.name.startswith(__package__)


def _places(error: BaseException) -> list[str]:
    """Return the tracebacks of an error and its causes, without the texts of the errors.

    The texts may quote the request.
    """
    lines: list[str] = []
    current: BaseException | None = error
    while current is not None and len(lines) < 500:
        lines += [*traceback.format_tb(current.__traceback__), f"{type(current).__qualname__}\n"]
        hidden = current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)
    return lines


def _engine_error_file() -> str | None:
    """Return the path for the error that ends this process; None outside an engine process."""
    path = os.environ.get(ENGINE_ERROR_FILE)
    return None if not path or path.endswith(f".{os.getpid()}") else path


def _is_survived_by_an_engine(record: logging.LogRecord) -> bool:
    """Return whether an engine process logged an error that does not end the process.

    Such an error may concern a single request and quote it.
    """
    return _engine_error_file() is not None and str(record.msg) not in LAST_WORDS


class EngineErrorHandler(logging.Handler):
    """Writes the fatal error of an engine to a file, for the server.

    The engine's own message to the server says only that it failed.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write the exception that ends the engine, unless an earlier one is already written.

        The earlier exception is the root cause.
        """
        path = _engine_error_file()
        error = record.exc_info[1] if record.exc_info else None
        if path is None or error is None or _is_survived_by_an_engine(record):
            return
        try:
            with open(path, "x") as file:
                json.dump([fact.as_json() for fact in facts_of(error)], file)
        except OSError:
            # The record itself is in the log, so a missing copy does no harm.
            return
