"""Print, as JSON, the symbols and routes of vLLM on which the model server depends.

`symbols` contains the module, parameters and members of each symbol of compat.py. `routes` contains
the method and path of every route that vLLM's application has for any model. The script runs inside
an engine environment.
"""

import contextlib
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent / "src"))

from llmservice_server.compat import load_vllm

EVERY_TASK = ("generate", "transcription", "realtime", "embed", "classify", "token_embed", "render")
EVERY_FLAG = ("--model=x", "--enable-scale-out", "--enable-tokenizer-info-endpoint")


def interface() -> dict[str, Any]:
    """Return the symbols and the routes of this vLLM."""
    return {"symbols": symbols(), "routes": routes()}


class AnyModel:
    """A stand-in for a model that supports every task, so that vLLM registers all its routes."""

    num_labels = 1

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_: Any, **__: Any) -> str:
        return "embed"


def routes() -> list[list[str]]:
    """Return the method and path of every route that vLLM's application has for any model."""
    # This variable adds the administration routes that vLLM reserves for development.
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"
    vllm = load_vllm()
    parser = vllm.make_arg_parser(vllm.FlexibleArgumentParser())
    app = vllm.build_app(parser.parse_args(list(EVERY_FLAG)), EVERY_TASK, AnyModel())
    return sorted(_listed(app.routes))


def _listed(found: Any) -> list[list[str]]:
    listed = []
    for route in found:
        methods = getattr(route, "methods", None) or ("GET",)
        listed += [[method, route.path] for method in methods if getattr(route, "path", None)]
        # Included routers and mounted applications have their own routes.
        listed += _listed(getattr(route, "routes", None) or ())
    return listed


def symbols() -> dict[str, dict[str, Any]]:
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
        # These attributes contain the fields of a struct and the members of an enumeration.
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
    """Print the interface to standard output."""
    # Importing vLLM sometimes writes to standard output, which must contain only the interface.
    with contextlib.redirect_stdout(sys.stderr):
        answer = interface()
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
