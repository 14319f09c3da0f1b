"""Tests external.metrics.k8s.io over real TLS, with authorities and certificates of the test."""

import asyncio
import gc
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from llmservice_operator.api import Manifest
from llmservice_operator.api.load_report import LoadReport, ReplicaLoad
from llmservice_operator.cluster import Cluster, Key
from llmservice_operator.errors import ClusterError
from llmservice_operator.kinds import CONFIG_MAPS, Kind
from llmservice_operator.metrics_server.external_metrics import create_external_metrics_app
from llmservice_operator.metrics_server.front_proxy import (
    CONFIG_NAME,
    CONFIG_NAMESPACE,
    FrontProxy,
)
from llmservice_operator.metrics_server.secure_server import SecureServer
from localkube.pki import Authority, Certificate
from operator_support.processes import free_port, utc_now
from shared_support.waiting import PATIENCE, eventually_in_loop

NOW = utc_now()
HOST = "metrics.llm.svc"
ROOT = "/apis/external.metrics.k8s.io/v1beta1"
DEMAND = f"{ROOT}/namespaces/ml/llm_gpu_demand_percent"
USER = {"X-Remote-User": "system:serviceaccount:kube-system:horizontal-pod-autoscaler"}


def report(demand: float | None, **change: Any) -> LoadReport:
    fields: dict[str, Any] = {
        "at": NOW.timestamp(),
        "demand_percent": demand,
        "target_percent": 85.0,
        "message": "2 of 3 Ready replicas do not answer; look at their logs.",
        "cold_start_seconds": 60.0,
        "scale_down_window_seconds": 90.0,
    }
    return LoadReport(**(fields | change))


class Configuration:
    """A cluster that may be unreachable, with the one ConfigMap that the server reads."""

    def __init__(self, authority: Path, names: str = '["front-proxy-client"]') -> None:
        self.error: ClusterError | None = None
        self.reads = 0
        self._manifest = self._built(authority, names)

    def change(self, authority: Path) -> None:
        self._manifest = self._built(authority, '["front-proxy-client"]')

    async def read(self, kind: Kind, namespace: str, name: str) -> Manifest:
        assert (kind, namespace, name) == (CONFIG_MAPS, CONFIG_NAMESPACE, CONFIG_NAME)
        self.reads += 1
        if self.error is not None:
            raise self.error
        return self._manifest

    @staticmethod
    def _built(authority: Path, names: str) -> Manifest:
        return {
            "metadata": {
                "namespace": CONFIG_NAMESPACE,
                "name": CONFIG_NAME,
                "resourceVersion": "2",
            },
            "data": {
                "requestheader-client-ca-file": authority.read_text(),
                "requestheader-allowed-names": names,
                "requestheader-username-headers": '["X-Remote-User"]',
                "requestheader-group-headers": '["X-Remote-Group"]',
                "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
            },
        }


@dataclass
class Server:
    """The HTTPS port of a metrics server, and the authorizer of its clients."""

    folder: Path
    port: int = field(default_factory=free_port)
    reports: dict[Key, LoadReport] = field(default_factory=dict)
    reviews: list[Mapping[str, Any]] = field(default_factory=list)
    allows: bool = True
    authorizer_is_away: bool = False

    def __post_init__(self) -> None:
        for authority in ("front-proxy-ca", "next-ca", "foreign-ca"):
            made = Authority(self.folder, authority, NOW)
            made.issue(Certificate(f"{authority}-client", "front-proxy-client"))
            made.issue(Certificate(f"{authority}-other", "somebody-else"))
        self.configuration = Configuration(self.folder / "front-proxy-ca.crt")
        self.secure = SecureServer(
            cast(Cluster, self.configuration), self.port, [HOST], utc_now, poll_seconds=0.02
        )

    async def review(self, spec: Mapping[str, Any]) -> bool:
        self.reviews.append(spec)
        if self.authorizer_is_away:
            raise ClusterError("no answer")
        return self.allows

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Server"]:
        app = create_external_metrics_app(
            lambda: self.reports,
            lambda: self.secure.front_proxy,
            self.review,
            now=NOW.timestamp,
        )
        running = asyncio.create_task(self.secure.run(app))
        await asyncio.wait_for(self.secure.serving.wait(), PATIENCE)
        try:
            yield self
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def client(self, certificate: str | None) -> ssl.SSLContext:
        """Return the TLS context of a client that trusts the caBundle, as the API server does."""
        context = ssl.create_default_context(cadata=self.secure.authority().decode())
        if certificate is not None:
            context.load_cert_chain(
                self.folder / f"{certificate}.crt", self.folder / f"{certificate}.key"
            )
        return context

    async def get(
        self,
        path: str,
        headers: Any = USER,
        certificate: str | None = "front-proxy-ca-client",
    ) -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(
                f"https://127.0.0.1:{self.port}{path}",
                headers=headers,
                ssl=self.client(certificate),
                server_hostname=HOST,
            ) as answer,
        ):
            return answer.status, await answer.json()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with Server(tmp_path).serving() as it:
        yield it


