"""Helpers for tests of the pure core: services, settings, and live objects as in a cluster."""

import copy
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.api import API_VERSION, KIND, Manifest
from llmservice_operator.api.load_report import LoadReport, ReplicaLoad
from llmservice_operator.api.spec import LLMService
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.settings import OperatorSettings, ServerImages

REPOSITORY = Path(__file__).parents[3]
HARMLESS_FLAG = "--response-role"
"""Flag that every engine version has and extraArgs accepts. No field is likely to replace it."""
HARMLESS_ARG = f"{HARMLESS_FLAG}=assistant"
HARMLESS_SWITCH = "--return-tokens-as-token-ids"
"""Switch that every engine version has and extraArgs accepts. No field is likely to replace it."""
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SETTINGS = OperatorSettings(
    images=ServerImages(
        gpu="registry/gpu:1", cpu="registry/cpu:1", amd="registry/amd:1", engine_version="0.32.0"
    )
)


def a_body(spec: Mapping[str, Any] | None = None, **root: Any) -> dict[str, Any]:
    """Return an LLMService as the API server stores it. `spec` replaces parts of a minimal spec."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": "qwen", "namespace": "team", "uid": "uid-1", "generation": 3},
        "spec": {"model": {"uri": "hf://org/model"}, **(spec or {})},
        **root,
    }


def refusal_of(spec: Mapping[str, Any]) -> str:
    """Return the message with which the operator refuses the spec. Fails for an accepted spec."""
    with pytest.raises(InvalidSpec) as refused:
        LLMService.parse(a_body(spec))
    return str(refused.value)


def a_service(spec: Mapping[str, Any] | None = None, **root: Any) -> LLMService:
    return LLMService.parse(a_body(spec, **root))


def one(kind: str, manifests: Sequence[Manifest]) -> Manifest:
    """Return the only manifest of a kind."""
    (found,) = (each for each in manifests if each["kind"] == kind)
    return found


MERGE_KEYS = {
    "containers": ("name",),
    "env": ("name",),
    "ownerReferences": ("uid",),
    "ports": ("containerPort", "protocol"),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
ATOMIC = {"labelSelector", "nodeSelector", "nodeSelectorTerms", "secretKeyRef", "selector"}
"""Fields that the API server replaces as a whole. It merges the lists in `MERGE_KEYS` by the keys
given there, and all other mappings by key."""


def as_live(manifest: Manifest) -> Manifest:
    """Return the manifest as the API server returns it after an apply: with owners and defaults."""
    live = copy.deepcopy(manifest)
    sent = {key: value for key, value in manifest.items() if key not in ("apiVersion", "kind")}
    identity = ("name", "namespace", "uid", "resourceVersion")
    metadata = {key: value for key, value in sent.pop("metadata").items() if key not in identity}
    if metadata:
        sent["metadata"] = metadata
    live["metadata"]["managedFields"] = [
        {"manager": "kube-controller-manager", "operation": "Update", "fieldsV1": {"f:status": {}}},
        {
            "manager": names.FIELD_MANAGER,
            "operation": "Apply",
            "apiVersion": manifest["apiVersion"],
            "fieldsType": "FieldsV1",
            "fieldsV1": _owned(sent),
        },
    ]
    live["metadata"]["resourceVersion"] = "7"
    if "spec" in live:
        live["spec"]["addedByTheServer"] = {"default": True}
    return live


def _owned(value: Any, field: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value and field not in ATOMIC:
        return {f"f:{key}": _owned(each, key) for key, each in value.items()}
    if isinstance(value, list) and field in MERGE_KEYS:
        keys = MERGE_KEYS[field]
        if field == "ports" and "port" in value[0]:
            keys = ("port", "protocol")
        return {
            "k:" + json.dumps({key: item[key] for key in keys}): (
                {} if field == "ownerReferences" else {".": {}, **_owned(item)}
            )
            for item in value
        }
    return {}


def a_deployment(
    replicas: int = 1,
    updated: int = 1,
    ready: int = 0,
    desired: int = 1,
    conditions: tuple[Mapping[str, Any], ...] = (),
    observed_generation: int = 2,
) -> Manifest:
    """Return a live Deployment. The API server leaves out counts of zero."""
    counts = {"replicas": replicas, "updatedReplicas": updated, "readyReplicas": ready}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "qwen", "namespace": "team", "generation": 2},
        "spec": {"replicas": desired},
        "status": {
            "observedGeneration": observed_generation,
            **{name: number for name, number in counts.items() if number},
            "conditions": list(conditions),
        },
    }


def a_pod(
    state: Mapping[str, Any] | None = None,
    *,
    ready: bool = False,
    template: str = "new",
    created: str = "2026-01-02T03:00:00Z",
    changed: str = "2026-01-02T03:00:00Z",
    unscheduled: str | None = None,
    claims: tuple[str, ...] = (),
    **container: Any,
) -> Manifest:
    """Return a pod whose server container is in `state`, or whose containers have no status yet.

    `unscheduled` is the scheduler's message about a pod that it cannot place. `changed` is the last
    time at which the pod became ready or stopped being ready.
    """
    conditions = [
        {
            "type": "Ready",
            "status": "True" if ready else "False",
            "lastTransitionTime": changed,
        }
    ]
    if unscheduled is not None:
        conditions.append(
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": unscheduled,
            }
        )
    server = {"name": names.SERVER_CONTAINER, "image": "registry/gpu:1", **container}
    statuses = [] if state is None else [{**server, "state": dict(state)}]
    return {
        "metadata": {
            "name": f"qwen-{template}-1",
            "creationTimestamp": created,
            "labels": {"pod-template-hash": template},
        },
        "spec": {
            "containers": [
                {
                    "name": names.SERVER_CONTAINER,
                    "startupProbe": {"periodSeconds": 5, "failureThreshold": 360},
                }
            ],
            "volumes": [
                {"name": "tmp", "emptyDir": {}},
                *({"persistentVolumeClaim": {"claimName": claim}} for claim in claims),
            ],
        },
        "status": {
            "phase": "Running" if state and "running" in state else "Pending",
            "conditions": conditions,
            **({"containerStatuses": statuses} if statuses else {}),
        },
    }


def a_report(*replicas: ReplicaLoad) -> LoadReport:
    """Return a metrics server's report about replicas whose load is not known yet."""
    return LoadReport(
        at=NOW.timestamp(),
        demand_percent=None,
        target_percent=85,
        message="The replicas start.",
        replicas=replicas,
        cold_start_seconds=120,
        scale_down_window_seconds=180,
    )
