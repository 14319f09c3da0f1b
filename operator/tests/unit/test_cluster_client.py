import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException

from llmservice_operator import names
from llmservice_operator.cluster import (
    Audit,
    Cache,
    Cluster,
    EventRecorder,
    Key,
    Lease,
    ServedKinds,
)
from llmservice_operator.cluster.client import LIST_CHUNK
from llmservice_operator.errors import ClusterError, Conflict, Forbidden, NotFound, Rejected
from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES

DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "llama", "namespace": "team"},
    "spec": {"replicas": 1},
}


class Server:
    """Sends prepared responses and records the requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.read: Callable[[str], Any] = json.loads
        self.answer: Callable[[web.Request], web.Response] = lambda _: web.json_response({})

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.text()
        parsed = self.read(body) if body else None
        self.requests.append((request.method, request.path, dict(request.query), parsed))
        return self.answer(request)

    def refuse(self, status: int, message: str = "no", **headers: str) -> None:
        self.answer = lambda _: web.json_response(
            {"kind": "Status", "message": message},
            status=status,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )


class Observer:
    def __init__(self) -> None:
        self.codes: list[tuple[str, str]] = []

    def request_finished(self, method: str, host: str, code: str, seconds: float) -> None:
        self.codes.append((method, code))


@pytest.fixture
def observer() -> Observer:
    return Observer()


@pytest.fixture
async def server() -> Server:
    return Server()


@pytest.fixture
async def cluster(server: Server, observer: Observer) -> AsyncIterator[Cluster]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    async with TestServer(app) as running:
        configuration = Configuration(host=str(running.make_url("")).rstrip("/"))
        cluster = Cluster(ApiClient(configuration), observer)
        yield cluster
        await cluster.close()


async def test_an_apply_uses_force_strict_validation_and_our_field_manager(
    cluster: Cluster, server: Server
) -> None:
    await cluster.apply(DEPLOYMENT)
    assert server.requests == [
        (
            "PATCH",
            "/apis/apps/v1/namespaces/team/deployments/llama",
            {"fieldManager": "llmservice-operator", "force": "true", "fieldValidation": "Strict"},
            DEPLOYMENT,
        )
    ]


@pytest.mark.parametrize("text", ["\U0001f600", "\x7f\x85\u2028", "\ufeffé", "\\ud83d", "\n\t\x00"])
async def test_an_apply_sends_every_character_so_that_yaml_reads_it_unchanged(
    cluster: Cluster, server: Server, text: str
) -> None:
    server.read = yaml.safe_load
    manifest = {**DEPLOYMENT, "spec": {"text": text}}
    await cluster.apply(manifest)
    assert server.requests[0][3] == manifest


async def test_the_uid_makes_an_apply_fail_on_any_other_object(
    cluster: Cluster, server: Server
) -> None:
    await cluster.apply(DEPLOYMENT, uid="42")
    assert server.requests[0][3]["metadata"]["uid"] == "42"
    assert "uid" not in DEPLOYMENT["metadata"]


async def test_a_create_has_a_version_that_no_object_has(cluster: Cluster, server: Server) -> None:
    await cluster.create(DEPLOYMENT)
    assert server.requests[0][3]["metadata"]["resourceVersion"] == "1"
    assert "resourceVersion" not in DEPLOYMENT["metadata"]


async def test_a_delete_removes_only_the_object_that_was_seen(
    cluster: Cluster, server: Server
) -> None:
    metadata = {"name": "llama", "namespace": "team", "uid": "42", "resourceVersion": "7"}
    await cluster.delete({**DEPLOYMENT, "metadata": metadata})
    method, _, _, body = server.requests[0]
    assert method == "DELETE"
    assert body["preconditions"] == {"uid": "42", "resourceVersion": "7"}
    server.refuse(404)
    await cluster.delete({**DEPLOYMENT, "metadata": metadata})
    server.refuse(409)
    with pytest.raises(Conflict):
        await cluster.delete({**DEPLOYMENT, "metadata": metadata})


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, Rejected),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (422, Rejected),
        (500, ClusterError),
    ],
)
async def test_every_refusal_becomes_an_error_with_the_servers_message(
    cluster: Cluster, server: Server, observer: Observer, status: int, error: type[ClusterError]
) -> None:
    server.refuse(status, 'cannot patch resource "deployments"')
    with pytest.raises(error, match='cannot patch resource "deployments"') as caught:
        await cluster.apply(DEPLOYMENT)
    assert caught.value.status == status
    assert observer.codes == [("PATCH", str(status))]


@pytest.mark.parametrize("status", [404, 409])
async def test_a_webhook_that_denies_a_request_does_not_tell_whether_an_object_exists(
    cluster: Cluster, server: Server, status: int
) -> None:
    server.refuse(status, 'admission webhook "keep.example.org" denied the request: keep it')
    metadata = {"name": "llama", "namespace": "team", "uid": "42", "resourceVersion": "7"}
    with pytest.raises(ClusterError, match="keep it") as caught:
        await cluster.delete({**DEPLOYMENT, "metadata": metadata})
    assert type(caught.value) is ClusterError


async def test_a_token_that_cannot_be_read_is_an_error_of_the_cluster(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster._client.configuration.api_key["BearerToken"] = "token"
    for error in (FileNotFoundError("token"), ConfigException("Token file exists but empty.")):

        async def refresh(_: Configuration, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(cluster._client.configuration, "refresh_api_key_hook", refresh)
        with pytest.raises(ClusterError, match="the credentials cannot be read"):
            await cluster.read(DEPLOYMENTS, "team", "llama")


async def test_requests_wait_as_long_as_an_overloaded_server_demands(
    cluster: Cluster, server: Server
) -> None:
    server.refuse(429, "too many requests", Retry_After="7")
    with pytest.raises(ClusterError) as caught:
        await cluster.read(DEPLOYMENTS, "team", "llama")
    assert caught.value.retry_after_seconds == 7.0
    for _ in range(3):
        with pytest.raises(ClusterError, match="not sent"):
            await cluster.apply(DEPLOYMENT)
    assert len(server.requests) == 1
    # Requests for the Lease are still sent, because a leader would lose the Lease otherwise.
    with pytest.raises(ClusterError, match="too many requests"):
        await Lease(cluster, "system", "operator").read_lease()
    assert len(server.requests) == 2


async def test_an_answer_that_is_no_json_is_quoted(cluster: Cluster, server: Server) -> None:
    server.answer = lambda _: web.Response(status=502, text="<h1>Bad gateway</h1>")
    with pytest.raises(ClusterError, match="502: <h1>Bad gateway"):
        await cluster.read(DEPLOYMENTS, "team", "llama")


async def test_a_missing_response_raises_an_error_of_the_project(
    observer: Observer, unused_tcp_port: int
) -> None:
    configuration = Configuration(host=f"http://127.0.0.1:{unused_tcp_port}")
    cluster = Cluster(ApiClient(configuration), observer)
    with pytest.raises(ClusterError, match=r"GET /apis/apps/v1/.*: no answer: "):
        await cluster.read(DEPLOYMENTS, "team", "llama")
    await cluster.close()
    assert observer.codes == [("GET", "error")]


async def test_a_missing_object_reads_as_none(cluster: Cluster, server: Server) -> None:
    server.refuse(404)
    assert await cluster.read(DEPLOYMENTS, "team", "llama") is None


async def test_a_list_is_read_in_pages_and_selects_only_our_objects(
    cluster: Cluster, server: Server
) -> None:
    def answer(request: web.Request) -> web.Response:
        first = "continue" not in request.query
        return web.json_response(
            {
                "items": [{"metadata": {"name": "a" if first else "b"}}],
                "metadata": {"continue": "next"} if first else {},
            }
        )

    server.answer = answer
    found = [live async for live in cluster.list_all(DEPLOYMENTS, None)]

    assert [live["metadata"]["name"] for live in found] == ["a", "b"]
    assert found[0]["kind"] == "Deployment"
    assert found[0]["apiVersion"] == "apps/v1"
    assert [request[1] for request in server.requests] == ["/apis/apps/v1/deployments"] * 2
    assert server.requests[0][2] == {
        "limit": str(LIST_CHUNK),
        "labelSelector": "app.kubernetes.io/managed-by=llmservice-operator",
    }
    assert server.requests[1][2]["continue"] == "next"


async def test_the_versions_of_all_objects_are_read_from_lists_of_their_metadata(
    cluster: Cluster, server: Server
) -> None:
    accepted = []

    def answer(request: web.Request) -> web.Response:
        accepted.append(request.headers["Accept"])
        first = "continue" not in request.query
        name, version = ("a", "7") if first else ("b", "9")
        metadata = {"name": name, "namespace": "team", "uid": "u", "resourceVersion": version}
        # A server that knows no partial objects sends whole ones.
        item = {"metadata": metadata, "spec": {"replicas": "no number"}}
        return web.json_response(
            {"items": [item], "metadata": {"continue": "next"} if first else {}}
        )

    server.answer = answer
    found = [page async for page in cluster.list_versions(DEPLOYMENTS, "team")]

    assert found == [{("team", "a"): 7}, {("team", "b"): 9}]
    assert {each.split(";")[1] for each in accepted} == {"as=PartialObjectMetadataList"}
    assert [request[1] for request in server.requests] == [DEPLOYMENTS.path("team")] * 2
    assert [request[2].get("continue") for request in server.requests] == [None, "next"]
    assert {request[2]["labelSelector"] for request in server.requests} == {
        "app.kubernetes.io/managed-by=llmservice-operator"
    }


@pytest.mark.parametrize(
    "ownership",
    ['{"f:a":' * 300 + "{}" + "}" * 300, '{"f:\\ud800": {}}'],
    ids=["nested deeply", "half a character"],
)
async def test_field_ownership_that_a_tenant_may_store_does_not_hide_the_versions(
    cluster: Cluster, server: Server, ownership: str
) -> None:
    metadata = '{"name": "%s", "namespace": "team", "resourceVersion": "7", "managedFields": [%s]}'
    items = ", ".join(
        f'{{"metadata": {metadata % each}}}' for each in (("bad", ownership), ("good", "{}"))
    )
    server.answer = lambda _: web.Response(
        text=f'{{"metadata": {{}}, "items": [{items}]}}', content_type="application/json"
    )

    found = [page async for page in cluster.list_versions(DEPLOYMENTS, "team")]

    assert found == [{("team", "bad"): 7, ("team", "good"): 7}]


async def test_an_empty_list_of_versions_has_no_items(cluster: Cluster, server: Server) -> None:
    server.answer = lambda _: web.json_response({"metadata": {}, "items": None})
    assert [page async for page in cluster.list_versions(DEPLOYMENTS, None)] == [{}]


async def test_after_the_lead_is_lost_only_the_lease_is_written(
    cluster: Cluster, server: Server
) -> None:
    cluster.may_write = lambda: False
    with pytest.raises(ClusterError, match="does not hold the lease"):
        await cluster.apply(DEPLOYMENT)
    assert server.requests == []
    server.answer = lambda _: web.json_response({"metadata": {}, "spec": {}})
    await Lease(cluster, "system", "operator").create_lease({"holderIdentity": "me"})
    assert server.requests[0][:2] == (
        "POST",
        "/apis/coordination.k8s.io/v1/namespaces/system/leases",
    )


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"text": "<html>Sign in</html>", "content_type": "text/html"}, id="html"),
        pytest.param({"text": '{"items": [{"metad'}, id="truncated"),
        pytest.param({"text": ""}, id="empty"),
        pytest.param({"text": "[]"}, id="a list"),
        pytest.param({"text": "null"}, id="null"),
        pytest.param({"text": "{}"}, id="an object without metadata"),
        pytest.param({"text": '{"metadata": null, "items": {}}'}, id="items that are no list"),
        pytest.param({"body": b"\xff\xfe"}, id="no text"),
    ],
)
async def test_an_answer_that_is_not_the_api_servers_is_an_error_of_the_cluster(
    cluster: Cluster, server: Server, answer: dict[str, Any]
) -> None:
    server.answer = lambda _: web.Response(**answer)
    with pytest.raises(ClusterError, match="not one of the API server"):
        await cluster.read(DEPLOYMENTS, "team", "llama")
    with pytest.raises(ClusterError, match="not one of the API server"):
        [each async for each in cluster.list_all(DEPLOYMENTS, "team")]
    with pytest.raises(ClusterError, match="not one of the API server"):
        [each async for each in cluster.list_versions(DEPLOYMENTS, "team")]
    with pytest.raises(ClusterError, match="not one of the API server"):
        await cluster.list_resources(DEPLOYMENTS.discovery_path)
    with pytest.raises(ClusterError, match="not one of the API server"):
        await Lease(cluster, "system", "lease").create_lease({})


@pytest.mark.parametrize("text", ["<html>no</html>", "[" * 100_000], ids=["html", "nested"])
@pytest.mark.parametrize("status", [403, 404, 409, 422])
async def test_a_page_of_a_proxy_does_not_tell_whether_an_object_exists(
    cluster: Cluster, server: Server, status: int, text: str
) -> None:
    server.answer = lambda _: web.Response(text=text, status=status)
    with pytest.raises(ClusterError) as raised:
        await cluster.read(DEPLOYMENTS, "team", "llama")
    assert type(raised.value) is ClusterError


async def test_a_path_at_which_the_api_server_serves_nothing_is_not_found(
    cluster: Cluster, server: Server
) -> None:
    server.answer = lambda _: web.Response(text="404 page not found\n", status=404)
    assert await cluster.read(DEPLOYMENTS, "team", "llama") is None


async def test_a_server_cannot_demand_an_endless_delay(cluster: Cluster, server: Server) -> None:
    server.refuse(429, Retry_After="99999999")
    with pytest.raises(ClusterError) as raised:
        await cluster.read(DEPLOYMENTS, "team", "llama")
    assert raised.value.retry_after_seconds == 300


async def test_a_holder_that_sends_a_token_is_named_by_an_annotation_of_its_lease(
    cluster: Cluster, server: Server
) -> None:
    live = {"metadata": {"name": "lease", "annotations": {"a": "b"}}, "spec": {}}
    server.answer = lambda _: web.json_response(live)
    sender = Lease(cluster, "system", "lease", sends_token=True)
    await sender.create_lease({"holderIdentity": "me"})
    await sender.replace_lease(live, {"holderIdentity": "me"})
    # A release of the Lease keeps the annotation.
    await sender.replace_lease(live, {"holderIdentity": ""})
    await Lease(cluster, "system", "lease").replace_lease(live, {"holderIdentity": "other"})

    annotations = [body["metadata"].get("annotations") for *_, body in server.requests]
    mine = {names.TOKEN_SENDER_ANNOTATION: "me"}
    assert annotations == [mine, {"a": "b", **mine}, {"a": "b"}, {"a": "b"}]
    assert [body["spec"]["holderIdentity"] for *_, body in server.requests] == [
        *("me", "me", "", "other")
    ]


async def test_an_emptied_lease_has_no_holder(cluster: Cluster, server: Server) -> None:
    metadata = {"name": "lease", "namespace": "system"}
    server.answer = lambda _: web.json_response({"metadata": metadata, "spec": None})
    assert await Lease(cluster, "system", "lease").read_lease() == {
        "metadata": metadata,
        "spec": {},
    }


AUDIENCE = "llmservice-metrics-server"


@pytest.mark.parametrize(
    ("status", "user"),
    [
        ({"authenticated": True, "user": {"username": "a"}, "audiences": [AUDIENCE]}, "a"),
        ({"authenticated": True, "user": {"username": "a"}, "audiences": ["other"]}, None),
        ({"authenticated": True, "user": {"username": "a"}}, None),
        ({"authenticated": True, "user": {}, "audiences": [AUDIENCE]}, None),
        ({"authenticated": False, "user": {"username": "a"}, "audiences": [AUDIENCE]}, None),
        ({"error": "expired"}, None),
        (None, None),
    ],
)
async def test_a_token_names_a_user_only_if_it_is_valid_for_the_audience(
    cluster: Cluster, server: Server, status: Any, user: str | None
) -> None:
    server.answer = lambda _: web.json_response({"status": status})
    assert await cluster.review_token("secret", AUDIENCE) == user
    ((method, path, _, body),) = server.requests
    assert (method, path) == ("POST", "/apis/authentication.k8s.io/v1/tokenreviews")
    assert body["spec"] == {"token": "secret", "audiences": [AUDIENCE]}


async def test_an_expired_token_is_read_again(
    server: Server, observer: Observer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)

    def answer(request: web.Request) -> web.Response:
        valid = request.headers["Authorization"] == "Bearer second"
        if valid:
            return web.json_response(DEPLOYMENT)
        return web.json_response({"message": "Unauthorized"}, status=401)

    server.answer = answer
    async with TestServer(app) as running:
        kubeconfig.write_text(kubeconfig_of(running, "first"))
        cluster = await Cluster.connect(observer, "replica")
        kubeconfig.write_text(kubeconfig_of(running, "second"))
        with pytest.raises(ClusterError, match="401"):
            await cluster.read(DEPLOYMENTS, "team", "llama")
        assert await cluster.read(DEPLOYMENTS, "team", "llama") is not None
        await cluster.close()


async def test_every_request_names_its_replica_and_accepts_only_plain_responses(
    observer: Observer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents: list[str] = []
    encodings: set[str] = set()

    async def answer(request: web.Request) -> web.Response:
        agents.append(request.headers["User-Agent"])
        encodings.add(request.headers["Accept-Encoding"])
        return web.json_response(DEPLOYMENT)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    kubeconfig = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    async with TestServer(app) as running:
        kubeconfig.write_text(kubeconfig_of(running, "token"))
        for identity in ("pod-a_1", "pod-b_2"):
            cluster = await Cluster.connect(observer, identity)
            await cluster.apply(DEPLOYMENT)
            await cluster.close()
    assert [agent.startswith("llmservice-operator/") for agent in agents] == [True, True]
    assert [agent.split()[-1] for agent in agents] == ["(pod-a_1)", "(pod-b_2)"]
    assert encodings == {"identity"}


def kubeconfig_of(running: BaseTestServer, token: str) -> str:
    server = str(running.make_url(""))
    return json.dumps(
        {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {"token": token}}],
        }
    )


SERVICE: dict[str, Any] = {
    "apiVersion": LLMSERVICES.api_version,
    "kind": "LLMService",
    "metadata": {"name": "llama", "namespace": "team", "uid": "42", "resourceVersion": "7"},
}


class WallClock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


async def test_a_repeated_event_increases_its_count_for_ten_minutes(
    cluster: Cluster, server: Server
) -> None:
    clock = WallClock()
    recorder = EventRecorder(cluster, "pod-1", clock)
    for _ in range(3):
        await recorder.record(SERVICE, "Warning", "NameConflict", "taken")
        clock.now += timedelta(minutes=9)
    clock.now += timedelta(minutes=2)
    await recorder.record(SERVICE, "Warning", "NameConflict", "taken")

    methods = [request[0] for request in server.requests]
    assert methods == ["POST", "PATCH", "PATCH", "POST"]
    event = server.requests[0][3]
    assert event["involvedObject"]["uid"] == "42"
    assert event["count"] == 1
    assert event["reportingComponent"] == "llmservice-operator"
    assert server.requests[2][3] == {"count": 3, "lastTimestamp": "2026-01-01T00:18:00Z"}
    assert server.requests[1][1].endswith(event["metadata"]["name"])


async def test_one_object_cannot_flood_the_cluster_with_events(
    cluster: Cluster, server: Server
) -> None:
    clock = WallClock()
    recorder = EventRecorder(cluster, "pod-1", clock)
    for number in range(40):
        await recorder.record(SERVICE, "Normal", "Changed", f"message {number}")
    assert len(server.requests) == 25
    clock.now += timedelta(minutes=10)
    for number in range(40, 45):
        await recorder.record(SERVICE, "Normal", "Changed", f"message {number}")
    assert len(server.requests) == 27


async def test_an_event_that_cannot_be_written_is_logged_and_dropped(
    cluster: Cluster, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.refuse(403, "namespace is being terminated")
    await EventRecorder(cluster, "pod-1", WallClock()).record(SERVICE, "Normal", "Serving", "up")
    assert "namespace is being terminated" in caplog.text


async def test_the_audit_finds_what_the_watches_missed_and_confirms_it_before_it_repairs(
    cluster: Cluster, server: Server
) -> None:
    def service(name: str, version: int) -> dict[str, Any]:
        metadata = {**SERVICE["metadata"], "name": name, "resourceVersion": str(version)}
        return {**SERVICE, "metadata": metadata}

    live = {name: service(name, version) for name, version in [("same", 1), ("new", 2), ("old", 9)]}

    def answer(request: web.Request) -> web.Response:
        if not request.path.endswith("/llmservices") and "llmservices" in request.path:
            found = live.get(request.path.rpartition("/")[2])
            return web.json_response(found or {"message": "gone"}, status=200 if found else 404)
        items = list(live.values()) if request.path.endswith("/llmservices") else []
        return web.json_response({"items": items, "metadata": {}})

    server.answer = answer
    cache = Cache()
    enqueued: list[Key] = []
    diverged: list[str] = []
    for manifest in (service("same", 1), service("old", 3), service("ghost", 4)):
        cache.observe(manifest)
    served = ServedKinds(cluster, [None], [LLMSERVICES, DEPLOYMENTS], {})
    audit = Audit(cluster, cache, served, [None], enqueued.append, diverged.append)

    suspects = await audit.suspects()
    assert sorted(name for _, _, name in suspects) == ["ghost", "new", "old"]
    # The watch reports one of these objects after all, and another one is deleted meanwhile.
    cache.observe(service("old", 9))
    del live["new"]
    assert await audit.repair(suspects) == 1
    assert enqueued == [("team", "ghost")]
    assert diverged == ["llmservices"]
    assert cache.service(("team", "ghost")) is None
    assert cache.service(("team", "new")) is None
    assert await audit.suspects() == []


async def test_a_reload_makes_the_cache_equal_to_the_cluster(
    cluster: Cluster, server: Server
) -> None:
    def answer(request: web.Request) -> web.Response:
        if request.path in (LLMSERVICES.discovery_path, DEPLOYMENTS.discovery_path):
            resources = [{"name": "llmservices"}, {"name": "deployments"}]
            return web.json_response({"resources": resources})
        items = [SERVICE] if request.path.endswith("/llmservices") else []
        return web.json_response({"items": items, "metadata": {}})

    server.answer = answer
    cache = Cache()
    enqueued: list[Key] = []
    gone = {**SERVICE, "metadata": {**SERVICE["metadata"], "name": "gone"}}
    cache.observe(gone)
    served = ServedKinds(cluster, ["team"], [LLMSERVICES, DEPLOYMENTS], {})
    await Audit(cluster, cache, served, ["team"], enqueued.append, lambda _: None).reload()
    assert enqueued == [("team", "gone"), ("team", "llama")]
    assert cache.count(LLMSERVICES) == 1
    assert {request[1].split("/")[-2] for request in server.requests[2:]} == {"team"}


async def test_discovery_names_the_kinds_of_a_group_and_none_where_the_group_is_unknown(
    cluster: Cluster, server: Server
) -> None:
    server.answer = lambda _: web.json_response({"resources": [{"name": "other"}]})
    assert await cluster.list_resources(LLMSERVICES.discovery_path) == {"other"}
    server.refuse(404)
    assert await cluster.list_resources(LLMSERVICES.discovery_path) == frozenset()
    server.refuse(503)
    with pytest.raises(ClusterError):
        await cluster.list_resources(LLMSERVICES.discovery_path)
