"""Tests two releases of the operator that serve the same namespace on a real API server."""

import functools
from pathlib import Path

from llmservice_operator.kinds import EVENTS, LLMSERVICES
from llmservice_operator.releases import SHARED_SERVICE
from operator_support.forked import ForkedOperator
from operator_support.processes import (
    Api,
    OperatorProcess,
    condition,
    make_service,
    until_settled,
)
from shared_support.waiting import eventually

FIRST, SECOND = "llmservice-operator", "second-operator"


def test_two_releases_that_write_the_same_content_name_each_other(
    api: Api, namespace: str, tmp_path: Path
) -> None:
    both = [f"{namespace}/{FIRST}", f"{namespace}/{SECOND}"]
    told = f"Several releases of the operator serve this namespace: {', '.join(both)}."

    def listed() -> list[str]:
        found: list[str] = api.get(LLMSERVICES, namespace, "llm")["status"]["operators"]
        return found

    def is_logged(release: OperatorProcess) -> bool:
        return any(told in line["msg"] for line in release.log_lines())

    with ForkedOperator(tmp_path / "a", namespace, WATCH_NAMESPACES=namespace) as first:
        first.until_leading()
        api.create(LLMSERVICES, make_service("llm", namespace))
        eventually(lambda: listed() == both[:1])
        until_settled(first)
        # The second release serves every namespace.
        with ForkedOperator(tmp_path / "b", namespace, LEASE_NAME=SECOND) as second:
            second.until_leading()
            eventually(lambda: listed() == both)
            until_settled(first)
            service = api.get(LLMSERVICES, namespace, "llm")
            assert listed() == both
            assert condition(service, "Ready")["reason"] == "RolloutInProgress"
            assert told in condition(service, "Progressing")["message"]
            events = api.list_all(EVENTS, namespace)
            assert any(it["reason"] == SHARED_SERVICE and told in it["message"] for it in events)
            for release in (first, second):
                eventually(functools.partial(is_logged, release))
