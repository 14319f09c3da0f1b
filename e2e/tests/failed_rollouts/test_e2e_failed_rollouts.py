"""Tests rounds of failing rollouts under the load of clients that do not retry.

`make test-faults PART=rollouts` runs 20 rounds; LLMSERVICE_TEST_ROUNDS sets another number. Each
round has one rollout for each kind of mistake.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from e2e_support import PATIENCE, Cluster, Object, conditions, pod_states, wait_ready
from localkube.hub.daemon import default_settings
from localkube.hub.models import build_models
from localkube.hub.settings import RepositorySettings
from shared_support.waiting import eventually
from shared_support.weights import copy_with_nan_weights
from stage import TINY_MODEL, cpu_service, localkube
from steady_load import SteadyLoad

pytestmark = pytest.mark.local

ROUNDS = int(os.environ.get("LLMSERVICE_TEST_ROUNDS", "20"))
NAN_MODEL = "llmservice-test/nan-llama"
REQUESTS_PER_SECOND = 2.0
REQUESTS_PER_CONNECTION = 5
CLIENTS = 4

MISTAKES: Mapping[str, tuple[Callable[[int], Object], str]] = {
    # Name of the service: (function from the number of the round to a patch of the service's
    # spec, expected reason). Each patch changes the pod template.
    "image": (
        lambda number: {"engine": {"image": f"registry.invalid/server:{number}"}},
        "ImagePullError",
    ),
    # The API server and the operator accept the flag. Only the engine checks its value.
    "flag": (
        lambda number: {"engine": {"extraArgs": [f"--kv-cache-memory-bytes=lots-{number}"]}},
        "InvalidEngineArgument",
    ),
    "nonsense": (
        lambda number: {"model": {"uri": f"hf://{NAN_MODEL}"}, "engine": {"seed": number}},
        "SmokeTestFailed",
    ),
}
CORRECTION: Object = {
    "model": {"uri": f"hf://{TINY_MODEL}"},
    "engine": {"image": None, "extraArgs": None, "seed": None},
}
"""Patch that undoes each mistake."""


@dataclass
class Service:
    """LLMService under load, with automatic rollback."""

    cluster: Cluster
    namespace: str
    name: str
    load: SteadyLoad
    undone: set[str] = field(default_factory=set)
    """Digests of the pods whose rollouts were undone."""

    def __post_init__(self) -> None:
        self._first_pods = self._pods()

    def _pods(self) -> dict[str, tuple[str, int]]:
        selector = f"llmservice.dev/name={self.name}"
        return pod_states(self.cluster.list("pods", self.namespace, selector))

    def patch(self, spec: Object) -> None:
        self.cluster.patch_spec(self.name, self.namespace, spec)

    def make_mistake(self, number: int) -> None:
        mistake, _ = MISTAKES[self.name]
        self.patch(mistake(number))

    def is_rolled_back(self) -> bool:
        """Return True if the latest rollout is undone and the status says why; fail otherwise."""
        _, reason = MISTAKES[self.name]
        service = self.cluster.read("llm", self.name, self.namespace)
        assert service is not None
        found = conditions(service)
        assert found["Ready"]["reason"] == "RolledBack", found["Ready"]
        rollback = service["status"]["rollback"]
        assert rollback["failedPods"] not in self.undone, "this is an earlier rollback"
        assert rollback["reason"] == reason, rollback
        assert f"The cause was {reason}: {rollback['message']}" in found["Ready"]["message"]
        assert found["Available"]["status"] == "True", found["Available"]
        self.undone.add(rollback["failedPods"])
        return True

    def has_its_first_pods(self) -> bool:
        """Return True if no pod was added, removed or restarted under load; fail otherwise."""
        pods = self._pods()
        assert pods == self._first_pods, pods
        return True


@pytest.fixture
def nan_model(hub: str, local_cluster_name: str, tmp_path: Path) -> str:
    """Repository id of a model of the hub with a NaN in place of each weight."""
    models = build_models()
    copy_with_nan_weights(models[TINY_MODEL], tmp_path / "model")
    served = default_settings(models)
    more = {NAN_MODEL: RepositorySettings(branches={"main": tmp_path / "model"})}
    served = served.model_copy(update={"repositories": served.repositories | more})
    (tmp_path / "hub.yaml").write_text(served.to_yaml())
    localkube("hub", "start", "--name", local_cluster_name, f"--config={tmp_path / 'hub.yaml'}")
    return NAN_MODEL


@pytest.fixture
def services(cluster: Cluster, namespace: str) -> Iterator[list[Service]]:
    """Yield a service for each mistake. Each serves under load."""
    for name in MISTAKES:
        service = cpu_service(name, f"hf://{TINY_MODEL}")
        service["spec"]["rolloutStrategy"] = {"autoRollback": True}
        cluster.apply(service, namespace)
    for name in MISTAKES:
        wait_ready(cluster, name, namespace)
    with contextlib.ExitStack() as loads:
        yield [
            Service(
                cluster,
                namespace,
                name,
                loads.enter_context(
                    SteadyLoad(
                        cluster.address_of(name, namespace),
                        name,
                        REQUESTS_PER_SECOND,
                        REQUESTS_PER_CONNECTION,
                        CLIENTS,
                    )
                ),
            )
            for name in MISTAKES
        ]


@pytest.mark.usefixtures("nan_model")
def test_no_request_fails_while_rollouts_fail_and_each_is_undone_with_its_reason(
    services: list[Service], capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    for number in range(1, ROUNDS + 1):
        for service in services:
            service.make_mistake(number)
        for service in services:
            eventually(service.is_rolled_back, within=PATIENCE, every=1)
            eventually(service.has_its_first_pods, within=PATIENCE, every=1)
            assert service.load.failures == []
        answered = ", ".join(f"{service.name} {service.load.answered}" for service in services)
        with capsys.disabled():
            print(
                f"\nround {number} of {ROUNDS} ends after {time.monotonic() - began:.0f} s: every "
                f"rollout is undone, no request failed; answered so far: {answered}"
            )
    for service in services:
        service.patch(CORRECTION)
        wait_ready(service.cluster, service.name, service.namespace)
        assert service.has_its_first_pods()
        assert len(service.undone) == ROUNDS
        service.load.stop()
        assert service.load.failures == []
        assert service.load.answered > ROUNDS
