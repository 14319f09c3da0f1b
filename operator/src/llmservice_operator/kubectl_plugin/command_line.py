"""The command line of `kubectl llm`: arguments, errors and exit statuses.

docs/kubectl-plugin.md lists the exit statuses. Each subcommand imports its modules when it runs, so
that `status` does not wait for the libraries of `plan` or `chat`.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

from llmservice_operator.errors import OperatorError
from llmservice_operator.file_commands import FILE_COMMANDS, add_file_commands, run_file_command
from llmservice_operator.kubectl_plugin.kubectl import Kubectl

if TYPE_CHECKING:
    from llmservice_operator.kubectl_plugin.endpoint import EndpointOptions

FAILED: Final = 1
_DURATION: Final = re.compile(r"(\d{1,6})(s|m|h)?")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}

_Parsers = argparse._SubParsersAction


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit status of the process."""
    signal.signal(signal.SIGTERM, _leave)
    options = parse(arguments)
    try:
        return _run(options)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of the output has ended. Python must not try to write the rest of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (OperatorError, OSError) as error:
        # The rest of the program is loaded only when it is needed.
        from llmservice_operator.kubectl_plugin.screen import printable

        sys.stderr.write(f"kubectl llm: {printable(str(error))}\n")
        return FAILED


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of a command line. Exits with status 2 if one of them is wrong."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse finds an argument that may be missing only directly after the one before it.
    is_question = len(rest) == 1 and not rest[0].startswith("-")
    if options.command == "chat" and options.question is None and is_question:
        options.question = rest.pop()
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _leave(number: int, frame: FrameType | None) -> None:
    # The exception ends the port-forwards.
    sys.exit(128 + number)


def _run(options: argparse.Namespace) -> int:
    if options.command in FILE_COMMANDS:
        return run_file_command(options)
    kubectl = Kubectl(_kubectl_flags(options))
    match options.command:
        case "status":
            from llmservice_operator.kubectl_plugin.status import show_status

            show_status(kubectl, options.name, as_json=_is_json(options))
        case "logs":
            from llmservice_operator.kubectl_plugin.logs import LogOptions, show_logs

            wanted = LogOptions(
                options.router,
                options.pod,
                options.previous,
                options.follow,
                options.tail,
                options.since,
            )
            show_logs(kubectl, options.name, wanted)
        case "restart":
            from llmservice_operator.kubectl_plugin.restart import restart

            restart(
                kubectl,
                options.name,
                wait_seconds=options.timeout,
                force=options.force,
                allow_downtime=options.allow_downtime,
            )
        case "top":
            from llmservice_operator.kubectl_plugin.top import show_top

            show_top(
                kubectl,
                options.name,
                as_json=_is_json(options),
                watch=options.watch,
                interval=options.interval,
            )
        case "chat":
            from llmservice_operator.kubectl_plugin.chat import ChatOptions, chat

            talk = ChatOptions(
                options.question,
                options.system,
                options.max_tokens,
                options.temperature,
                _is_json(options),
            )
            chat(kubectl, options.name, _endpoint(options), talk)
        case "bench":
            from llmservice_operator.kubectl_plugin.bench import BenchOptions, bench

            load = BenchOptions(
                options.seconds,
                options.clients,
                options.prompt_words,
                options.max_tokens,
                _is_json(options),
            )
            bench(kubectl, options.name, _endpoint(options), load)
    return 0


def _endpoint(options: argparse.Namespace) -> EndpointOptions:
    from llmservice_operator.kubectl_plugin.endpoint import EndpointOptions

    return EndpointOptions(
        options.url,
        options.ca_file,
        options.api_key_file,
        options.key_name,
        options.model,
        options.timeout,
    )


def _is_json(options: argparse.Namespace) -> bool:
    return bool(options.output == "json")


def _kubectl_flags(options: argparse.Namespace) -> tuple[str, ...]:
    given = {name: getattr(options, name, None) for name in ("namespace", "context", "kubeconfig")}
    return tuple(f"--{name}={value}" for name, value in given.items() if value is not None)