async def test_the_demand_is_a_quantity_with_its_time(server: Server) -> None:
    server.reports["ml", "qwen"] = report(255.3)

    status, body = await server.get(f"{DEMAND}?labelSelector=llmservice%3Dqwen")

    assert status == 200
    assert body["kind"] == "ExternalMetricValueList"
    assert body["apiVersion"] == "external.metrics.k8s.io/v1beta1"
    assert body["items"] == [
        {
            "metricName": "llm_gpu_demand_percent",
            "metricLabels": {"llmservice": "qwen"},
            "timestamp": NOW.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "windowSeconds": 60,
            "value": "255000m",
        }
    ]


@pytest.mark.parametrize(
    ("percent", "replicas", "told"), [(141.4, 2, "142000m"), (140.9, 2, "140000m"), (0.4, 1, "0m")]
)
async def test_each_replica_carries_a_whole_percent_as_kubectl_prints_it(
    server: Server, percent: float, replicas: int, told: str
) -> None:
    pods = tuple(ReplicaLoad(pod=f"qwen-{i}", is_ready=True) for i in range(replicas))
    server.reports["ml", "qwen"] = report(percent, replicas=pods)

    _, body = await server.get(f"{DEMAND}?labelSelector=llmservice%3Dqwen")

    assert body["items"][0]["value"] == told


async def test_an_unknown_demand_is_an_error_that_says_why_and_never_a_number(
    server: Server,
) -> None:
    server.reports["ml", "qwen"] = report(None, missing="ReplicasMissing")

    status, body = await server.get(f"{DEMAND}?labelSelector=llmservice%3Dqwen")

    assert status == 503
    assert (body["kind"], body["status"], body["code"]) == ("Status", "Failure", 503)
    assert body["message"] == "2 of 3 Ready replicas do not answer; look at their logs."


async def test_one_unknown_service_makes_the_sum_of_all_unknown(server: Server) -> None:
    server.reports.update({("ml", "a"): report(10), ("ml", "b"): report(20)})
    server.reports["other", "c"] = report(30)
    _, body = await server.get(DEMAND)
    assert [it["value"] for it in body["items"]] == ["10000m", "20000m"]

    server.reports["ml", "b"] = report(None)
    assert (await server.get(DEMAND))[0] == 503


async def test_a_report_that_is_a_minute_old_is_unknown(server: Server) -> None:
    server.reports["ml", "qwen"] = report(50, at=NOW.timestamp() - 100)

    status, body = await server.get(f"{DEMAND}?labelSelector=llmservice%3Dqwen")

    assert status == 503
    assert body["message"].startswith("the metrics server has not looked at qwen for ")


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("llm_gpu_duty_cycle_percent", "190000m"),
        ("llm_kv_cache_usage_percent", "40000m"),
        ("llm_requests_waiting", "7000m"),
    ],
)
async def test_other_metrics_can_be_chosen(server: Server, metric: str, value: str) -> None:
    server.reports["ml", "qwen"] = report(
        None, gpu_duty_cycle_percent=190, kv_cache_percent=40, requests_waiting=7
    )

    _, body = await server.get(f"{ROOT}/namespaces/ml/{metric}?labelSelector=llmservice%3Dqwen")

    assert [it["value"] for it in body["items"]] == [value]


async def test_a_duty_cycle_without_a_gpu_is_unknown_and_the_message_says_so(
    server: Server,
) -> None:
    server.reports["ml", "qwen"] = report(50, kv_cache_percent=40)

    status, body = await server.get(f"{ROOT}/namespaces/ml/llm_gpu_duty_cycle_percent")

    assert (status, body["message"]) == (
        503,
        "no replica reports a GPU duty cycle: choose another autoscaling metric",
    )


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        (f"{DEMAND}?labelSelector=llmservice%3Dnone", 404, "knows no LLMService none in namespace"),
        (f"{DEMAND}?labelSelector=app%3Dqwen", 400, "write matchLabels llmservice: NAME"),
        (f"{DEMAND}?labelSelector=llmservice+in+(a)", 400, "write matchLabels llmservice: NAME"),
        (f"{DEMAND}?labelSelector=llmservice%3Da%2Cx%3Dy", 400, "write matchLabels"),
        (f"{ROOT}/namespaces/ml/unheard_of", 404, "there is no metric unheard_of"),
        ("/openapi/v3", 404, "there is nothing at /openapi/v3"),
    ],
)
async def test_a_missing_path_is_reported_in_a_status(
    server: Server, path: str, status: int, message: str
) -> None:
    found, body = await server.get(path)

    assert (found, body["code"]) == (status, status)
    assert message in body["message"]


