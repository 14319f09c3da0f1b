"""Command line of the local cluster. The modules in EXTENSIONS add most of its commands."""

import argparse
import importlib
import os
import sys
from typing import Any

from localkube import binaries, cluster, progress
from localkube.cluster import Cluster
from localkube.errors import LocalkubeError

Subparsers = Any
"""Type of argparse's object that adds subcommands. Its class is private."""

EXTENSIONS = (
    "localkube.commands",
    "localkube.images",
    "localkube.hub",
    "localkube.keda",
    "localkube.gateway_api",
    "localkube.prometheus",
)
"""Modules with a function `register(subparsers)`, which adds commands. The parser of each command
sets `run`. This function takes the parsed arguments, including `name`, and returns the exit status.
"""


TOOLS = ("kubectl", "helm")
"""Programs that get the rest of the command line unchanged."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="localkube",
        description="A real Kubernetes on this machine, inside one network namespace.",
    )
    _add_name(parser)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    _register(subparsers)
    for extension in EXTENSIONS:
        try:
            module = importlib.import_module(extension)
        except ModuleNotFoundError as error:
            if error.name != extension:
                raise
            continue
        if hasattr(module, "register"):
            module.register(subparsers)
    return parser


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name",
        default=cluster.DEFAULT_NAME,
        help="name of the cluster, before or after the command (default: %(default)s)",
    )


def name_first(argv: list[str]) -> list[str]:
    """Move `--name` to the front from any place in localkube's own part of the command line."""
    ours = next((i for i, word in enumerate(argv) if word in ("--", *TOOLS)), len(argv))
    name_only = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_name(name_only)
    known, rest = name_only.parse_known_args(argv[:ours])
    return ["--name", known.name, *rest, *argv[ours:]]


def _register(subparsers: Subparsers) -> None:
    building = subparsers.add_parser("build", help="build the cluster's programs into the cache")
    building.add_argument(
        "--promtool", action="store_true", help="also build the tool that tests Prometheus rules"
    )
    building.set_defaults(run=_build)
    for tool in TOOLS:
        running = subparsers.add_parser(
            tool, help=f"run {tool} against the cluster", add_help=False, prefix_chars="\0"
        )
        running.add_argument("arguments", nargs=argparse.REMAINDER)
        running.set_defaults(run=_run_tool, tool=tool)
    inside = subparsers.add_parser("exec", help="run a command inside the cluster's network")
    inside.add_argument("arguments", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    inside.set_defaults(run=_run_inside)


def _build(arguments: argparse.Namespace) -> int:
    modules = (*binaries.modules(), *((binaries.PROMTOOL,) if arguments.promtool else ()))
    binaries.build(modules)
    for module in modules:
        print(binaries.folder(module))
    return 0


def _run_tool(arguments: argparse.Namespace) -> int:
    return _become(Cluster(arguments.name), [arguments.tool, *arguments.arguments])


def _run_inside(arguments: argparse.Namespace) -> int:
    command = arguments.arguments
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        raise LocalkubeError("There is no command to run. Write: localkube exec -- COMMAND")
    return _become(Cluster(arguments.name), command)


def _become(target: Cluster, command: list[str]) -> int:
    """Replace this process with the command. Signals reach it, and its exit status is returned."""
    environment = target.environment()
    line = target.visiting(command)
    sys.stdout.flush()
    os.execvpe(line[0], line, environment)


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status. A LocalkubeError becomes a single message."""
    try:
        arguments = build_parser().parse_args(name_first(sys.argv[1:] if argv is None else argv))
        status: int = arguments.run(arguments)
    except LocalkubeError as error:
        progress.say(f"localkube: {error}")
        return 1
    except KeyboardInterrupt:
        progress.say("localkube: interrupted; `localkube down` removes what was begun")
        return 130
    return status
