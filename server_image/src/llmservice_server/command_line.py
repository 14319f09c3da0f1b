"""Command line of the model server: reads engine flags and returns an exit code."""

import asyncio
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import NoReturn

from llmservice_server import logs
from llmservice_server.settings import InvalidSetting, ServerSettings

logger = logging.getLogger(__name__)

HELP = """\
usage: llmservice-server --model=MODEL [engine flags]
       llmservice-server --help | --help-engine | --version

Serves a model with vLLM: /v1/* and POST /generate on one port, probes and metrics on another.
Engine flags are those of `vllm serve`, except the ones of its HTTP listener (--host, --port, ...);
--help-engine lists them (it imports vLLM, which takes some seconds).

environment:
  LLMSERVICE_API_PORT               port of the API (8000)
  LLMSERVICE_MANAGEMENT_PORT        port of /livez /startupz /readyz /metrics (9090)
  LLMSERVICE_PRE_STOP_SECONDS       time to serve requests after SIGTERM (5)
  LLMSERVICE_DRAIN_TIMEOUT_SECONDS  maximum time to finish requests after that (600)
  LLMSERVICE_REQUEST_TIMEOUT_SECONDS  maximum time of a request; 0: no limit (600)
  LLMSERVICE_ENGINE_HANG_SECONDS    time without an engine step until not alive (120)
  LLMSERVICE_MAX_BODY_BYTES         maximum size of a request body (16777216)
  LLMSERVICE_MAX_CHOICES            maximum `n` of a request (128)
  LLMSERVICE_API_KEYS_DIRECTORY     folder with one API key per file; unset: no key
  LLMSERVICE_ISOLATE_PREFIX_CACHE   true shares no cached prompt between keys (false)
  LLMSERVICE_CA_BUNDLE              file of authorities to trust in addition
  LLMSERVICE_ADAPTERS_FILE          list of LoRA adapters, which the server follows
  LLMSERVICE_MAX_ADAPTER_BYTES      maximum size of an adapter's weights (4294967296)
  LLMSERVICE_SMOKE_TEST             false sends no request before it is ready (true)
  LLMSERVICE_SMOKE_TEST_PROMPT      prompt of that request
  LLMSERVICE_SMOKE_TEST_EXPECT      RE2 pattern that must occur in its answer
  LLMSERVICE_SMOKE_TEST_TIMEOUT_SECONDS  maximum time of its answer (60)
  LLMSERVICE_SHARED_CACHE_DIRECTORY model cache that several servers share
  LLMSERVICE_CACHE_TAKEOVER_SECONDS time until another server fills it (60)
  LLMSERVICE_ADMINISTRATION_ROUTES  true opens vLLM's administration routes (false)
  LLMSERVICE_SLO_TTFT_MILLISECONDS  limit of the time to first token for /autoscale
  LLMSERVICE_SLO_ITL_MILLISECONDS   limit of the time between tokens for /autoscale
  LLMSERVICE_TERMINATION_LOG        file for the reason of a failure (/dev/termination-log)
  HF_ENDPOINT, HF_TOKEN, HF_HOME    address, token and cache of the hub
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit code. A started server exits the process itself."""
    if "--help" in arguments or "-h" in arguments:
        print(HELP, end="")
        return 0
    if "--version" in arguments:
        print(metadata.version("llmservice-server"))
        return 0
    if "--help-engine" in arguments:
        return _print_engine_help()
    try:
        settings = ServerSettings.from_environment(os.environ)
    except InvalidSetting as error:
        print(f"llmservice-server: {error}", file=sys.stderr)
        return 2
    logs.configure()
    _serve(arguments, settings)


def _print_engine_help() -> int:
    from llmservice_server.compat import load_vllm

    vllm = load_vllm()
    vllm.make_arg_parser(vllm.FlexibleArgumentParser(prog="llmservice-server")).print_help()
    return 0


def _serve(arguments: Sequence[str], settings: ServerSettings) -> NoReturn:
    """Run the server and exit with its exit code.

    The process exits without waiting for its threads, because an import or a load that is in
    progress at SIGTERM would delay the exit for minutes.
    """
    from llmservice_server.listener import PortUnavailable
    from llmservice_server.serve import Server

    with asyncio.Runner(loop_factory=_event_loop_factory()) as runner:
        try:
            code = runner.run(Server(arguments, settings).run())
        except PortUnavailable as error:
            logger.error("%s", error)
            code = 1
        except BaseException:
            logger.exception("the server failed")
            code = 1
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's event loop factory; None if uvloop, a dependency of vLLM, is missing."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
