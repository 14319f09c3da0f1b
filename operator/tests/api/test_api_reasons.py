"""Tests the reasons of an unready service that the API server and its controllers cause."""

from pathlib import Path
from typing import Any

import pytest

from llmservice_operator.api.reasons import Reason
from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES
from operator_support.forked import ForkedOperator
from operator_support.processes import Api, condition, make_service
from shared_support.waiting import eventually

ON_GPU = {"accelerator": {"type": "nvidia"}}


def until_reason(api: Api, namespace: str, name: str, reason: str) -> str:
    """Wait until Ready has the reason; return its message."""

    def has_it() -> str:
        ready = condition(api.get(LLMSERVICES, namespace, name), "Ready")
        assert (ready["status"], ready["reason"]) == ("False", reason), ready
        return str(ready["message"])

    return eventually(has_it)


@pytest.mark.causes("QuotaExceeded", "LimitRangeExceeded", "InvalidSpec")
def test_a_refusal_of_pods_is_reported_with_the_api_servers_message(
    api: Api, namespace: str, log: Path
) -> None:
    quota = {"metadata": {"name": "gpus"}, "spec": {"hard": {"requests.nvidia.com/gpu": "0"}}}
    api.request("POST", f"/api/v1/namespaces/{namespace}/resourcequotas", quota)
    limits = [{"type": "Container", "max": {"memory": "4Gi"}}]
    limit_range = {"metadata": {"name": "memory"}, "spec": {"limits": limits}}
    api.request("POST", f"/api/v1/namespaces/{namespace}/limitranges", limit_range)
    with ForkedOperator(log, namespace, WATCH_NAMESPACES=namespace) as operator:
        operator.until_leading()
        api.create(LLMSERVICES, make_service("quota", namespace, **ON_GPU))
        large = {"limits": {"memory": "8Gi"}}
        api.create(LLMSERVICES, make_service("large", namespace, resources=large))
        api.create(LLMSERVICES, make_service("old", namespace, engine={"version": "0.30.0"}))
        lacking = {"image": "mine:1", "version": "0.30.0", "extraArgs": ["--max-num-active-seqs=4"]}
        api.create(LLMSERVICES, make_service("lacking", namespace, engine=lacking))

        said = until_reason(api, namespace, "quota", "QuotaExceeded")
        assert "exceeded quota: gpus, requested: requests.nvidia.com/gpu=1" in said
        assert said.endswith(Reason.QUOTA_EXCEEDED.hint)
        said = until_reason(api, namespace, "large", "LimitRangeExceeded")
        assert "maximum memory usage per Container is 4Gi" in said
        said = until_reason(api, namespace, "old", "InvalidSpec")
        assert "spec.engine.image to an image that holds vLLM 0.30.0" in said
        said = until_reason(api, namespace, "lacking", "InvalidSpec")
        assert said.endswith("or run an engine.version that has it: 0.31.0, 0.32.0 or 0.33.0"), said


@pytest.mark.causes("RolloutStuck")
def test_a_rollout_that_its_controller_gives_up_is_stuck(
    api: Api, namespace: str, log: Path
) -> None:
    with ForkedOperator(log, namespace, WATCH_NAMESPACES=namespace) as operator:
        operator.until_leading()
        api.create(LLMSERVICES, make_service("llm", namespace))
        eventually(lambda: api.read(DEPLOYMENTS, namespace, "llm"))
        operator.terminate()
    # The default deadline of a service is most of an hour.
    api.patch(DEPLOYMENTS, namespace, "llm", {"spec": {"progressDeadlineSeconds": 1}})

    def given_up() -> bool:
        deployment: dict[str, Any] = api.get(DEPLOYMENTS, namespace, "llm")
        return bool(condition(deployment, "Progressing")["reason"] == "ProgressDeadlineExceeded")

    eventually(given_up)
    with ForkedOperator(log, namespace, WATCH_NAMESPACES=namespace) as operator:
        operator.until_leading()
        said = until_reason(api, namespace, "llm", "RolloutStuck")
        assert said.endswith(Reason.ROLLOUT_STUCK.advice("llm"))
        progressing = condition(api.get(LLMSERVICES, namespace, "llm"), "Progressing")
        assert (progressing["status"], progressing["reason"]) == ("False", "RolloutStuck")
