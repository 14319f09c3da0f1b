"""A whole router pod as processes of its own, started by the command of the pod's container."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from llmservice_operator.router_settings import RouterSettings
from shared_support.waiting import eventually_in_loop


@dataclass
class PodProcess:
    """The supervisor's process and those below it."""

    settings: RouterSettings
    supervisor: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.client_port}"

    def pids(self) -> dict[int, str]:
        """Return the number and the name of each process of the pod."""
        return {pid: _name(pid) for pid in _with_children(self.supervisor.pid)}

    def pid(self, name: str) -> int | None:
        """Return the number of the process with this name; None if there is none."""
        return next((pid for pid, each in self.pids().items() if each == name), None)

    def end(self) -> int:
        self.supervisor.send_signal(signal.SIGTERM)
        return self.supervisor.wait(60)


@asynccontextmanager
async def pod_process(settings: RouterSettings, within: float = 120.0) -> AsyncIterator[PodProcess]:
    """Run a pod, and wait until it is ready and all its processes run."""
    supervisor = _start(settings)
    pod = PodProcess(settings, supervisor)
    try:
        async with asyncio.timeout(within), aiohttp.ClientSession() as client:
            while not await _is_ready(client, settings):
                assert supervisor.poll() is None, "the pod has ended"
                await asyncio.sleep(0.1)
        names = {"envoy", "picker", "forwarder"}
        await eventually_in_loop(lambda: names <= set(pod.pids().values()), within)
        yield pod
    finally:
        if supervisor.poll() is None:
            supervisor.kill()
            supervisor.wait()


def _start(settings: RouterSettings) -> subprocess.Popen[bytes]:
    with (settings.run_directory / "pod.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "llmservice_operator", "router"],
            stdout=log,
            stderr=log,
            # As in the image.
            env={**os.environ, **settings.environment(), "MALLOC_ARENA_MAX": "1"},
        )


async def _is_ready(client: aiohttp.ClientSession, settings: RouterSettings) -> bool:
    url = f"http://127.0.0.1:{settings.management_port}/readyz"
    with contextlib.suppress(aiohttp.ClientError):
        async with client.get(url) as answer:
            return answer.status == 200
    return False


def _with_children(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a process or thread ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _with_children(int(child))


def _name(pid: int) -> str:
    """Return the name of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
