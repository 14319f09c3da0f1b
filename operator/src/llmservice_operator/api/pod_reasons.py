"""Reasons about pods that are refused, that do not start, or that terminate: a part of
reasons.py.
"""

from __future__ import annotations

from typing import Final

from llmservice_operator.api.reason_facts import Facts, Rank, Source, Subject

DEPLOYMENT_PAUSED: Final = Facts(
    "DeploymentPaused",
    Source.ROLLOUT,
    "The Deployment is paused, so no pod is replaced.",
    "Resume it with `kubectl rollout resume deploy/NAME`.",
    rank=Rank.ADMISSION,
)
LIMITS_REQUIRED: Final = Facts(
    "LimitsRequired",
    Source.ROLLOUT,
    "A ResourceQuota of the namespace accepts only pods that set the limits or requests that it "
    "restricts.",
    "Set the fields that the message names, such as spec.resources.limits.memory for "
    "limits.memory. A LimitRange can set defaults for all pods of the namespace.",
    rank=Rank.QUOTA,
)
LIMIT_RANGE_EXCEEDED: Final = Facts(
    "LimitRangeExceeded",
    Source.ROLLOUT,
    "A LimitRange of the namespace refuses the pods or the claim of the model cache.",
    "Change spec.resources or spec.model.cache.size to values that the LimitRange allows: `kubectl "
    "describe limitrange` shows them.",
    rank=Rank.ADMISSION,
)
STORAGE_QUOTA_EXCEEDED: Final = Facts(
    "StorageQuotaExceeded",
    Source.OPERATOR,
    "A ResourceQuota of the namespace refuses the claim of the model cache.",
    "Lower spec.model.cache.size, or raise the quota: `kubectl describe quota` shows it.",
)

WAITING_FOR_DEVICE: Final = Facts(
    "WaitingForDevice",
    Source.POD,
    "No node has enough free devices of spec.resources.extended or of the resource claims; the "
    "message quotes the scheduler.",
    "Add nodes with the device, free some devices, or correct spec.resources. Nodes offer extended "
    "resources only with a device plugin: `kubectl describe nodes` lists them. Devices of claims "
    "need a driver: `kubectl get resourceslices` lists them.",
    rank=Rank.ACCELERATOR,
    about=Subject.ROOM,
)
VOLUME_IN_USE: Final = Facts(
    "VolumeInUse",
    Source.POD,
    "A volume of the pod is attached to another node, and only one node at a time can mount it.",
    "Use a claim with the access mode ReadWriteMany. With ReadWriteOnce, set "
    "spec.rolloutStrategy.type to Auto or Recreate, so that the old pod terminates first.",
    rank=Rank.VOLUME,
)
POD_NOT_STARTING: Final = Facts(
    "PodNotStarting",
    Source.POD,
    "The pod is assigned to a node, which does not start it; the message quotes the last Event.",
    "Look at `kubectl describe pods -l llmservice.dev/name=NAME`.",
    rank=Rank.NODE,
)
EPHEMERAL_STORAGE_EXCEEDED: Final = Facts(
    "EphemeralStorageExceeded",
    Source.POD,
    "The kubelet evicted the pod, because it used more of the node's disk than its limit, or "
    "because the disk was full.",
    "Raise spec.model.cache.size above the size of the model, or keep the model on a claim with "
    "spec.model.cache.type: PersistentVolumeClaim. If the disk of the node is full, free it or use "
    "nodes with larger disks.",
    rank=Rank.NODE,
    about=Subject.ROOM,
)
EVICTED: Final = Facts(
    "Evicted",
    Source.POD,
    "The kubelet evicted the pod, because the node ran short of memory or process IDs.",
    "Set spec.resources.requests.memory to what the model server needs, or use larger nodes.",
    rank=Rank.NODE,
    about=Subject.ROOM,
)
DEVICE_UNAVAILABLE: Final = Facts(
    "DeviceUnavailable",
    Source.POD,
    "The kubelet refused the pod, because the node's device plugin has no healthy accelerator for "
    "it.",
    "Look at the device plugin's pod on the node that the message names, and at `kubectl describe "
    "node`. Cordon the node until its accelerators are healthy.",
    rank=Rank.ACCELERATOR,
    about=Subject.ROOM,
)
POD_REJECTED: Final = Facts(
    "PodRejected",
    Source.POD,
    "The kubelet refused the pod after the scheduler had assigned the pod to its node.",
    "Look at `kubectl describe node` of the node that the message names. Correct spec.template or "
    "spec.resources if they do not suit the node.",
    rank=Rank.NODE,
    about=Subject.ROOM,
)
NODE_LOST: Final = Facts(
    "NodeLost",
    Source.POD,
    "The node of the pod no longer reports its state.",
    "Look at `kubectl get nodes`. Kubernetes replaces the pod after five minutes. If the node is "
    "gone for good, delete the Node, so that its volumes are released.",
    rank=Rank.NODE,
)
SIDECAR_NOT_READY: Final = Facts(
    "SidecarNotReady",
    Source.POD,
    "The model server is ready, but another container of the pod is not. Or an init container "
    "fails, so that the model server cannot start.",
    "Look at `kubectl logs deploy/NAME -c CONTAINER` with the container that the message names. "
    "The container comes from an admission webhook of the cluster, not from the operator.",
    rank=Rank.READINESS,
)
ROLLED_BACK: Final = Facts(
    "RolledBack",
    Source.OPERATOR,
    "The rollout of the current spec failed, and spec.rolloutStrategy.autoRollback restored the "
    "earlier pods.",
    "Correct the spec: a change that affects the pods starts a new rollout. To try the same pods "
    "again, set spec.rolloutStrategy.autoRollback to false.",
)
