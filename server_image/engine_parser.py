"""Answer questions about engine flags with vLLM's own argument parser.

The script runs inside the engine environment, never in that of the workspace. It uses the first
vLLM on the module path.

It reads lines of JSON from standard input and answers each with a line of JSON. A line contains a
question and lists of arguments; the answer contains an entry for each list:

flags      flag -> kind and choices, for every long flag, whatever the arguments
parse      the parser's error message; null if the parser accepts the arguments
read       name -> value, for values that differ from the default; an object as its repr
configure  the error that vLLM raises for the engine's whole configuration; null without an error
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

sys.path.append(str(Path(__file__).parent / "src"))

from pydantic import ValidationError

from llmservice_server.compat import load_vllm


def make_parser() -> Any:
    """Return the argument parser, which the model server uses, too."""
    vllm = load_vllm()
    return vllm.make_arg_parser(vllm.FlexibleArgumentParser())


def contained_choices() -> dict[str, Sequence[str]]:
    """Return flag -> vLLM's own values, for the flags to which plugins can add values.

    vLLM's argument parser accepts any value. vLLM refuses an unknown one later, when the server
    starts.
    """
    from vllm.config.cache import CacheDType
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    return {
        "--kv-cache-dtype": get_args(CacheDType),
        "--reasoning-parser": ReasoningParserManager.list_registered(),
        "--tool-call-parser": ToolParserManager.list_registered(),
    }


def describe(action: argparse.Action) -> dict[str, Any]:
    """Return the kind of a flag: switch (--x and --no-x), on-only (--x) or value (--x=...)."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return {"kind": "switch", "choices": []}
    if action.nargs == 0:
        return {"kind": "on-only", "choices": []}
    # "None" means unset and cannot be written on a command line.
    choices = [str(choice) for choice in action.choices or () if str(choice) != "None"]
    return {"kind": "value", "choices": sorted(choices)}


def is_negative(action: argparse.Action, name: str) -> bool:
    """Return whether the name is the negative form of a switch, such as --no-x.

    Since vLLM 0.33, --enable-x and --disable-x are the negative forms of each other.
    """
    return name.startswith("--no-") or name in getattr(action, "negative_option_strings", ())


def flags(parser: Any) -> dict[str, dict[str, Any]]:
    """Return full flag name -> description, without the negative forms of switches."""
    known = {
        name: describe(action)
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--") and name != "--help" and not is_negative(action, name)
    }
    for name, choices in contained_choices().items():
        known[name]["choices"] = sorted(choices)
    return known


def complaint(parser: Any, arguments: list[str]) -> str | None:
    """Return the parser's error message; None when it accepts the arguments."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parser.parse_args(arguments)
    except SystemExit:
        return said.getvalue().strip().splitlines()[-1]
    except ValueError as error:
        return str(error)
    return None


def values(parser: Any, arguments: list[str]) -> dict[str, Any]:
    """Return the values that the parser reads and that differ from the default."""
    read = vars(parser.parse_args(arguments)).items()
    return {name: value for name, value in read if value != parser.get_default(name)}


def obstacle(parser: Any, arguments: list[str]) -> str | None:
    """Return the error that vLLM raises when it configures an engine; None without an error."""
    vllm = load_vllm()
    try:
        parsed = parser.parse_args(arguments)
        vllm.validate_parsed_serve_args(parsed)
        vllm.AsyncEngineArgs.from_cli_args(parsed).create_engine_config(
            usage_context=vllm.UsageContext.OPENAI_API_SERVER
        )
    except ValidationError as error:
        # The whole text of the error would contain the whole configuration.
        first = error.errors(include_url=False)[0]
        return f"ValidationError: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return None


def main() -> None:
    """Answer questions about the parser on standard output."""
    answers = sys.stdout
    # Importing vLLM sometimes writes to standard output, which must contain only the answers.
    with contextlib.redirect_stdout(sys.stderr):
        parser = make_parser()
        for line in sys.stdin:
            question, lists = json.loads(line)
            answer = {
                "flags": lambda parser, _: flags(parser),
                "parse": complaint,
                "read": values,
                "configure": obstacle,
            }[question]
            found = json.dumps([answer(parser, each) for each in lists], default=repr)
            print(found, file=answers, flush=True)


if __name__ == "__main__":
    main()
