"""The command line, except for the router."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from llmservice_operator.api.crd import render_crd
from llmservice_operator.errors import OperatorError
from llmservice_operator.file_commands import FILE_COMMANDS, add_file_commands, run_file_command
from llmservice_operator.garbage import collect_rarely
from llmservice_operator.names import ROUTER_COMMAND
from llmservice_operator.reference import PAGES
from llmservice_operator.rights import render_chart_rules
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.telemetry import configure_logging

logger = logging.getLogger(__name__)

DEEPEST_JSON = 25_000
"""Recursion limit of the process. The API server stores objects with up to 10,000 nested levels,
and one such object must not make a whole list unreadable."""


def run(arguments: Sequence[str]) -> int:
    """Run a command, and return its exit status."""
    options = _parser().parse_args(arguments)
    sys.setrecursionlimit(DEEPEST_JSON)
    try:
        if options.command in FILE_COMMANDS:
            return run_file_command(options)
        settings = OperatorSettings.from_environment(os.environ)
        match options.command:
            case "run":
                configure_logging(settings.log_level)
                # The import is local, because the clients of Kubernetes take 25 MiB of memory, and
                # the other commands do not need them.
                from llmservice_operator.process import Process

                collect_rarely()
                return asyncio.run(Process(settings).run())
            case "metrics-server":
                configure_logging(settings.log_level)
                return asyncio.run(run_metrics_server(settings))
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


async def run_metrics_server(settings: OperatorSettings) -> int:
    # The import is local, because the modules for certificates and load models take 12 MiB of
    # memory, and the running operator does not need them.
    from llmservice_operator.metrics_server import MetricsServer

    collect_rarely()
    return await MetricsServer(settings).run()


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
    add_file_commands(commands)
    commands.add_parser("crd", help="print the CustomResourceDefinition")
    commands.add_parser("chart-rules", help="print the chart's RBAC rules")
    reference = commands.add_parser("reference", help="print a page of the documentation")
    reference.add_argument("page", choices=PAGES)
    return parser