async def test_discovery_lists_every_metric(server: Server) -> None:
    _, group = await server.get("/apis/external.metrics.k8s.io")
    _, resources = await server.get(ROOT)

    assert group["preferredVersion"]["groupVersion"] == "external.metrics.k8s.io/v1beta1"
    assert [it["name"] for it in resources["resources"]] == [
        "llm_gpu_demand_percent",
        "llm_gpu_duty_cycle_percent",
        "llm_kv_cache_usage_percent",
        "llm_requests_waiting",
    ]
    assert all(it["namespaced"] and it["verbs"] == ["get"] for it in resources["resources"])


@pytest.mark.parametrize("certificate", [None, "foreign-ca-client"])
async def test_a_client_without_a_certificate_of_the_front_proxy_is_refused(
    server: Server, certificate: str | None
) -> None:
    with pytest.raises(aiohttp.ClientError):
        await server.get(ROOT, certificate=certificate)

    assert server.reviews == []


async def test_a_certificate_with_another_name_is_refused(server: Server) -> None:
    status, body = await server.get(ROOT, certificate="front-proxy-ca-other")

    assert (status, body["reason"]) == (401, "Unauthorized")
    assert server.reviews == []


async def test_a_request_that_names_no_user_is_refused(server: Server) -> None:
    status, body = await server.get(ROOT, headers={})

    assert (status, body["message"]) == (401, "the request names no user")
    assert server.reviews == []


async def test_the_authorizer_gets_the_user_with_groups_and_extra(server: Server) -> None:
    server.reports["ml", "qwen"] = report(10)
    headers = [
        ("X-Remote-User", "jane"),
        ("X-Remote-Group", "developers"),
        ("X-Remote-Group", "system:authenticated"),
        ("X-Remote-Extra-Acme.com%2fproject", "some-project"),
    ]

    await server.get(DEMAND, headers=headers)
    await server.get(ROOT, headers=headers)

    user = {
        "user": "jane",
        "groups": ["developers", "system:authenticated"],
        "extra": {"acme.com/project": ["some-project"]},
    }
    attributes = {
        "group": "external.metrics.k8s.io",
        "version": "v1beta1",
        "resource": "llm_gpu_demand_percent",
        "namespace": "ml",
        "verb": "list",
    }
    assert server.reviews == [
        {**user, "resourceAttributes": attributes},
        {**user, "nonResourceAttributes": {"path": ROOT, "verb": "get"}},
    ]


@pytest.mark.parametrize(
    ("groups", "asked_for"),
    [
        ([], ["system:authenticated"]),
        (["developers"], ["developers", "system:authenticated"]),
        (["system:unauthenticated"], ["system:unauthenticated"]),
    ],
    ids=["the API server itself", "somebody", "a stranger"],
)
async def test_a_user_of_the_api_server_has_the_group_of_authenticated_users(
    server: Server, groups: list[str], asked_for: list[str]
) -> None:
    headers = [("X-Remote-User", "system:kube-aggregator")]
    await server.get(ROOT, headers=[*headers, *(("X-Remote-Group", each) for each in groups)])
    assert server.reviews[-1]["groups"] == asked_for


async def test_a_user_without_rights_is_refused_and_the_answer_remembered(server: Server) -> None:
    server.allows = False
    server.reports["ml", "qwen"] = report(10)

    for _ in range(2):
        status, body = await server.get(DEMAND, headers={"X-Remote-User": "eve"})
        assert (status, body["message"]) == (403, "user 'eve' may not read this")

    assert len(server.reviews) == 1


async def test_without_an_authorizer_every_client_is_refused(server: Server) -> None:
    server.authorizer_is_away = True

    status, body = await server.get(DEMAND)

    assert status == 503
    assert "rights cannot be looked up" in body["message"]


# If a change of the listener interrupts a handshake, the garbage collector closes the socket. It
# must do so in this test, because any other test would report the warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_rotated_authorities_are_valid_at_once_and_the_old_ones_are_not(
    server: Server,
) -> None:
    assert (await server.get(ROOT))[0] == 200
    with pytest.raises(aiohttp.ClientError):
        await server.get(ROOT, certificate="next-ca-client")

    server.configuration.change(server.folder / "next-ca.crt")

    async def follows() -> bool:
        try:
            return (await server.get(ROOT, certificate="next-ca-client"))[0] == 200
        except aiohttp.ClientError:
            return False

    async with asyncio.timeout(PATIENCE):
        while not await follows():
            pass
    with pytest.raises(aiohttp.ClientError):
        await server.get(ROOT)
    gc.collect()


async def test_authorities_that_cannot_be_read_stay_as_they_were(server: Server) -> None:
    server.configuration.error = ClusterError("no answer")
    reads = server.configuration.reads
    await eventually_in_loop(lambda: server.configuration.reads > reads + 2)

    assert (await server.get(ROOT))[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"requestheader-client-ca-file": "PEM"},
        {"requestheader-username-headers": '["X-Remote-User"]'},
        {"requestheader-client-ca-file": "PEM", "requestheader-username-headers": "X-Remote-User"},
    ],
)
def test_a_cluster_that_names_no_front_proxy_admits_nobody(data: dict[str, str]) -> None:
    assert FrontProxy.from_config({"data": data}) is None
