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

CONFIGURATION = Path(__file__).with_name("logging.json")
ENGINE_ERROR_FILE = "LLMSERVICE_ENGINE_ERROR_FILE"
"""Names the file in which the engine process leaves the error it died of.

It ends with the server's process id, so that the server's own errors stay out of it.
"""


def configure() -> None:
    """Configure this process and, by its environment, the engine's."""
    logging.config.dictConfig(json.loads(CONFIGURATION.read_text()))
    os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(CONFIGURATION))


class JsonFormatter(logging.Formatter):
    """One line of JSON per record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line, ensure_ascii=False)


class EngineErrorHandler(logging.Handler):
    """Leaves the first error of an engine process where the server can read it.

    The engine's own message to the server says only that it failed.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's exception unless an earlier one, the root of it, is there."""
        path = os.environ.get(ENGINE_ERROR_FILE)
        if not path or not record.exc_info or record.exc_info[1] is None:
            return
        if path.endswith(f".{os.getpid()}"):
            return  # this is the server, not its engine
        try:
            with open(path, "x") as file:
                json.dump([fact.as_json() for fact in facts_of(record.exc_info[1])], file)
        except OSError:
            # The record itself is in the log; nothing may fail because of its copy.
            return
