"""The command line, except for the router."""

import argparse
import asyncio
import gc
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmservice_operator.api.crd import render_crd
from llmservice_operator.chart_values import chart_variables
from llmservice_operator.errors import OperatorError
from llmservice_operator.names import ROUTER_COMMAND
from llmservice_operator.reference import PAGES
from llmservice_operator.render import commented, render_file
from llmservice_operator.rights import render_chart_rules
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.telemetry import configure_logging

if TYPE_CHECKING:
    from llmservice_operator.plan import Plans

logger = logging.getLogger(__name__)

DEEPEST_JSON = 25_000
"""Recursion limit of the process. The API server stores objects with up to 10,000 nested levels,
and one such object must not make a whole list unreadable."""


def run(arguments: Sequence[str]) -> int:
    """Run a command, and return its exit status."""
    options = _parser().parse_args(arguments)
    sys.setrecursionlimit(DEEPEST_JSON)
    try:
        settings = OperatorSettings.from_environment({**os.environ, **_by_the_chart(options)})
        match options.command:
            case "run":
                configure_logging(settings.log_level)
                # The import is local, because the clients of Kubernetes take 25 MiB of memory, and
                # the other commands do not need them.
                from llmservice_operator.process import Process

                # A full garbage collection starts when the number of objects has grown by a
                # quarter. The objects of the modules are never freed. Freezing them excludes them
                # from that number and from the collection.
                gc.freeze()
                return asyncio.run(Process(settings).run())
            case "metrics-server":
                configure_logging(settings.log_level)
                return asyncio.run(run_metrics_server(settings))
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
            case "crd":
                sys.stdout.write(render_crd())
            case "chart-rules":
                sys.stdout.write(render_chart_rules())
            case "reference":
                sys.stdout.write(PAGES[options.page]())
    except (OperatorError, OSError) as error:
        sys.stderr.write(f"llmservice-operator: {error}\n")
        return 1
    return 0


def _plan(text: str, options: argparse.Namespace, settings: OperatorSettings) -> "Plans":
    # The import is local, because the hub's client takes 30 MiB of memory, and the running operator
    # does not need it.
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
    return chart_variables(map(_text_of, files)) if files else {}


def _text_of(file: Path) -> str:
    return sys.stdin.read() if str(file) == "-" else file.read_text()


async def run_metrics_server(settings: OperatorSettings) -> int:
    # The import is local, because the modules for certificates and load models take 12 MiB of
    # memory, and the running operator does not need them.
    from llmservice_operator.metrics_server import MetricsServer

    return await MetricsServer(settings).run()


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmservice-operator",
        description="Runs language models on Kubernetes from LLMService objects.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("run", help="run the operator")
    commands.add_parser(
        "metrics-server", help="run the metrics server, which measures the load of every LLMService"
    )
    commands.add_parser(
        ROUTER_COMMAND[1],
        help="run a router: Envoy and the processes that route the requests of a service",
    )
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
    commands.add_parser("crd", help="print the CustomResourceDefinition")
    commands.add_parser("chart-rules", help="print the chart's RBAC rules")
    reference = commands.add_parser("reference", help="print a page of the documentation")
    reference.add_argument("page", choices=PAGES)
    return parser
