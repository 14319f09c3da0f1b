"""Tests on a real API server that namespaces are deleted again after the operator has withdrawn its
APIService, and that nothing of another component is touched.
"""

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from llmservice_operator.cluster import Cluster
from llmservice_operator.external_api import has_no_server
from llmservice_operator.kinds import API_SERVICES
from llmservice_operator.metrics_server.registration import Endpoint, build_api_service
from llmservice_operator.telemetry import Metrics
from llmservice_operator.withdrawal import API_SERVICE, Withdrawal
from operator_support.processes import Api
from shared_support.waiting import eventually, holds_for

SERVICE = "metrics-without-pods"


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = await Cluster.connect(Metrics(), "test")
    yield cluster
    await cluster.close()


@pytest.fixture
def service(api: Api, namespace: str) -> Iterator[str]:
    """Namespace with the Service object of a metrics server, behind which there is no pod."""
    spec = {"selector": {"app": "nothing"}, "ports": [{"port": 443}]}
    path = f"/api/v1/namespaces/{namespace}/services"
    api.request("POST", path, {"metadata": {"name": SERVICE}, "spec": spec})
    yield namespace
    if api.read(API_SERVICES, "", API_SERVICE) is not None:
        api.request("DELETE", API_SERVICES.path(name=API_SERVICE))


def register(api: Api, namespace: str) -> None:
    manifest = build_api_service(Endpoint(namespace, SERVICE, 443), "", None)
    del manifest["spec"]["caBundle"]
    manifest["spec"]["insecureSkipTLSVerify"] = True
    api.request("POST", API_SERVICES.path(), manifest)


def live(api: Api) -> dict[str, object] | None:
    return api.read(API_SERVICES, "", API_SERVICE)


async def test_a_namespace_is_deleted_once_the_api_service_without_a_server_is_withdrawn(
    api: Api, cluster: Cluster, service: str
) -> None:
    register(api, service)
    eventually(lambda: (found := live(api)) is not None and has_no_server(found))
    doomed = f"/api/v1/namespaces/doomed-{uuid.uuid4().hex[:8]}"
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": doomed.rpartition("/")[2]}})
    api.request("DELETE", doomed)

    def conditions() -> dict[str, str]:
        found = api.request("GET", doomed)["status"].get("conditions", ())
        return {each["type"]: each["status"] for each in found}

    eventually(lambda: conditions().get("NamespaceDeletionDiscoveryFailure") == "True")

    await Withdrawal(cluster, service, SERVICE, away_seconds=0).check()

    assert live(api) is None
    eventually(lambda: not namespace_exists(api, doomed), 60)
    register(api, service)
    assert live(api) is not None


def namespace_exists(api: Api, path: str) -> bool:
    name = path.rpartition("/")[2]
    found = api.request("GET", "/api/v1/namespaces")["items"]
    return name in [each["metadata"]["name"] for each in found]


async def test_an_api_service_that_another_component_has_registered_meanwhile_stays(
    api: Api, cluster: Cluster, service: str
) -> None:
    withdrawal = Withdrawal(cluster, service, SERVICE, away_seconds=0)
    register(api, service)
    eventually(lambda: (found := live(api)) is not None and has_no_server(found))
    api.request("DELETE", API_SERVICES.path(name=API_SERVICE))
    foreign = build_api_service(Endpoint(service, "adapter", 443), "", None)
    del foreign["spec"]["caBundle"]
    foreign["metadata"]["labels"] = {}
    api.request("POST", API_SERVICES.path(), foreign)
    eventually(lambda: (found := live(api)) is not None and has_no_server(found))

    await withdrawal.check()

    holds_for(1, lambda: live(api) is not None)
