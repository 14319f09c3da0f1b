from pathlib import Path
from typing import Any

from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES, SERVICES
from operator_support.processes import (
    Api,
    OperatorProcess,
    free_the_lease,
    image,
    make_pods_ready,
    make_service,
    until_pods,
    until_settled,
)
from shared_support.waiting import eventually

KINDS = (LLMSERVICES, DEPLOYMENTS, SERVICES)


def until_served(api: Api, namespace: str, name: str) -> None:
    def served() -> bool:
        service = api.get(LLMSERVICES, namespace, name)
        reported = service.get("status", {}).get("observedGeneration")
        return bool(reported == service["metadata"]["generation"])

    eventually(served)


def versions(api: Api, namespace: str, name: str) -> list[Any]:
    return [api.get(kind, namespace, name)["metadata"]["resourceVersion"] for kind in KINDS]


def test_an_operator_that_was_killed_comes_back_and_writes_nothing(
    api: Api, namespace: str, log: Path
) -> None:
    with OperatorProcess(log, namespace, WATCH_NAMESPACES=namespace) as first:
        first.until_leading()
        for number in range(3):
            api.create(LLMSERVICES, make_service(f"llm-{number}", namespace))
        for number in range(3):
            until_served(api, namespace, f"llm-{number}")
        until_settled(first)
        before = [versions(api, namespace, f"llm-{number}") for number in range(3)]
        first.kill()

    free_the_lease(api, namespace)
    with OperatorProcess(log, namespace, WATCH_NAMESPACES=namespace) as second:
        second.until_leading()
        eventually(lambda: second.metric("controller_runtime_reconcile_total") >= 3)
        until_settled(second)
        assert second.writes() == 0
        assert second.metric("llmservice_apply_total", result="noop") >= 6
        assert [versions(api, namespace, f"llm-{number}") for number in range(3)] == before


def test_a_service_deleted_while_the_operator_was_away_stays_deleted(
    api: Api, namespace: str, log: Path
) -> None:
    with OperatorProcess(log, namespace, WATCH_NAMESPACES=namespace) as first:
        first.until_leading()
        for name in ("kept", "deleted"):
            api.create(LLMSERVICES, make_service(name, namespace))
            until_served(api, namespace, name)
        assert first.terminate() == 0

    api.delete(LLMSERVICES, namespace, "deleted")
    api.delete(DEPLOYMENTS, namespace, "kept")

    def nothing_left() -> bool:
        return not any(api.read(kind, namespace, "deleted") for kind in KINDS)

    # The garbage collector looks for new kinds every 30 s, and LLMService may be newer.
    eventually(nothing_left)
    with OperatorProcess(log, namespace, WATCH_NAMESPACES=namespace) as second:
        second.until_leading()
        eventually(lambda: api.read(DEPLOYMENTS, namespace, "kept"), 5)
        until_settled(second)
        assert nothing_left()


def is_tried(api: Api, namespace: str, name: str) -> bool:
    engine = api.get(LLMSERVICES, namespace, name)["status"]["engine"]
    return "untried" not in engine


def test_a_default_image_that_never_ran_gives_way_to_a_new_one(
    api: Api, namespace: str, log: Path
) -> None:
    with OperatorProcess(log, namespace, WATCH_NAMESPACES=namespace) as first:
        first.until_leading()
        api.create(LLMSERVICES, make_service("llm", namespace))
        until_served(api, namespace, "llm")
        until_settled(first)
        assert not is_tried(api, namespace, "llm")
        first.terminate()

    corrected = {"SERVER_IMAGE_CPU": "registry.example/llmservice/server-cpu:2"}
    with OperatorProcess(log, namespace, WATCH_NAMESPACES=namespace, **corrected) as second:
        second.until_leading()
        eventually(lambda: image(api, namespace, "llm").endswith(":2"), 10)


def test_the_engine_outlives_a_new_default_image_and_a_lost_status(
    api: Api, namespace: str, log: Path
) -> None:
    with OperatorProcess(log, namespace, WATCH_NAMESPACES=namespace) as first:
        first.until_leading()
        api.create(LLMSERVICES, make_service("llm", namespace))
        until_served(api, namespace, "llm")
        until_pods(api, namespace, "llm", 1)
        make_pods_ready(api, namespace, "llm")
        eventually(lambda: is_tried(api, namespace, "llm"), 10)
        until_settled(first)
        pinned = api.get(LLMSERVICES, namespace, "llm")["status"]["engine"]
        assert pinned["image"] == image(api, namespace, "llm")
        first.terminate()
    generation = api.get(DEPLOYMENTS, namespace, "llm")["metadata"]["generation"]

    upgrade = {"SERVER_IMAGE_CPU": "registry.example/llmservice/server-cpu:2"}
    with OperatorProcess(log, namespace, WATCH_NAMESPACES=namespace, **upgrade) as second:
        second.until_leading()
        until_settled(second)
        assert api.get(LLMSERVICES, namespace, "llm")["status"]["engine"] == pinned

        api.patch(LLMSERVICES, namespace, "llm", {"status": None}, "status")

        def restored() -> bool:
            status = api.get(LLMSERVICES, namespace, "llm").get("status", {})
            return bool(status.get("engine") == pinned)

        eventually(restored, 5)
        until_settled(second)
        assert api.get(DEPLOYMENTS, namespace, "llm")["metadata"]["generation"] == generation

        api.create(LLMSERVICES, make_service("new", namespace))
        until_served(api, namespace, "new")
        assert image(api, namespace, "new").endswith(":2")


def test_over_a_healthy_cluster_the_audit_finds_nothing_and_other_namespaces_are_left_alone(
    api: Api, namespace: str, log: Path
) -> None:
    settings = {"WATCH_NAMESPACES": namespace, "AUDIT_PERIOD_SECONDS": "1"}
    with OperatorProcess(log, namespace, **settings) as operator:
        operator.until_leading()
        api.create(LLMSERVICES, make_service("elsewhere", "default"))
        try:
            api.create(LLMSERVICES, make_service("here", namespace))
            until_served(api, namespace, "here")
            until_settled(operator)
            before = operator.writes()
            lists = operator.metric("rest_client_requests_total", method="GET")
            eventually(
                lambda: operator.metric("rest_client_requests_total", method="GET") >= lists + 8,
                15,
                "two rounds of the audit",
            )
            assert operator.metric("llmservice_cache_divergence_total") == 0
            assert operator.writes() == before
            assert api.read(DEPLOYMENTS, "default", "elsewhere") is None
        finally:
            api.delete(LLMSERVICES, "default", "elsewhere")
