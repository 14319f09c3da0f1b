"""Runs a server that only fills its model cache, and prints a line of JSON for each state.

It needs the environment variables of a model server. The only argument is the repository.
"""

import asyncio
import json
import os
import sys
import threading

from llmservice_server.download import ModelDownload, hub_model
from llmservice_server.failures import StartRefused
from llmservice_server.filling import OwnCache, shared_cache
from llmservice_server.lifecycle import Lifecycle, Phase
from llmservice_server.settings import ServerSettings

NEVER = threading.Event()


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def tell(lifecycle: Lifecycle) -> None:
    """Print the body of a probe's response each time it changes, without the ages."""
    said = None
    while True:
        body = {key: value for key, value in lifecycle.report().items() if "Seconds" not in key}
        if body != said:
            say(**body)
            said = body
        await asyncio.to_thread(NEVER.wait, 0.02)


async def fill(cache: OwnCache, lifecycle: Lifecycle, repository: str) -> None:
    model = hub_model(repository, None, "auto", None, None)
    assert model is not None
    download = ModelDownload(model)
    lifecycle.enter(Phase.DOWNLOADING)
    await asyncio.to_thread(download.look_up)
    await cache.fill_configuration(download)
    await cache.fill_weights(download)
    async with cache.compiling(["1.0", repository]):
        say(compiling=True)
        await asyncio.to_thread(NEVER.wait, 0.3)
        say(compiling=False)


async def main() -> int:
    lifecycle = Lifecycle()
    cache = shared_cache(ServerSettings.from_environment(os.environ), lifecycle)
    telling = asyncio.ensure_future(tell(lifecycle))
    try:
        await fill(cache, lifecycle, sys.argv[1])
    except StartRefused as error:
        say(failed=error.failure.reason)
        return 1
    finally:
        telling.cancel()
    return 0


if __name__ == "__main__":
    # As in the server, threads that still run end with the process.
    os._exit(asyncio.run(main()))
