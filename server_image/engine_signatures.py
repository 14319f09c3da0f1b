"""Print the module, parameters and members of each vLLM symbol of compat.py, as JSON.

It runs inside the engine environment and inspects the first vLLM on the module path.
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
    """Return the signature of every symbol of compat.py in this vLLM."""
    return {name: signature(symbol) for name, symbol in sorted(vars(load_vllm()).items())}


def signature(symbol: Any) -> dict[str, Any]:
    """Return the public interface of a symbol: its module, parameters and members."""
    if not callable(symbol):
        # The symbol is a setting. Its value depends on the machine, so only its type is recorded.
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
        # These attributes hold the fields of a struct and the members of an enumeration.
        for attribute in ("__struct_fields__", "__members__"):
            if names := getattr(symbol, attribute, ()):
                found["fields"] = list(names)
    return found


def _is_of_vllm(method: Any) -> bool:
    return str(getattr(method, "__module__", "")).startswith("vllm")


def parameters(function: Any) -> list[str]:
    """Return the names of a function's parameters; empty if Python cannot inspect it."""
    with contextlib.suppress(ValueError):
        return list(inspect.signature(function).parameters)
    return []


def main() -> None:
    """Print the signatures to standard output."""
    # Importing vLLM sometimes writes to standard output, which must contain only the answer.
    with contextlib.redirect_stdout(sys.stderr):
        answer = signatures()
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
