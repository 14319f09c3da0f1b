"""Tests that a metrics server informs the router pods of a service, and reads their reports."""

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.api.router_messages import RefusedRequest, ReplicaList, RouterReport
from llmservice_operator.kinds import EVENTS, LLMSERVICES, PODS
from operator_support.metrics import MetricsServerProcess, make_pod, set_pod
from operator_support.processes import Api, make_service
from shared_support.waiting import eventually

pytestmark = pytest.mark.local


@dataclass
class RouterPod:
    """The management port of a router pod."""

    address: str
    lists: list[ReplicaList] = field(default_factory=list)
    report: RouterReport = field(default_factory=RouterReport)
    is_held: threading.Event = field(default_factory=threading.Event)
    """Set while the router holds a request."""
    watches: int = 0
    """Number of questions for the next held request."""

    @contextmanager
    def listening(self) -> Iterator["RouterPod"]:
        router = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                assert self.path.startswith(f"{names.ROUTER_HELD_PATH}?wait=")
                router.watches += 1
                router.is_held.wait(60)
                self._report()

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == names.ROUTER_REPLICAS_PATH:
                    router.lists.append(ReplicaList.model_validate_json(body))
                self._report()

            def _report(self) -> None:
                answer = router.report.model_dump_json(by_alias=True).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer((self.address, names.MANAGEMENT_PORT), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def hold(self, requests: int) -> None:
        self.report = RouterReport(held_requests=requests)
        (self.is_held.set if requests else self.is_held.clear)()

    @property
    def last(self) -> dict[str, tuple[bool, bool]]:
        """Whether each replica is ready and whether it drains, by the name of its pod."""
        replicas = self.lists[-1].replicas
        return {each.name: (each.is_ready, each.is_draining) for each in replicas}


def make_router_pod(api: Api, namespace: str, service: str, name: str, address: str) -> None:
    labels = {names.ROUTER_LABEL: service, names.MANAGED_BY_LABEL: names.FIELD_MANAGER}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [{"name": "router", "image": "registry.example/router:1"}]},
    }
    api.create(PODS, pod)
    set_pod(api, namespace, name, address, is_ready=True)


def test_a_router_pod_is_told_when_a_replica_appears_becomes_ready_and_is_deleted(
    api: Api, namespace: str, tmp_path: Path
) -> None:
    own, other, replica = (f"127.7.{random.randrange(1, 255)}.{last}" for last in (1, 2, 3))
    process = MetricsServerProcess(tmp_path / "log", namespace, WATCH_NAMESPACES=namespace)
    with RouterPod(own).listening() as router, RouterPod(other).listening() as stranger, process:
        make_router_pod(api, namespace, "chat", "chat-router-1", own)
        make_router_pod(api, namespace, "other", "other-router-1", other)
        eventually(lambda: router.last == {} and stranger.last == {})
        make_pod(api, namespace, "chat", "chat-1", replica, is_ready=False)
        eventually(lambda: router.last == {"chat-1": (False, False)})
        set_pod(api, namespace, "chat-1", replica, is_ready=True)
        eventually(lambda: router.last == {"chat-1": (True, False)})
        # A finalizer keeps the pod, as a kubelet does until the model server has ended.
        finalizers = {"metadata": {"finalizers": ["example.com/kept"]}}
        api.patch(PODS, namespace, "chat-1", finalizers)
        api.delete(PODS, namespace, "chat-1")
        eventually(lambda: router.last == {"chat-1": (False, True)})
        api.patch(PODS, namespace, "chat-1", {"metadata": {"finalizers": None}})
        eventually(lambda: router.last == {})
        assert replica in {str(it.address) for each in router.lists for it in each.replicas}
        assert {len(each.replicas) for each in stranger.lists} == {0}


def test_a_request_that_a_router_refuses_is_told_by_one_event_of_its_service(
    api: Api, namespace: str, tmp_path: Path
) -> None:
    addresses = [f"127.8.{random.randrange(1, 255)}.{last}" for last in (1, 2)]
    refused = RefusedRequest(digest="ab" * 32, seconds_left=600)
    first, second = (
        RouterPod(each, report=RouterReport(refused_requests=(refused,))) for each in addresses
    )
    api.create(LLMSERVICES, make_service("chat", namespace))
    process = MetricsServerProcess(tmp_path / "log", namespace, WATCH_NAMESPACES=namespace)
    with first.listening(), second.listening(), process:
        process.until_ready()
        for number, address in enumerate(addresses):
            make_router_pod(api, namespace, "chat", f"chat-router-{number}", address)
        (event,) = eventually(lambda: events_of(api, namespace))
        assert (event["type"], event["reason"]) == ("Warning", "RequestRefused")
        assert event["involvedObject"]["name"] == "chat"
        assert "abababababababab" in event["message"]
        # Both routers report it again in each round.
        eventually(lambda: min(len(first.lists), len(second.lists)) > 1)
        assert [each["count"] for each in events_of(api, namespace)] == [1]


def test_a_held_request_wakes_a_service_without_replicas_and_a_suspended_one_refuses_it(
    api: Api, namespace: str, tmp_path: Path
) -> None:
    address, replica = (f"127.9.{random.randrange(1, 255)}.{last}" for last in (1, 2))
    autoscaling = {"minReplicas": 0, "maxReplicas": 4}
    api.create(LLMSERVICES, make_service("chat", namespace, autoscaling=autoscaling))
    process = MetricsServerProcess(tmp_path / "log", namespace, WATCH_NAMESPACES=namespace)

    def wakes() -> dict[str, Any]:
        status, text = process.get(f"{names.WAKES_PATH}?wait=1", process.scaling_port)
        assert status == 200, text
        found: dict[str, Any] = json.loads(text)
        return found

    with RouterPod(address).listening() as router, process:
        make_router_pod(api, namespace, "chat", "chat-router-1", address)
        eventually(lambda: router.watches == 1)
        assert wakes() == {}
        router.hold(3)
        wake = {"heldRequests": 3, "heldPercent": 1.0}
        eventually(lambda: wakes() == {f"{namespace}/chat": wake})
        make_pod(api, namespace, "chat", "chat-1", replica, is_ready=False)
        eventually(lambda: wakes() == {})
        assert {each.refusal for each in router.lists} == {None}
        api.patch(LLMSERVICES, namespace, "chat", {"spec": {"suspend": True}})
        eventually(lambda: (router.lists[-1].refusal or "").startswith("the service is suspended"))
        api.delete(LLMSERVICES, namespace, "chat")
        eventually(lambda: (router.lists[-1].refusal or "").startswith("the service is deleted"))
        router.hold(0)


def events_of(api: Api, namespace: str) -> list[dict[str, Any]]:
    return api.list_all(EVENTS, namespace)
