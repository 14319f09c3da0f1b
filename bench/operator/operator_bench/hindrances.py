"""Servers and webhooks that hang while the operator is measured."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmservice_operator.kinds import NETWORK_POLICIES
from operator_support.processes import Api
from operator_support.webhook import webhook


@contextlib.contextmanager
def hanging_server() -> Iterator[str]:
    """Yield the URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def hanging_webhook(namespace: str, folder: Path) -> Iterator[None]:
    """Make every NetworkPolicy write in the namespace wait for a webhook that hangs.

    The API server gives up after its time limit.
    """
    released = threading.Event()

    def hang(_: dict[str, Any]) -> dict[str, Any]:
        released.wait(60)  # the API server waits for 10 s
        return {}

    kind = NETWORK_POLICIES
    with webhook(Api(), namespace, kind.plural, kind.group, folder, hang):
        try:
            yield
        finally:
            released.set()
