import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmservice_operator.kinds import LLMSERVICES, SUBJECT_ACCESS_REVIEWS
from operator_support.accounts import RBAC, Account
from operator_support.forked import ForkedOperator
from operator_support.processes import REPOSITORY, Api, OperatorProcess, kubeconfig_for, kubectl
from shared_support.waiting import eventually


@pytest.fixture(scope="session")
def api() -> Api:
    if not os.environ.get("KUBECONFIG"):
        pytest.fail(
            "these tests need a real API server and KUBECONFIG is not set: run them with"
            " `localkube up --api-only --name api` and"
            " `localkube exec --name api -- uv run pytest operator/tests/api`",
            pytrace=False,
        )
    return Api()


@pytest.fixture(scope="session", autouse=True)
def crd(api: Api) -> None:
    api.apply_file(REPOSITORY / "crds" / "llmservice.yaml")
    # `kubectl wait` fails immediately while the object has no condition, so it is repeated.
    eventually(
        lambda: kubectl("wait", "--for=condition=Established", "crd/llmservices.llmservice.dev")
    )
    # The API server serves the resource shortly after the CRD is Established.
    eventually(lambda: api.read(LLMSERVICES, "default", ""))


@pytest.fixture(scope="session")
def _namespaces(api: Api) -> Iterator[list[str]]:
    made: list[str] = []
    yield made
    for name in made:
        api.request("DELETE", f"/api/v1/namespaces/{name}")


def _make_namespace(api: Api, made: list[str]) -> str:
    name = f"test-{uuid.uuid4().hex[:8]}"
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    made.append(name)
    return name


@pytest.fixture
def namespace(api: Api, _namespaces: list[str]) -> Iterator[str]:
    """Namespace that only this test uses, and that no operator watches yet."""
    name = _make_namespace(api, _namespaces)
    yield name
    # The operator of a later test may watch all namespaces. It must not find leftover services,
    # such as one that a quota refuses.
    api.request("DELETE", LLMSERVICES.path(name))


@pytest.fixture(scope="session")
def served(api: Api, _namespaces: list[str]) -> str:
    """Namespace that the shared operator watches. Each test uses object names of its own in it."""
    return _make_namespace(api, _namespaces)


@pytest.fixture(scope="session")
def _shared_operator(
    api: Api, served: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    log = tmp_path_factory.mktemp("operator") / "log"
    # While all tiers run, the API server may answer nobody for longer than the usual Lease.
    with ForkedOperator(log, served, WATCH_NAMESPACES=served, LEASE_SECONDS="60") as process:
        yield process


@pytest.fixture
def operator(_shared_operator: OperatorProcess) -> OperatorProcess:
    """Operator that most tests share. It watches the namespace `served`."""
    return _shared_operator.until_leading()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "operator.log"


@pytest.fixture
def own_operator(namespace: str, log: Path) -> Iterator[OperatorProcess]:
    """Operator of this test alone, for tests that count its writes. It watches `namespace`.

    The shared operator may write at any time about the service of another test.
    """
    with ForkedOperator(log, namespace, WATCH_NAMESPACES=namespace) as process:
        process.until_leading()
        yield process


@pytest.fixture
def name() -> str:
    return f"llm-{uuid.uuid4().hex[:6]}"


@pytest.fixture
def account(api: Api, namespace: str, tmp_path: Path) -> Iterator[Account]:
    """Make a service account with the given rules at each call; return its kubeconfig's path."""
    cluster_wide: list[str] = []

    def make(watched: list[dict[str, Any]], own: list[dict[str, Any]], *, everywhere: bool) -> str:
        name = "operator"
        scope = f"/namespaces/{namespace}"
        api.request("POST", f"/api/v1{scope}/serviceaccounts", {"metadata": {"name": name}})
        subjects = [{"kind": "ServiceAccount", "name": name, "namespace": namespace}]

        def grant(kind: str, role: str, rules: list[dict[str, Any]], path: str) -> None:
            plural = kind.lower()
            reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role}
            metadata = {"metadata": {"name": role}}
            api.request("POST", f"{path}/{plural}s", {**metadata, "rules": rules})
            binding = {**metadata, "roleRef": reference, "subjects": subjects}
            api.request("POST", f"{path}/{plural}bindings", binding)

        grant("Role", "leader", own, f"{RBAC}{scope}")
        if everywhere:
            grant("ClusterRole", namespace, watched, RBAC)
            cluster_wide.append(namespace)
        else:
            grant("Role", "watched", watched, f"{RBAC}{scope}")
        # A new right takes effect some time after the API server has stored it.
        granted = watched[0]
        access = {
            "group": granted["apiGroups"][0],
            "resource": granted["resources"][0],
            "verb": granted["verbs"][0],
            "namespace": namespace,
        }
        user = f"system:serviceaccount:{namespace}:{name}"

        def is_allowed() -> bool:
            review = {"spec": {"user": user, "resourceAttributes": access}}
            status = api.request("POST", SUBJECT_ACCESS_REVIEWS.path(), review)["status"]
            return bool(status["allowed"])

        eventually(is_allowed)
        token = api.request("POST", f"/api/v1{scope}/serviceaccounts/{name}/token", {"spec": {}})[
            "status"
        ]["token"]
        return kubeconfig_for(api, token, tmp_path / "kubeconfig")

    yield make
    for name in cluster_wide:
        api.request("DELETE", f"{RBAC}/clusterrolebindings/{name}")
        api.request("DELETE", f"{RBAC}/clusterroles/{name}")
