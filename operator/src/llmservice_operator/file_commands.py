"""The subcommands that work on files and need no cluster: `render`, `plan` and `new`.

`llmservice-operator` and `kubectl llm` both have them. The parsers import nothing that only a
subcommand needs.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llmservice_operator.plan import Plans
    from llmservice_operator.settings import OperatorSettings

FILE_COMMANDS: Final = ("render", "plan", "new")


def add_file_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parsers of the subcommands to a command line."""
    render = commands.add_parser(
        "render",
        parents=[_file_parser(), _values_parser(), _model_parser()],
        help="print the objects of an LLMService, without a cluster",
    )
    render.add_argument(
        "--plan", action="store_true", help="print the plan first, as comments (see plan)"
    )
    commands.add_parser(
        "plan",
        parents=[_file_parser(), _values_parser(), _model_parser()],
        help="say whether the model of an LLMService fits on its GPUs; exit with 1 if not",
    )
    new = commands.add_parser(
        "new",
        parents=[_values_parser(), _model_parser()],
        help="print an LLMService for a well-known model, with the GPUs that it needs",
    )
    model = new.add_mutually_exclusive_group(required=True)
    model.add_argument("model", nargs="?", help="name of the model in the catalogue")
    model.add_argument("--list", action="store_true", help="list the models of the catalogue")
    new.add_argument("--gpu", default="H100", help="GPU to plan for; default: H100")


def run_file_command(options: argparse.Namespace) -> int:
    """Run one of FILE_COMMANDS, and return its exit status: 1 if a plan says that a model does not
    fit, and 0 otherwise.

    Raises OperatorError or OSError.
    """
    from llmservice_operator.render import commented, render_file
    from llmservice_operator.settings import OperatorSettings

    settings = OperatorSettings.from_environment({**os.environ, **_by_the_chart(options)})
    match options.command:
        case "render":
            text = _text_of(options.file)
            objects = render_file(text, settings)
            if options.plan:
                sys.stdout.write(commented(_plan(text, options, settings).text))
            sys.stdout.write(objects)
        case "plan":
            plans = _plan(_text_of(options.file), options, settings)
            sys.stdout.write(plans.text)
            return 0 if plans.may_fit else 1
        case "new":
            sys.stdout.write(_new(options, settings))
    return 0


def _plan(text: str, options: argparse.Namespace, settings: OperatorSettings) -> Plans:
    from llmservice_operator.plan import PlanOptions, plan_command

    token, endpoint = os.environ.get("HF_TOKEN"), os.environ.get("HF_ENDPOINT")
    where = PlanOptions(options.model_dir, options.draft_dir, options.gpu_memory, endpoint, token)
    return plan_command(text, settings, where)


def _new(options: argparse.Namespace, settings: OperatorSettings) -> str:
    from llmservice_operator.catalogue import MODELS, new_service

    if options.list:
        return "".join(f"{name}\n" for name in MODELS)
    return new_service(options.model, options.gpu, lambda text: _plan(text, options, settings))


def _by_the_chart(options: argparse.Namespace) -> dict[str, str]:
    """Return the environment variables that the chart sets with the values files of --values.

    The result is empty without --values.
    """
    files = getattr(options, "values", None)
    if not files:
        return {}
    from llmservice_operator.chart_values import chart_variables

    return chart_variables(map(_text_of, files))


def _text_of(file: Path) -> str:
    return sys.stdin.read() if str(file) == "-" else file.read_text()


def _values_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--values",
        action="append",
        type=Path,
        help="values file of the chart, so that the output is that of the installed operator; "
        "repeat it for several files, of which a later one has priority",
    )
    return parser


def _file_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "-f",
        "--file",
        required=True,
        type=Path,
        help="YAML file with one or more LLMServices; - reads standard input",
    )
    return parser


def _model_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--model-dir",
        type=Path,
        help="folder with the model's config.json and safetensors files; default: the hub that "
        "HF_ENDPOINT names, with the token in HF_TOKEN",
    )
    parser.add_argument(
        "--draft-dir", type=Path, help="the same folder for the draft model of method DraftModel"
    )
    parser.add_argument(
        "--gpu-memory",
        metavar="QUANTITY",
        help="memory of one GPU, such as 24Gi; default: that of the GPU which the spec names",
    )
    return parser
