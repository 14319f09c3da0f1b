"""Starts the processes of a router pod."""

import asyncio
import gc
import os
from functools import partial

from llmservice_operator.router.forwarder import run_forwarder
from llmservice_operator.router.supervisor import Supervisor
from llmservice_operator.router.templates import Template, set_name
from llmservice_operator.router_settings import RouterSettings
from llmservice_operator.telemetry import configure_logging


def run_router() -> int:
    """Run the supervisor of a router pod until it is told to end, and return its exit status.

    Raises InvalidSettings.
    """
    settings = RouterSettings.from_environment(os.environ)
    configure_logging(settings.log_level)
    set_name("supervisor")
    # A garbage collection writes to each object that is not frozen, and so copies its page.
    gc.collect()
    gc.freeze()
    picker = Template("picker", partial(_run_picker, settings))
    # With Gateways, the supervisor never starts it.
    forwarder = Template("forwarder", partial(run_forwarder, settings))

    async def supervise() -> int:
        return await Supervisor(settings, picker.start, forwarder.start).run()

    return asyncio.run(supervise())


def _run_picker(settings: RouterSettings) -> int:
    # The import is local, because the other processes do not need gRPC.
    from llmservice_operator.router.picker import run_picker

    return run_picker(settings)
