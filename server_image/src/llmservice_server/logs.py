"""Structured logs: one JSON object per line, never a prompt or an answer.

logging.json, beside this file, is the configuration of every process: ours and, through
VLLM_LOGGING_CONFIG_PATH, the engine's.
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
"""Names the file in which the engine process leaves the error it died of.

It ends with the server's process id, so that the server's own errors stay out of it.
"""

LAST_WORDS = frozenset(
    {
        "EngineCore failed to start.",
        "EngineCore encountered a fatal error.",
        "WorkerProc failed to start.",
        "WorkerProc failed.",
    }
)
"""What vLLM's processes say with the error that ends them.

Any other error that they log may end one request alone, and quote it.
"""

_QUOTING = ("vllm.v1.structured_output", "vllm.logging_utils.dump_input")
"""Loggers of the engine's process that put what a client asked for into their messages."""

DETAILS = "llmservice_details"
"""Name of a record's `extra` whose entries become entries of its line."""


def configure() -> None:
    """Configure this process and, by its environment, the engine's.

    VLLM_LOGGING_LEVEL sets the level, here and in an engine that is forked from this process.
    VLLM_LOGGING_CONFIG_PATH is overruled: another configuration would log prompts.
    """
    configuration = json.loads(CONFIGURATION.read_text())
    level = os.environ.get("VLLM_LOGGING_LEVEL", "").upper()
    if level in logging.getLevelNamesMapping():
        for logger in ("vllm", "llmservice_server"):
            configuration["loggers"][logger]["level"] = level
    logging.config.dictConfig(configuration)
    os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(CONFIGURATION)


class OwnDebugOnly(logging.Filter):
    """Drops what others debug while they answer a request: it quotes what they were asked."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is logged."""
        return record.levelno >= logging.INFO or current_request_id.get() is None or _is_own(record)


class JsonFormatter(logging.Formatter):
    """One line of JSON per record."""

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
        # ASCII: no terminal obeys it, and no text that is half a character breaks it.
        return json.dumps(line)


def _message(record: logging.LogRecord, request_id: str | None) -> str:
    """Return what a record says; of what others say about a request, only their own words.

    The values that they put into them come from the client: a name, an error that quotes it.
    """
    is_of_a_request = request_id is not None or record.name.startswith(_QUOTING)
    if is_of_a_request and not _is_own(record):
        return str(record.msg)
    return record.getMessage()


def _is_own(record: logging.LogRecord) -> bool:
    return record.name.startswith(__package__)


def _places(error: BaseException) -> list[str]:
    """Return where an error and its causes came from, without what they say.

    What an error says about a request may quote it.
    """
    lines: list[str] = []
    current: BaseException | None = error
    while current is not None and len(lines) < 500:
        lines += [*traceback.format_tb(current.__traceback__), f"{type(current).__qualname__}\n"]
        hidden = current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)
    return lines


def _engine_error_file() -> str | None:
    """Return where this process leaves the error it ends of; None in the server itself."""
    path = os.environ.get(ENGINE_ERROR_FILE)
    return None if not path or path.endswith(f".{os.getpid()}") else path


def _is_survived_by_an_engine(record: logging.LogRecord) -> bool:
    """Tell whether an error may be that of one request: in the engine nothing says so."""
    return _engine_error_file() is not None and str(record.msg) not in LAST_WORDS


class EngineErrorHandler(logging.Handler):
    """Leaves the error that ends an engine where the server can read it.

    The engine's own message to the server says only that it failed.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write the exception of the engine's end unless an earlier one, its root, is there."""
        path = _engine_error_file()
        error = record.exc_info[1] if record.exc_info else None
        if path is None or error is None or _is_survived_by_an_engine(record):
            return
        try:
            with open(path, "x") as file:
                json.dump([fact.as_json() for fact in facts_of(error)], file)
        except OSError:
            # The record itself is in the log; nothing may fail because of its copy.
            return
