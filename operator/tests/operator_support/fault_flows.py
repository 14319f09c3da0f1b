"""Services that together have every declared kind of child, and their state under faults."""

import contextlib
import functools
import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmservice_operator import names
from llmservice_operator.api.spec import LLMService
from llmservice_operator.api.status import RouterPhase
from llmservice_operator.children import CHILDREN, Child, Context
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.kinds import LLMSERVICES
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload import resolve_pin
from operator_support.examples import EXAMPLE_SPECS
from operator_support.fault_proxy import Drop, FaultProxy, Seen
from operator_support.processes import Api, OperatorProcess, make_service
from shared_support.waiting import eventually

SERVED = tuple(child for child in CHILDREN if not child.is_optional_api)
"""The declared children whose kinds every cluster serves."""
SERVED_KINDS = tuple(dict.fromkeys(child.kind for child in SERVED))

_CHANGES_OF_OTHERS = ("uid", "resourceVersion", "creationTimestamp", "managedFields", "generation")
_REVISION = "deployment.kubernetes.io/revision"
"""Annotation that the Deployment controller adds some time after a Deployment was created."""
_ADDRESSES = ("clusterIP", "clusterIPs", "healthCheckNodePort", "volumeName")

_KILLED_WITHIN_SECONDS = 10.0

State = dict[str, Any]


@functools.cache
def specs_with_every_child() -> dict[str, dict[str, Any]]:
    """Return a mapping from the names of a few examples to their specs, which together have every
    child in `SERVED`.

    A newly declared child needs an example, as each field does.
    """
    missing = {*SERVED}
    chosen: dict[str, dict[str, Any]] = {}
    built = {name: children_of(spec) for name, spec in EXAMPLE_SPECS.items()}
    while missing:
        name = max(built, key=lambda name: len(built[name] & missing))
        assert built[name] & missing, f"no example has {missing}"
        chosen[name] = EXAMPLE_SPECS[name]
        missing -= built[name]
    return chosen


def children_of(spec: Mapping[str, Any]) -> frozenset[Child]:
    """Return the declarations of the children that a service of this spec has."""
    manifest = service_of("any", "default", spec)
    manifest["metadata"] = {**manifest["metadata"], "uid": "any"}
    service, settings = LLMService.parse(manifest), OperatorSettings()
    try:
        context = Context.of(service, settings, resolve_pin(service, None, settings))
        return frozenset(child for child in CHILDREN if child.build(context) is not None)
    except InvalidSpec:
        return frozenset()  # an example that needs an accelerator class of the cluster


def service_of(name: str, namespace: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    manifest = make_service(name, namespace)
    return {**manifest, "spec": dict(spec)}


def children_in(api: Api, namespace: str, *, with_versions: bool = False) -> State:
    """Return all children in a namespace, without fields in which equal children may differ.

    `with_versions` adds the uid and the generation of each child.
    """
    found = {}
    for kind in SERVED_KINDS:
        for live in api.list_all(kind, namespace, labelSelector=names.CHILD_SELECTOR):
            metadata = {k: v for k, v in live["metadata"].items() if k not in _CHANGES_OF_OTHERS}
            annotations = metadata.pop("annotations", {})
            if own := {k: v for k, v in annotations.items() if k != _REVISION}:
                metadata["annotations"] = own
            for owner in metadata.get("ownerReferences", ()):
                owner["uid"] = "of the owner"
            # A ConfigMap has data and no spec.
            spec = {k: v for k, v in live.get("spec", {}).items() if k not in _ADDRESSES}
            kept = {"metadata": metadata, "spec": spec, "data": live.get("data")}
            if with_versions:
                kept["version"] = [live["metadata"].get(key) for key in ("uid", "generation")]
            text = json.dumps(kept, sort_keys=True).replace(namespace, "the-namespace")
            found[f"{kind.kind} {live['metadata']['name']}"] = json.loads(text)
    return found


def owners_are_alive(api: Api, namespace: str) -> bool:
    """Return whether every child belongs to a service that exists."""
    alive = {each["metadata"]["uid"] for each in api.list_all(LLMSERVICES, namespace)}
    return all(
        owner["uid"] in alive
        for kind in SERVED_KINDS
        for live in api.list_all(kind, namespace, labelSelector=names.CHILD_SELECTOR)
        for owner in live["metadata"].get("ownerReferences", ())
    )


def is_observed(api: Api, namespace: str) -> bool:
    """Return whether the status of every service is about its present spec."""
    return all(
        each.get("status", {}).get("observedGeneration") == each["metadata"]["generation"]
        for each in api.list_all(LLMSERVICES, namespace)
    )


def end_switches(api: Api, namespace: str) -> None:
    """Make every router of a namespace one that has taken all requests for long.

    Otherwise, the NetworkPolicy of the replicas changes when the longest request has ended, in the
    middle of a long test.
    """
    long_ago = {"status": {"router": {"since": "2000-01-01T00:00:00Z"}}}
    for live in api.list_all(LLMSERVICES, namespace):
        if live["status"].get("router", {}).get("phase") == RouterPhase.SERVING:
            api.patch(LLMSERVICES, namespace, live["metadata"]["name"], long_ago, "status")


@dataclass
class Crash:
    """Kills the operator right before or right after the write `number`, counted from 1."""

    proxy: FaultProxy
    operator: OperatorProcess
    number: int
    is_after: bool
    also: Callable[[], object] = lambda: None
    """Called just before the operator is killed."""
    begun: int = 0
    """Number of the operator's writes that have reached the proxy."""
    reached: int = 0
    """Number of the operator's writes that the API server has received."""
    is_killed: bool = False
    is_at_its_write: bool = False
    """True if the operator was killed at the write `number`, and not later while it was idle."""

    def arm(self) -> None:
        self.proxy.faults.before = self._before
        self.proxy.faults.after = self._after
        # Requests that a killed process has sent are dropped.
        self.proxy.faults.on_request = lambda _: Drop() if self.is_killed else None

    def _before(self, seen: Seen) -> None:
        if seen.is_write and not self.is_killed:
            self.begun += 1
            if self.begun == self.number and not self.is_after:
                self._kill()

    def _after(self, seen: Seen) -> None:
        if seen.is_write and not self.is_killed:
            self.reached += 1
            if self.reached == self.number and self.is_after:
                self._kill()

    def _kill(self) -> None:
        if not self.is_killed:
            self.is_killed = True
            self.also()
            os.kill(self.operator.pid, signal.SIGKILL)

    def until_killed(self) -> None:
        """Wait for the kill.

        If the write never comes, because two writes of a status became one, kill the operator
        while it is idle.
        """
        with contextlib.suppress(AssertionError):
            eventually(lambda: self.is_killed, _KILLED_WITHIN_SECONDS)
        self.is_at_its_write = self.is_killed
        self._kill()
        eventually(lambda: not self.operator.is_running(), describe="the operator is killed")
        self.proxy.faults.clear()
