"""Commands that run one process of a router pod, without the supervisor that would fork it."""

import sys

from llmservice_operator.router_settings import RouterSettings

_RUN = """
import os, sys
from llmservice_operator.router.{name} import run_{name}
from llmservice_operator.router_settings import RouterSettings
from llmservice_operator.telemetry import configure_logging

configure_logging("INFO")
sys.exit(run_{name}(RouterSettings.from_environment(os.environ)))
"""


def command_of(name: str, settings: RouterSettings) -> tuple[str, ...]:
    """Return the command that runs the picker or the forwarder."""
    variables = (f"{variable}={text}" for variable, text in settings.environment().items())
    return ("env", *variables, sys.executable, "-c", _RUN.format(name=name))
