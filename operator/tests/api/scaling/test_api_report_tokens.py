"""Tests that the metrics server admits only certain ServiceAccounts, with a real API server."""

import base64
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from llmservice_operator import rights
from llmservice_operator.kinds import LLMSERVICES
from llmservice_operator.names import (
    LOAD_REPORTS_PATH,
    METRICS_SERVER_AUDIENCE,
    WAKES_PATH,
    load_report_path,
)
from operator_support.accounts import Account
from operator_support.forked import ForkedOperator
from operator_support.metrics import MetricsServerProcess
from operator_support.processes import Api, make_service
from shared_support.waiting import eventually

pytestmark = pytest.mark.local

SERVICE = "llm"
OPERATORS = "llmservice-operator"
"""Lease of the operators."""
READER, KEDA, STRANGER = "reader", "keda-reader", "stranger"
OTHER_AUDIENCE = "https://kubernetes.default.svc"
"""Audience of the API server."""


@dataclass
class World:
    api: Api
    namespace: str
    server: MetricsServerProcess

    def token(self, account: str, audience: str = METRICS_SERVER_AUDIENCE) -> str:
        accounts = f"/api/v1/namespaces/{self.namespace}/serviceaccounts"
        spec = {"audiences": [audience], "expirationSeconds": 600}
        made: str = self.api.request("POST", f"{accounts}/{account}/token", {"spec": spec})[
            "status"
        ]["token"]
        return made

    def ask(self, path: str, token: str | None = None) -> tuple[int, str]:
        """Return the status and the message of an answer."""
        url = f"http://127.0.0.1:{self.server.scaling_port}{path}"
        request = urllib.request.Request(url)
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, ""
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())["message"]
        except OSError:
            return 0, ""


@pytest.fixture
def world(api: Api, namespace: str, account: Account, tmp_path: Path) -> Iterator[World]:
    watched = rights.rules((*rights.METRICS_SERVER, *rights.TOKEN_CHECKS))
    own = rights.rules((*rights.lease_rights("metrics"), *rights.operator_lease_rights(OPERATORS)))
    kubeconfig = account(watched, own, everywhere=True)
    for name in (READER, KEDA, STRANGER):
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        api.request("POST", path, {"metadata": {"name": name}})
    api.create(LLMSERVICES, make_service(SERVICE, namespace))
    settings = {
        "KUBECONFIG": kubeconfig,
        "LEASE_NAME": "metrics",
        "METRICS_API": "false",
        "REPORT_READERS": f"{namespace}/{READER}",
        "KEDA": "true",
        "KEDA_READER": KEDA,
        "OPERATOR_LEASE_NAME": OPERATORS,
    }
    with MetricsServerProcess(tmp_path / "metrics", namespace, **settings) as server:
        world = World(api, namespace, server)
        one = load_report_path(namespace, SERVICE)
        eventually(lambda: world.ask(one, world.token(READER))[0] == 200)
        yield world


def test_only_tokens_of_listed_accounts_for_the_audience_are_accepted(world: World) -> None:
    one = load_report_path(world.namespace, SERVICE)
    elsewhere = load_report_path("default", SERVICE)
    wakes = f"{WAKES_PATH}?wait=0"
    reader, kedas, strangers = (world.token(it) for it in (READER, KEDA, STRANGER))

    for path in (LOAD_REPORTS_PATH, wakes, one):
        assert world.ask(path, reader) == (200, "")
        assert world.ask(path)[0] == 401
        assert world.ask(path, world.token(READER, OTHER_AUDIENCE))[0] == 401
        assert world.ask(path, strangers)[0] == 403
        assert world.ask(path, "no.jwt.token")[0] == 401
    assert world.ask(one, kedas) == (200, "")
    assert [world.ask(it, kedas)[0] for it in (LOAD_REPORTS_PATH, wakes, elsewhere)] == [403] * 3

    # The signature is that of the cluster, so that only the time makes the difference.
    assert world.ask(one, signed_again(reader))[0] == 200
    expired = {"iat": 1_000_000_000, "nbf": 1_000_000_000, "exp": 1_000_003_600}
    status, said = world.ask(one, signed_again(reader, **expired))
    assert (status, "send one that has not expired" in said) == (401, True)


def test_an_operator_sends_its_token_and_only_an_earlier_one_is_answered_without(
    world: World, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{world.server.scaling_port}"
    settings = {"WATCH_NAMESPACES": world.namespace, "METRICS_SERVER_URL": url}
    with ForkedOperator(tmp_path / "earlier", world.namespace, **settings):
        eventually(lambda: world.ask(LOAD_REPORTS_PATH)[0] == 200)

    token = tmp_path / "token"
    token.write_text(world.token(STRANGER))
    with ForkedOperator(
        tmp_path / "operator", world.namespace, TOKEN_FILE=str(token), **settings
    ) as operator:
        eventually(lambda: world.ask(LOAD_REPORTS_PATH)[0] == 401)
        eventually(lambda: "may not read this" in operator.log.read_text())
        token.write_text(world.token(READER))
        eventually(lambda: f"{url}{LOAD_REPORTS_PATH} answers again" in operator.log.read_text())
    for log in (operator.log, world.server.log):
        assert token.read_text() not in log.read_text()


def signed_again(token: str, **claims: Any) -> str:
    """Return a token with changed claims, signed with the cluster's key."""
    head, body, _ = token.split(".")
    changed = json.loads(_decoded(body)) | claims
    signed = f"{head}.{_encoded(json.dumps(changed).encode())}"
    pem = (Path(os.environ["KUBECONFIG"]).parent / "pki" / "sa.key").read_bytes()
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{_encoded(b''.join(it.to_bytes(32) for it in signature))}"


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
