"""Print where each vLLM symbol of compat.py is and what it takes, as JSON.

Runs inside the engine environment. The vLLM that is asked is the first on the module path.
"""

import contextlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent / "src"))

from llmservice_server.compat import load_vllm


def signatures() -> dict[str, dict[str, Any]]:
    """Return what every symbol of compat.py looks like in this vLLM."""
    return {name: signature(symbol) for name, symbol in sorted(vars(load_vllm()).items())}


def signature(symbol: Any) -> dict[str, Any]:
    """Return what a symbol looks like to whoever uses it."""
    if not callable(symbol):
        # A setting, whose value is this machine's.
        return {"type": type(symbol).__name__}
    found: dict[str, Any] = {"module": symbol.__module__, "parameters": parameters(symbol)}
    if inspect.isclass(symbol):
        found["methods"] = {
            name: parameters(method)
            for name, method in inspect.getmembers(symbol, inspect.isroutine)
            if not name.startswith("_") and _is_of_vllm(method)
        }
        found["properties"] = [
            name
            for name, member in inspect.getmembers(symbol, lambda each: isinstance(each, property))
            if not name.startswith("_")
        ]
        # The fields of a struct, or the members of an enumeration.
        for attribute in ("__struct_fields__", "__members__"):
            if names := getattr(symbol, attribute, ()):
                found["fields"] = list(names)
    return found


def _is_of_vllm(method: Any) -> bool:
    return str(getattr(method, "__module__", "")).startswith("vllm")


def parameters(function: Any) -> list[str]:
    """Return the names of a function's parameters, none where Python cannot tell."""
    with contextlib.suppress(ValueError):
        return list(inspect.signature(function).parameters)
    return []


def main() -> None:
    """Answer on standard output."""
    # Importing vLLM writes to standard output now and then, and only the answer may stand there.
    with contextlib.redirect_stdout(sys.stderr):
        answer = signatures()
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
