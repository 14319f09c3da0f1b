"""The Deployment, whose replicas have one pod each."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.fields import as_int_or_string
from llmservice_operator.api.lifecycle import RolloutType
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService
from llmservice_operator.kinds import DEPLOYMENTS, REPLICA_SETS, Kind
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload.pin import EnginePin
from llmservice_operator.workload.pod_problems import Problem, quoted, with_hint
from llmservice_operator.workload.pod_template import build_pod_template, server_image
from llmservice_operator.workload.protocol import Workload, WorkloadState
from llmservice_operator.workload.refused_pods import refusal_problem
from llmservice_operator.workload.replica import Replica, condition
from llmservice_operator.workload.replica_count import ReplicaCount, desired_replicas

IMAGE_PULL_BUDGET_SECONDS: Final = 20 * 60
"""Longest time for scheduling a pod and pulling its image (about 10 GB). It is an estimate."""

REVISION_HISTORY_LIMIT: Final = 3
"""Number of old ReplicaSets that are kept. A rollback reads its pods from one of them, and
`kubectl rollout history` shows them. Each is one more object to store."""

REVISION_LABEL: Final = "pod-template-hash"
"""Label that the Deployment controller sets to a different value on each ReplicaSet."""

_REPLICA_SET: Final = re.compile(r'[Rr]eplica ?[Ss]et "([^"]+)"')
_LABEL_LENGTH: Final = 63
"""Maximum length of a label's value, and so of a revision. Any client may have written a condition
with a longer name of a ReplicaSet."""
_NO_REPLICA_SET: Final = "ReplicaSetCreateError"
"""Reason of the condition Progressing while the API server refuses a new ReplicaSet."""
_PAUSED: Final = ("DeploymentPaused", "DeploymentResumed")
"""Reasons of the condition Progressing whose messages name no ReplicaSet."""


class _Deployment:
    kind: Kind = DEPLOYMENTS

    def runs(self, service: LLMService) -> bool:
        """Return True: a Deployment runs any service, because one pod holds the whole model."""
        return True

    def made(self, pod: Manifest) -> bool:
        """Return True: every pod of a service belongs to its Deployment."""
        return True

    def name(self, service: LLMService) -> str:
        return names.workload(service)

    def build_spec(
        self,
        service: LLMService,
        settings: OperatorSettings,
        pin: EnginePin,
        count: ReplicaCount,
    ) -> dict[str, Any]:
        return {
            **_spec_without_template(service, count),
            "template": build_pod_template(service, settings, pin, REVISION_LABEL),
        }

    def keep_spec(
        self, service: LLMService, count: ReplicaCount, applied: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {**_spec_without_template(service, count), "template": applied["template"]}

    def pods_of(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"template": spec["template"]}

    def kept_revision(self, service: LLMService, revision: str) -> tuple[Kind, str] | None:
        return REPLICA_SETS, f"{self.name(service)}-{revision}"

    def pods_of_revision(self, kept: Manifest) -> Mapping[str, Any]:
        template = copy.deepcopy(kept["spec"]["template"])
        # The controller adds the label to the template of the Deployment.
        template["metadata"]["labels"].pop(REVISION_LABEL, None)
        return {"template": template}

    def state_of(self, live: Manifest) -> WorkloadState:
        status = live.get("status", {})
        generation = live["metadata"].get("generation", 0)
        return WorkloadState(
            desired=desired_replicas(live),
            replicas=status.get("replicas", 0),
            ready=status.get("readyReplicas", 0),
            is_current=status.get("observedGeneration", 0) >= generation,
            updated=status.get("updatedReplicas", 0),
            revision=_present_revision(live),
            complete_revision=_complete_revision(live),
            is_stuck=condition(live, "Progressing").get("reason") == "ProgressDeadlineExceeded",
            problems=tuple(_problems(live)),
            refused_revision=_refused_revision(live),
            refused_since=_refused_since(live),
        )

    def replicas_of(self, pods: Iterable[Manifest]) -> Iterator[Replica]:
        for pod in pods:
            yield Replica(pod, pod["metadata"].get("labels", {}).get(REVISION_LABEL))

    def pinned_image(self, live: Manifest) -> str | None:
        return server_image(live["spec"]["template"])

    def scale_reference(self, service: LLMService) -> dict[str, str]:
        return {
            "apiVersion": self.kind.api_version,
            "kind": self.kind.kind,
            "name": self.name(service),
        }

    def server_selector(self, service: LLMService) -> dict[str, str]:
        return names.selector(service)


DEPLOYMENT: Final[Workload] = _Deployment()


def _spec_without_template(service: LLMService, count: ReplicaCount) -> dict[str, Any]:
    return {
        **count.fields,
        "selector": {"matchLabels": names.selector(service)},
        "strategy": _strategy(service),
        "progressDeadlineSeconds": _progress_deadline(service),
        "revisionHistoryLimit": REVISION_HISTORY_LIMIT,
    }


def _progress_deadline(service: LLMService) -> int:
    """Return the seconds after which a rollout without progress is stuck.

    The default is the sum of the limits for pulling the image and for starting the server.
    """
    chosen = service.spec.rollout_strategy.progress_deadline_seconds
    return chosen or service.spec.startup.timeout_seconds + IMAGE_PULL_BUDGET_SECONDS


def _strategy(service: LLMService) -> dict[str, Any]:
    """Build the strategy. It is outside of the pod template, so changing it restarts no pod."""
    wanted = service.spec.rollout_strategy
    if wanted.type is RolloutType.RECREATE:
        return {"type": "Recreate"}
    is_recorded = service.status.rollout is not None
    if wanted.type is RolloutType.AUTO and (is_recorded or _has_claim_of_one_node(service)):
        return _rolling("0", "1")
    # By default, a new model server is ready before an old one ends, so no request is refused.
    return _rolling(wanted.max_surge or "1", wanted.max_unavailable or "0")


def _has_claim_of_one_node(service: LLMService) -> bool:
    """Return whether the operator creates a claim that only the pods of one node can mount.

    A new pod on another node would wait forever for the old pod to release the claim.
    """
    cache = service.spec.model.cache
    if cache is None or cache.claim_size is None or not cache.access_modes:
        return False
    return "ReadWriteMany" not in cache.access_modes


def _rolling(surge: str, unavailable: str) -> dict[str, Any]:
    return {
        "type": "RollingUpdate",
        "rollingUpdate": {
            "maxSurge": as_int_or_string(surge),
            "maxUnavailable": as_int_or_string(unavailable),
        },
    }


def _present_revision(live: Manifest) -> str | None:
    """Return the revision of the present template. The message of the condition Progressing names
    the ReplicaSet, and the ReplicaSet's name contains the revision.

    The controller writes that message before the number of updated replicas, or together with it.
    The result is an empty text while the Deployment is paused or was just resumed, because the
    condition then has another message. The result is None if any other message names no ReplicaSet.
    """
    progressing = condition(live, "Progressing")
    if progressing.get("reason") in _PAUSED:
        return ""
    named = _REPLICA_SET.search(str(progressing.get("message")))
    if named is None:
        return None
    return named[1].removeprefix(f"{live['metadata']['name']}-")[:_LABEL_LENGTH]


def _complete_revision(live: Manifest) -> str | None:
    """Return the revision of all pods if its rollout is complete and a replica is ready; otherwise
    None.

    The controller names a new ReplicaSet before it updates the numbers. Only the reason of the
    condition shows that the name and the numbers belong to the same ReplicaSet.
    """
    status = live.get("status", {})
    ready = status.get("readyReplicas", 0)
    is_one = 0 < ready == status.get("replicas", 0) == status.get("updatedReplicas", 0)
    has_ended = condition(live, "Progressing").get("reason") == "NewReplicaSetAvailable"
    return (_present_revision(live) or None) if is_one and has_ended else None


def _problems(live: Manifest) -> Iterator[Problem]:
    if live["spec"].get("paused"):
        yield with_hint(Reason.DEPLOYMENT_PAUSED, Reason.DEPLOYMENT_PAUSED.meaning)
    failure = condition(live, "ReplicaFailure")
    if failure.get("status") == "True":
        yield refusal_problem(quoted(failure.get("message")))


def _refused_revision(live: Manifest) -> Problem | None:
    progressing = condition(live, "Progressing")
    if progressing.get("reason") != _NO_REPLICA_SET:
        return None
    return refusal_problem(quoted(progressing.get("message")), "ReplicaSet")


def _refused_since(live: Manifest) -> datetime | None:
    failure = condition(live, "ReplicaFailure")
    since = failure.get("lastTransitionTime") if failure.get("status") == "True" else None
    return datetime.fromisoformat(since) if since else None
