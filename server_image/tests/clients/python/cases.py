"""Runs the cases of one client, and prints the outcome of each case as a line of JSON.

The environment variables NEEDS, URL, KEY and RECORDING come from the command that compares servers.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

URL = os.environ.get("URL", "")
"""Address of the server, without a path."""
KEY = os.environ.get("KEY", "")
MODEL = "model"
QUESTION = "What is the capital of France?"
WEATHER_QUESTION = "How is the weather in Paris?"
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
"""JSON schema of the arguments of the tool `get_weather`."""
TITLES = ["the sea", "a mountain", "a ship on the sea"]

_output, sys.stdout = sys.stdout, sys.stderr  # some clients print to standard output

_cases: list[tuple[str, str, Callable[[], Any]]] = []


def case(feature: str, needs: str = "text") -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Declare a case: the feature that it tries and the kind of model that it needs."""

    def declared(function: Callable[[], Any]) -> Callable[[], Any]:
        _cases.append((feature, needs, function))
        return function

    return declared


def leave_out(*features: str) -> None:
    """Remove the cases of these features."""
    _cases[:] = [each for each in _cases if each[0] not in features]


def recording() -> tuple[str, bytes]:
    """Return the name and the content of a recording."""
    path = Path(os.environ["RECORDING"])
    return path.name, path.read_bytes()


def refusal(function: Callable[[], Any], *errors: type[Exception]) -> dict[str, Any]:
    """Return the error that a client raises for a refused request.

    Raises AssertionError if the request is not refused.
    """
    try:
        answer = function()
    except errors as error:
        told = {name: getattr(error, name, None) for name in ("status_code", "message", "body")}
        return {"error": type(error).__name__, **told}
    raise AssertionError(f"it is not refused: {answer}")


def plain(reply: Any) -> Any:
    """Return a whole reply, or all parts of a stream, as values of JSON."""
    if hasattr(reply, "model_dump"):
        return reply.model_dump(mode="json")
    if isinstance(reply, dict):
        return {str(name): plain(value) for name, value in reply.items()}
    if isinstance(reply, list | tuple):
        return [plain(each) for each in reply]
    if isinstance(reply, Iterable) and not isinstance(reply, str | bytes):
        return {"stream": [plain(each) for each in reply]}
    return reply


def main() -> None:
    """Run the cases that the model can answer. A failed case does not stop the others."""
    for feature, needs, function in _cases:
        if needs != os.environ["NEEDS"]:
            continue
        line: dict[str, Any] = {"feature": feature}
        try:
            line["reply"] = plain(function())
        except Exception as error:
            line["failure"] = f"{type(error).__name__}: {error}"
        print(json.dumps(line), file=_output, flush=True)
