import re
from pathlib import Path

import pytest

from llmservice_operator.kinds import CLAIMS, DEPLOYMENTS, LLMSERVICES, NETWORK_POLICIES, SERVICES
from llmservice_operator.rights import lease_rights, operator_rules, rules
from llmservice_operator.settings import OperatorSettings
from operator_support.accounts import RBAC, Account
from operator_support.forked import ForkedOperator
from operator_support.processes import (
    Api,
    condition,
    make_pods_ready,
    make_service,
    until_settled,
)
from shared_support.waiting import eventually


def go_through_a_life(api: Api, namespace: str) -> None:
    """Make the operator do all of its work: create, restore, report, clean up."""
    cache = {"type": "PersistentVolumeClaim", "size": "1Gi"}
    model = {"uri": "hf://org/model", "cache": cache}
    api.create(LLMSERVICES, make_service("llm", namespace, replicas=1, model=model))
    eventually(lambda: api.read(CLAIMS, namespace, "llm-cache"))
    eventually(lambda: api.get(LLMSERVICES, namespace, "llm").get("status", {}).get("replicas"))
    make_pods_ready(api, namespace, "llm")

    def ready() -> bool:
        return bool(condition(api.get(LLMSERVICES, namespace, "llm"), "Ready")["status"] == "True")

    eventually(ready)
    api.delete(SERVICES, namespace, "llm")
    eventually(lambda: api.read(SERVICES, namespace, "llm"), 5)
    api.patch(LLMSERVICES, namespace, "llm", {"spec": {"networkPolicy": {"enabled": False}}})
    eventually(lambda: api.read(NETWORK_POLICIES, namespace, "llm") is None, 5)
    api.patch(LLMSERVICES, namespace, "llm", {"spec": {"replicas": 0}})
    eventually(lambda: api.get(DEPLOYMENTS, namespace, "llm")["spec"]["replicas"] == 0, 5)
    api.delete(LLMSERVICES, namespace, "llm")
    # The garbage collector takes up to half a minute to learn of a new kind.
    eventually(lambda: api.read(DEPLOYMENTS, namespace, "llm") is None)


@pytest.mark.parametrize(
    "everywhere", [True, False], ids=["in the whole cluster", "in one namespace"]
)
def test_the_listed_rights_are_enough(
    api: Api, namespace: str, served: str, log: Path, account: Account, everywhere: bool
) -> None:
    # Two operators with different settings must not serve the same services.
    api.request("DELETE", LLMSERVICES.path(served))
    own = rules(lease_rights("llmservice-operator"))
    kubeconfig = account(operator_rules(OperatorSettings()), own, everywhere=everywhere)
    watched = "" if everywhere else namespace
    settings = {"WATCH_NAMESPACES": watched, "KUBECONFIG": kubeconfig, "AUDIT_PERIOD_SECONDS": "2"}
    with ForkedOperator(log, namespace, **settings) as operator:
        operator.until_leading()
        go_through_a_life(api, namespace)
        until_settled(operator, 3)
        assert operator.metric("rest_client_requests_total", code="403") == 0
        assert operator.metric("llmservice_watch_restarts_total") == 0
        assert operator.terminate() == 0
    text = log.read_text()
    # Only 403 as a word is an error. The digits may be part of a time or a random name.
    assert re.search(r"[ (=]403\b", text) is None
    assert "orbidden" not in text
    assert not [line for line in operator.log_lines() if line["level"] in ("ERROR", "CRITICAL")]


def test_the_operator_names_a_missing_right_and_starts_when_it_is_granted(
    api: Api, namespace: str, log: Path, account: Account
) -> None:
    every = operator_rules(OperatorSettings())
    lacking = [rule for rule in every if rule["resources"] != ["pods"]]
    own = rules(lease_rights("llmservice-operator"))
    kubeconfig = account(lacking, own, everywhere=False)
    settings = {"WATCH_NAMESPACES": namespace, "KUBECONFIG": kubeconfig}
    with ForkedOperator(log, namespace, **settings) as operator:

        def told() -> str:
            status, text = operator.get("/readyz")
            assert status == 503
            assert "a right is missing" in text
            return text

        text = eventually(told)
        assert 'cannot list resource \\"pods\\"' in text
        assert operator.get("/livez")[0] == 200
        role = f"{RBAC}/namespaces/{namespace}/roles/watched"
        api.request("PATCH", role, {"rules": every}, "application/merge-patch+json")
        operator.until_leading()
        assert operator.terminate() == 0
