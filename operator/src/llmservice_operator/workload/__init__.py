"""The workload of a service: the object that keeps its replicas running.

`Workload` is the interface to a kind of workload, and `WORKLOADS` lists the kinds. A replica is one
copy of the model that serves requests, whatever the number of its pods. Outside of this package,
nothing assumes that a replica is one pod, or that the workload is a Deployment.
"""

from __future__ import annotations

from llmservice_operator.workload.observation import Observation, observe_service
from llmservice_operator.workload.pin import EnginePin, pin_annotations
from llmservice_operator.workload.pin_choice import recorded_pin, resolve_pin
from llmservice_operator.workload.pod_problems import Problem
from llmservice_operator.workload.protocol import Workload, WorkloadState
from llmservice_operator.workload.refused_pods import LIMIT_RANGE_WORDS
from llmservice_operator.workload.registry import WORKLOADS, replicas_of, workload_of
from llmservice_operator.workload.replica import Replica
from llmservice_operator.workload.replica_count import (
    ReplicaCount,
    build_hand_over,
    desired_replicas,
    first_replicas,
    is_handed_over,
    resolve_replicas,
    resumed_replicas,
)
from llmservice_operator.workload.rollback import (
    Restored,
    decide_rollback,
    digest_of,
    is_rolled_back,
    read_restored,
    without_rollback,
)
from llmservice_operator.workload.rollout import RolloutDecision, decide_rollout
from llmservice_operator.workload.unstarted_pods import (
    LOOK_AGAIN_SECONDS,
    PodEvent,
    pod_to_ask_about,
)

__all__ = [
    "LIMIT_RANGE_WORDS",
    "LOOK_AGAIN_SECONDS",
    "WORKLOADS",
    "EnginePin",
    "Observation",
    "PodEvent",
    "Problem",
    "Replica",
    "ReplicaCount",
    "Restored",
    "RolloutDecision",
    "Workload",
    "WorkloadState",
    "build_hand_over",
    "decide_rollback",
    "decide_rollout",
    "desired_replicas",
    "digest_of",
    "first_replicas",
    "is_handed_over",
    "is_rolled_back",
    "observe_service",
    "pin_annotations",
    "pod_to_ask_about",
    "read_restored",
    "recorded_pin",
    "replicas_of",
    "resolve_pin",
    "resolve_replicas",
    "resumed_replicas",
    "without_rollback",
    "workload_of",
]
