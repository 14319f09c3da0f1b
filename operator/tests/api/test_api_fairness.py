"""Tests that a slow webhook or metrics server elsewhere does not delay a service."""

import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES
from operator_support.forked import ForkedOperator
from operator_support.processes import Api, make_service, until_settled
from operator_support.webhook import webhook
from shared_support.waiting import eventually

SLOW_SECONDS = 9.0
"""Delay of a webhook in seconds, within the API server's limit of ten seconds."""
SOON_SECONDS = 7.0
"""Time limit in seconds: less than SLOW_SECONDS, and enough for a pass on a busy machine."""


@pytest.fixture
def quiet(api: Api) -> Iterator[str]:
    name = f"quiet-{uuid.uuid4().hex[:8]}"
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    yield name
    api.request("DELETE", f"/api/v1/namespaces/{name}")


def until_deployed(api: Api, namespace: str, name: str) -> None:
    eventually(lambda: api.read(DEPLOYMENTS, namespace, name), SOON_SECONDS)


def test_a_namespace_with_a_slow_webhook_delays_no_other(
    api: Api, namespace: str, quiet: str, log: Path, tmp_path: Path
) -> None:
    over = threading.Event()

    def hesitate(_: dict[str, Any]) -> dict[str, Any]:
        over.wait(SLOW_SECONDS)
        return {}

    watched = {"WATCH_NAMESPACES": f"{namespace},{quiet}"}
    with (
        ForkedOperator(log, namespace, **watched) as operator,
        webhook(api, namespace, "deployments", "apps", tmp_path, hesitate) as reviewed,
    ):
        operator.until_leading()
        for number in range(30):
            api.create(LLMSERVICES, make_service(f"llm-{number}", namespace))
        eventually(lambda: reviewed, 15, "the webhook is asked")
        for number in range(3):
            api.create(LLMSERVICES, make_service(f"llm-{number}", quiet))
            until_deployed(api, quiet, f"llm-{number}")
        assert len(api.list_all(DEPLOYMENTS, namespace)) < 30
        over.set()


def test_a_metrics_server_that_hangs_delays_no_service(api: Api, namespace: str, log: Path) -> None:
    with socket.socket() as hangs:
        hangs.bind(("127.0.0.1", 0))
        hangs.listen(1000)
        url = f"http://127.0.0.1:{hangs.getsockname()[1]}"
        settings = {"WATCH_NAMESPACES": namespace, "METRICS_SERVER_URL": url}
        with ForkedOperator(log, namespace, **settings) as operator:
            operator.until_leading()
            scaled = {"maxReplicas": 4}
            for number in range(60):
                service = make_service(f"scaled-{number}", namespace, autoscaling=scaled)
                api.create(LLMSERVICES, service)
            eventually(lambda: len(api.list_all(DEPLOYMENTS, namespace)) == 60, 60)
            # On a busy machine, the statuses of so many services take longer than what is measured.
            until_settled(operator)
            for number in range(3):
                api.create(LLMSERVICES, make_service(f"llm-{number}", namespace))
                until_deployed(api, namespace, f"llm-{number}")
