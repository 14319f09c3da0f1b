"""Fixtures for an echo application, a real listener in front of it, and the listener's client."""

from collections.abc import AsyncIterator

import pytest

from llmservice_server.listener import Listener, bind
from server_support.listener import Echo, Raw


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def listener(echo: Echo) -> AsyncIterator[Listener]:
    started = Listener(echo, bind(0))
    started.start()
    yield started
    echo.go_on.set()
    await started.stop()


@pytest.fixture
async def client(listener: Listener) -> AsyncIterator[Raw]:
    opened = await Raw.open(listener)
    yield opened
    opened.writer.close()