def _parser() -> argparse.ArgumentParser:
    place = _place_parser()
    parser = argparse.ArgumentParser(
        prog="kubectl llm",
        description="Shows, tries and restarts language models that the LLMService operator runs.",
        parents=[place],
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_status(commands, place)
    _add_logs(commands, place)
    _add_restart(commands, place)
    _add_top(commands, place)
    _add_chat(commands, place)
    _add_bench(commands, place)
    add_file_commands(commands)
    return parser


def _place_parser() -> argparse.ArgumentParser:
    """Return the options that say where the service is. They may precede the subcommand."""
    parser = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    parser.add_argument(
        "-n", "--namespace", help="namespace of the service; default: that of the context"
    )
    parser.add_argument("--context", help="context of the kubeconfig; default: the current one")
    parser.add_argument("--kubeconfig", metavar="FILE", help="default: as for kubectl")
    return parser


def _add(
    commands: _Parsers[argparse.ArgumentParser],
    name: str,
    place: argparse.ArgumentParser,
    text: str,
    *,
    has_json: bool = False,
) -> argparse.ArgumentParser:
    """Add a subcommand about one service."""
    parser = commands.add_parser(name, parents=[place], help=text, description=text)
    parser.add_argument("name", metavar="NAME", help="name of the LLMService")
    if has_json:
        parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    return parser


def _add_status(
    commands: _Parsers[argparse.ArgumentParser], place: argparse.ArgumentParser
) -> None:
    text = "show the state of a service, what it waits for, and the next step"
    _add(commands, "status", place, text, has_json=True)


def _add_logs(commands: _Parsers[argparse.ArgumentParser], place: argparse.ArgumentParser) -> None:
    parser = _add(commands, "logs", place, "print the logs of the replicas or of the router")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    parser.add_argument(
        "-p", "--previous", action="store_true", help="logs before the last restart"
    )
    parser.add_argument("--router", action="store_true", help="logs of the router pods")
    parser.add_argument("--pod", metavar="POD", help="log of this pod only")
    parser.add_argument(
        "--tail", type=int, default=100, help="lines of each pod, -1 for all; default: 100"
    )
    parser.add_argument("--since", metavar="DURATION", help="no older lines, such as 5m")


def _add_restart(
    commands: _Parsers[argparse.ArgumentParser], place: argparse.ArgumentParser
) -> None:
    text = "replace all replicas in the order of rolloutStrategy, and wait for the end"
    parser = _add(commands, "restart", place, text)
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=1800,
        metavar="DURATION",
        help="longest wait, such as 30m; 0 does not wait; default: 30m",
    )
    parser.add_argument("--force", action="store_true", help="restart also during a rollout")
    parser.add_argument(
        "--allow-downtime",
        action="store_true",
        help="restart also if no replica serves requests in between",
    )


def _add_top(commands: _Parsers[argparse.ArgumentParser], place: argparse.ArgumentParser) -> None:
    text = "show the present load of each replica, and the picks of the router"
    parser = _add(commands, "top", place, text, has_json=True)
    parser.add_argument("-w", "--watch", action="store_true", help="go on until Ctrl-C")
    parser.add_argument(
        "--interval",
        type=_number(1, 3600),
        default=2,
        metavar="SECONDS",
        help="time between two tables of --watch; default: 2",
    )


def _add_chat(commands: _Parsers[argparse.ArgumentParser], place: argparse.ArgumentParser) -> None:
    parser = _add(commands, "chat", place, "ask a service, and stream the answer", has_json=True)
    parser.add_argument(
        "question",
        nargs="?",
        help="without it, the questions come from standard input; on a terminal, one after another",
    )
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--max-tokens", type=_number(1, 1_000_000), metavar="COUNT")
    parser.add_argument("--temperature", type=float, metavar="NUMBER")
    _add_endpoint(parser)


def _add_bench(commands: _Parsers[argparse.ArgumentParser], place: argparse.ArgumentParser) -> None:
    text = "send a short load, and show its latencies beside those of the status"
    parser = _add(commands, "bench", place, text, has_json=True)
    for flag, default, most, meaning in (
        ("--seconds", 15, 600, "time in which requests begin"),
        ("--clients", 4, 256, "requests at a time"),
        ("--prompt-words", 100, 100_000, "length of a prompt"),
        ("--max-tokens", 64, 100_000, "length of an answer"),
    ):
        parser.add_argument(
            flag,
            type=_number(1, most),
            default=default,
            metavar="COUNT",
            help=f"{meaning}, at most {most}; default: {default}",
        )
    _add_endpoint(parser)


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        help="address of the API, such as that of an ingress; default: a port-forward to the "
        "Service object, which leads to one of its pods",
    )
    parser.add_argument(
        "--model", help="value of `model` in requests; default: the first one that the API lists"
    )
    parser.add_argument(
        "--key-name",
        metavar="NAME",
        help="key in the Secret of spec.auth whose value is the API key; default: the first one",
    )
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="file with the API key, and no Secret"
    )
    parser.add_argument(
        "--ca-file", type=Path, metavar="FILE", help="authorities of the certificate of the API"
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=120,
        metavar="DURATION",
        help="longest wait for the next part of an answer; default: 2m",
    )


def _number(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers within bounds. It raises ArgumentTypeError."""

    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {least} to {most}")
        return int(text)

    return number


def _seconds(text: str) -> int:
    """Return a duration in seconds. Raises ArgumentTypeError."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text} is not a duration such as 90s, 30m or 2h")
    return int(found[1]) * _SECONDS[found[2] or "s"]
