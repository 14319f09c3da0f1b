"""The reasons that a condition may have, each declared once with all its properties.

docs/conditions.md is generated from these declarations.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Self

from llmservice_operator.api import pod_reasons, route_reasons, router_reasons, server_reasons
from llmservice_operator.api.reason_facts import (
    Facts,
    Rank,
    Source,
    Subject,
    from_model_server,
    in_commands,
)

_FINAL: Final = frozenset(
    {
        *(Rank.LAST_WORDS, Rank.CONFIGURATION, Rank.CONTAINER, Rank.IMAGE),
        *(Rank.ACCELERATOR, Rank.NODE, Rank.QUOTA, Rank.ADMISSION),
    }
)
"""Ranks of the problems that do not end by waiting."""


class Reason(StrEnum):
    """Cause of a condition's status."""

    SERVING = Facts(
        "Serving",
        Source.COUNTS,
        "All desired replicas are ready and run the current spec.",
        "Nothing.",
        is_normal=True,
    )
    MODEL_LOADED = Facts(
        "ModelLoaded",
        Source.COUNTS,
        "A model server of the current spec is ready.",
        "Nothing.",
        is_normal=True,
    )
    ROLLOUT_COMPLETE = Facts(
        "RolloutComplete",
        Source.COUNTS,
        "No pod is left to create or replace.",
        "Nothing.",
        is_normal=True,
    )
    ROLLOUT_IN_PROGRESS = Facts(
        "RolloutInProgress",
        Source.COUNTS,
        "Pods are being created or replaced, and no problem is known.",
        "Wait.",
        is_normal=True,
    )
    SCALED_TO_ZERO = Facts(
        "ScaledToZero",
        Source.COUNTS,
        "No replica is desired: spec.replicas is 0, or another client has scaled the Deployment to "
        "0, or the mode of autoscaling is not Active.",
        "Set spec.replicas to 1 or more to serve the model. With spec.autoscaling, scale the "
        "Deployment itself to 1 (kubectl scale); the autoscaler then takes over again.",
        is_normal=True,
    )
    IDLE = Facts(
        "Idle",
        Source.COUNTS,
        "No replica runs, because nobody has used the service for spec.autoscaling.idle."
        "afterSeconds. The next request starts a replica, and waits in the router until it serves.",
        "Nothing. To keep a replica, set spec.autoscaling.minReplicas to 1.",
        is_normal=True,
    )
    SUSPENDED = Facts(
        "Suspended",
        Source.COUNTS,
        "No replica is desired: spec.suspend is true.",
        "Set spec.suspend to false to serve the model again.",
        is_normal=True,
    )
    NO_REPLICA_READY = Facts(
        "NoReplicaReady",
        Source.COUNTS,
        "No replica is ready.",
        "See the condition Ready.",
    )

    QUOTA_EXCEEDED = Facts(
        "QuotaExceeded",
        Source.ROLLOUT,
        "A ResourceQuota of the namespace refuses the pods.",
        "Raise the quota, or lower spec.replicas, spec.accelerator.count or spec.resources. If the "
        "quota is for ephemeral-storage, lower spec.model.cache.size.",
        rank=Rank.QUOTA,
        about=Subject.ROOM,
    )
    POD_REFUSED = Facts(
        "PodRefused",
        Source.ROLLOUT,
        "The API server refuses the pods for another reason, such as an admission policy.",
        "Correct the field that the message names, or change the policy.",
        rank=Rank.ADMISSION,
    )
    ROLLOUT_STUCK = Facts(
        "RolloutStuck",
        Source.ROLLOUT,
        "The rollout made no progress within its deadline, and no pod reports a problem.",
        "Look at `kubectl describe pods -l llmservice.dev/name=NAME`.",
        rank=Rank.DEADLINE,
    )

    ROUTER_SERVING = router_reasons.ROUTER_SERVING
    ROUTER_STARTING = router_reasons.ROUTER_STARTING
    ROUTER_STOPPING = router_reasons.ROUTER_STOPPING
    ROUTER_DEGRADED = router_reasons.ROUTER_DEGRADED
    ROUTER_NOT_READY = router_reasons.ROUTER_NOT_READY
    INFERENCE_POOL_MISSING = router_reasons.INFERENCE_POOL_MISSING

    ROUTE_ACCEPTED = route_reasons.ROUTE_ACCEPTED
    ROUTE_PENDING = route_reasons.ROUTE_PENDING
    ROUTE_REFUSED = route_reasons.ROUTE_REFUSED
    ROUTE_UNRESOLVED = route_reasons.ROUTE_UNRESOLVED
    GATEWAY_API_MISSING = route_reasons.GATEWAY_API_MISSING

    DEPLOYMENT_PAUSED = pod_reasons.DEPLOYMENT_PAUSED
    LIMITS_REQUIRED = pod_reasons.LIMITS_REQUIRED
    LIMIT_RANGE_EXCEEDED = pod_reasons.LIMIT_RANGE_EXCEEDED
    STORAGE_QUOTA_EXCEEDED = pod_reasons.STORAGE_QUOTA_EXCEEDED

    WAITING_FOR_DEVICE = pod_reasons.WAITING_FOR_DEVICE
    VOLUME_IN_USE = pod_reasons.VOLUME_IN_USE
    POD_NOT_STARTING = pod_reasons.POD_NOT_STARTING
    EPHEMERAL_STORAGE_EXCEEDED = pod_reasons.EPHEMERAL_STORAGE_EXCEEDED
    EVICTED = pod_reasons.EVICTED
    DEVICE_UNAVAILABLE = pod_reasons.DEVICE_UNAVAILABLE
    POD_REJECTED = pod_reasons.POD_REJECTED
    NODE_LOST = pod_reasons.NODE_LOST
    SIDECAR_NOT_READY = pod_reasons.SIDECAR_NOT_READY

    WAITING_FOR_GPU = Facts(
        "WaitingForGPU",
        Source.POD,
        "No node has enough free GPUs; the message quotes the scheduler.",
        "Add GPU nodes, free some GPUs, lower spec.accelerator.count or spec.replicas, or add "
        "tolerations to spec.template.tolerations for any other taints on the GPU nodes. "
        "Nodes offer GPUs only with a device plugin: `kubectl describe nodes` lists them.",
        rank=Rank.ACCELERATOR,
        about=Subject.ROOM,
    )
    UNSCHEDULABLE = Facts(
        "Unschedulable",
        Source.POD,
        "No node can run the pod, for a reason other than a lack of GPUs, such as CPU, memory, "
        "taints or the node selector.",
        "Lower spec.resources, correct spec.template, or add nodes.",
        rank=Rank.NODE,
        about=Subject.ROOM,
    )
    VOLUME_PENDING = Facts(
        "VolumePending",
        Source.POD,
        "A claim that the pods mount is missing or not bound to a volume.",
        "Create the claim in this namespace, correct its name in the spec, or find out with "
        "`kubectl describe pvc` why it is not bound.",
        rank=Rank.VOLUME,
    )
    IMAGE_PULL_ERROR = Facts(
        "ImagePullError",
        Source.POD,
        "The node cannot pull the image.",
        "Correct spec.engine.image, or, if it is unset, the chart value server.gpuImage, "
        "server.amdImage or server.cpuImage. For a private registry, name a Secret in "
        "spec.engine.imagePullSecrets.",
        rank=Rank.IMAGE,
    )
    CONFIG_MAP_MISSING = Facts(
        "ConfigMapMissing",
        Source.POD,
        "A ConfigMap that the spec or the chart names, or its key, does not exist.",
        "Create the ConfigMap, or correct spec.engine.chatTemplate, spec.caBundle or "
        "spec.engine.env. The ConfigMap in the chart value server.caBundle must exist in every "
        "namespace with a service.",
        rank=Rank.CONFIGURATION,
    )
    CONTAINER_START_ERROR = Facts(
        "ContainerStartError",
        Source.POD,
        "The node cannot create or start the container.",
        "Use an image in spec.engine.image that has the command llmservice-server.",
        rank=Rank.CONTAINER,
    )
    LOADING_MODEL = Facts(
        "LoadingModel",
        Source.POD,
        "The container loads the model, or downloads it while no metrics server reports progress.",
        "Wait, or follow it with `kubectl logs deploy/NAME`.",
        rank=Rank.LOAD,
        is_normal=True,
        about=Subject.MODEL,
    )
    CRASH_LOOP = Facts(
        "CrashLoop",
        Source.POD,
        "The container exits again and again and reports no reason; the message quotes the end of "
        "its log.",
        "Look at `kubectl logs --previous deploy/NAME`, and check spec.engine.",
        rank=Rank.CRASH,
        is_transient=True,
        about=Subject.MODEL,
    )
    SERVER_NOT_READY = Facts(
        "ServerNotReady",
        Source.POD,
        "A model server that was ready does not answer its readiness probe.",
        "Wait: a server that hangs is restarted. If this happens again, look at `kubectl logs "
        "deploy/NAME` and at the load of each replica.",
        rank=Rank.READINESS,
    )

    DOWNLOADING_MODEL = Facts(
        "DownloadingModel",
        Source.METRICS_SERVER,
        "The container downloads the model; the message reports the progress in steps of 5 %.",
        "Wait, or follow it with `kubectl logs deploy/NAME`.",
        rank=Rank.DOWNLOAD,
        is_normal=True,
        about=Subject.MODEL,
    )

    MODEL_NOT_FOUND = from_model_server(
        "ModelNotFound",
        "The hub has no such model or revision, or the claim or the object store has no model in "
        "this folder.",
        "Correct spec.model.uri or spec.model.revision. For a private model, name a Secret with a "
        "token in spec.model.credentialsSecretRef. A folder of a claim or an object store must "
        "contain config.json and the weights.",
    )
    MODEL_ACCESS_DENIED = from_model_server(
        "ModelAccessDenied",
        "The hub or the object store requires credentials, or refuses the given ones.",
        "Accept the model's terms on the hub, and name a Secret with a token that may read the "
        "model in spec.model.credentialsSecretRef. For an s3:// model, name a Secret with an "
        "access key in spec.model.objectStore.credentialsSecretRef.",
    )
    HUB_UNREACHABLE = from_model_server(
        "HubUnreachable",
        "The hub does not answer, and the model is not in the cache. Or the object store does not "
        "answer.",
        "Check the network of the pods, or set spec.model.hubEndpoint, or the chart value "
        "model.hubEndpoint, to a mirror. The NetworkPolicy of the pods allows DNS and public "
        "addresses at port 443; spec.networkPolicy changes it.",
    )
    REMOTE_CODE_REFUSED = from_model_server(
        "RemoteCodeRefused",
        "The model contains Python code, which runs only if the spec allows it.",
        "Set spec.model.trustRemoteCode: true if you trust the code, or choose another model.",
    )
    UNSUPPORTED_ARCHITECTURE = from_model_server(
        "UnsupportedArchitecture",
        "The engine's version does not support the model's architecture.",
        "Choose another model, or an image with a newer vLLM in spec.engine.image.",
    )
    CONTEXT_DOES_NOT_FIT = from_model_server(
        "ContextDoesNotFit",
        "The model does not support spec.engine.maxModelLen tokens, or the KV cache cannot hold "
        "one request of that length. The message names the largest number that fits.",
        "Lower spec.engine.maxModelLen, or set it to Auto. For more KV cache, raise "
        "spec.engine.gpuMemoryUtilizationPercent (on CPUs, --kv-cache-memory-bytes in "
        "spec.engine.extraArgs), or use more GPUs or a quantized model.",
    )
    INVALID_ENGINE_ARGUMENT = from_model_server(
        "InvalidEngineArgument",
        "The engine refuses one of its arguments.",
        "Correct the argument that the message names: a field of spec.engine, or a flag in "
        "spec.engine.extraArgs.",
    )
    GPU_OUT_OF_MEMORY = from_model_server(
        "GPUOutOfMemory",
        "The model does not fit into the GPU's memory, or another process uses that memory.",
        "Use more GPUs (spec.accelerator.count), larger GPUs or a quantized model, or lower "
        "spec.engine.maxModelLen. If another process uses the GPU, stop it or lower "
        "spec.engine.gpuMemoryUtilizationPercent.",
    )
    OUT_OF_MEMORY = from_model_server(
        "OutOfMemory",
        "The container reached its memory limit.",
        "Raise spec.resources.limits.memory, or lower spec.engine.maxModelLen.",
    )
    STARTUP_TIMEOUT = from_model_server(
        "StartupTimeout",
        "The model was not loaded within spec.startup.timeoutSeconds, and the kubelet restarted "
        "the container.",
        "Raise spec.startup.timeoutSeconds, choose a smaller or quantized model, or bring the "
        "model nearer: a claim (pvc://), or a mirror of the hub (spec.model.hubEndpoint, or the "
        "chart value model.hubEndpoint).",
    )
    SECRET_MISSING = from_model_server(
        "SecretMissing",
        "A Secret that the spec names, or its key, does not exist or is empty.",
        "Create the Secret in this namespace, or correct spec.model.credentialsSecretRef, "
        "spec.auth.apiKeysSecretRef, spec.caBundle or spec.engine.env.",
        about=None,
    )
    LOAD_FAILED = from_model_server(
        "LoadFailed",
        "The model server exited while loading, with an error that no other reason describes.",
        "Look at `kubectl logs --previous deploy/NAME`, and check spec.engine.",
        is_transient=True,
    )
    ENGINE_DIED = from_model_server(
        "EngineDied",
        "The engine process exited while the model server served requests.",
        "Look at `kubectl logs --previous deploy/NAME`. If this happens again, raise "
        "spec.resources.limits.memory.",
        is_transient=True,
    )
    ENGINE_HUNG = from_model_server(
        "EngineHung",
        "The engine completed no step for spec.serving.engineHangSeconds while requests waited for "
        "one.",
        "Look at `kubectl logs --previous deploy/NAME`. If a step may take that long, raise "
        "spec.serving.engineHangSeconds.",
        is_transient=True,
    )
    CACHE_LOST = from_model_server(
        "CacheLost",
        "Another model server took over the shared cache while this model server filled it.",
        "Wait: the server starts again. If this happens often, use faster storage for the claim "
        "of spec.model.cache.",
        is_transient=True,
    )

    HUB_OVERLOADED = server_reasons.HUB_OVERLOADED
    HUB_BROKEN = server_reasons.HUB_BROKEN
    PROXY_REFUSED = server_reasons.PROXY_REFUSED
    CERTIFICATE_NOT_TRUSTED = server_reasons.CERTIFICATE_NOT_TRUSTED
    STORAGE_FULL = server_reasons.STORAGE_FULL
    STORAGE_ACCESS_DENIED = server_reasons.STORAGE_ACCESS_DENIED
    SHARED_MEMORY_FULL = server_reasons.SHARED_MEMORY_FULL
    GPU_UNUSABLE = server_reasons.GPU_UNUSABLE
    SMOKE_TEST_FAILED = server_reasons.SMOKE_TEST_FAILED
    TENSOR_SIZE_DOES_NOT_FIT = server_reasons.TENSOR_SIZE_DOES_NOT_FIT

    ROLLOUT_IN_PLACE = Facts(
        "RolloutInPlace",
        Source.OPERATOR,
        "The old replicas use the accelerators, the quota or the single-node volume that a new "
        "replica needs, so each old replica terminates before its successor starts.",
        "Wait, or add GPU nodes, raise the quota or use a claim with the access mode "
        "ReadWriteMany. To wait for free room instead, set spec.rolloutStrategy.type to "
        "RollingUpdate.",
    )
    ROLLED_BACK = pod_reasons.ROLLED_BACK
    NAME_CONFLICT = Facts(
        "NameConflict",
        Source.OPERATOR,
        "An object with a name that this service needs has another owner.",
        "Delete or rename that object, or give the LLMService another name.",
    )
    IMMUTABLE_FIELD = Facts(
        "ImmutableField",
        Source.OPERATOR,
        "The API server refuses to change an immutable field.",
        "Delete the object, and the operator creates it again. A claim contains data: revert "
        "spec.model.cache instead, or set its claimName to another claim.",
    )
    OBJECT_REFUSED = Facts(
        "ObjectRefused",
        Source.OPERATOR,
        "The API server refuses an object of the service: an admission webhook, a policy, a "
        "LimitRange or a quota forbids it. The operator still applies every other object of the "
        "service.",
        "Correct the field that the message names, or change the policy. The operator tries again "
        "every minute.",
    )
    RIGHT_MISSING = Facts(
        "RightMissing",
        Source.OPERATOR,
        "The operator lacks a right on an object of the service.",
        "Grant the right that the message names to the operator's service account; the chart of "
        "the operator's version grants all of them.",
    )
    OBJECT_TERMINATING = Facts(
        "ObjectTerminating",
        Source.OPERATOR,
        "An object with a name that this service needs is being deleted.",
        "Wait until the object is gone. If that takes long, look at its finalizers and, for a "
        "claim, at the pods that still mount it.",
        is_normal=True,
    )
    UNREADABLE_OBJECT = Facts(
        "UnreadableObject",
        Source.OPERATOR,
        "An object with a name that this service needs has a form that the API does not allow.",
        "Correct the field that the message names, or delete the object.",
    )
    FIELD_CONFLICT = Facts(
        "FieldConflict",
        Source.OPERATOR,
        "Another client repeatedly reverts a field that the operator sets. The operator waits "
        "before it writes the object again, longer after each write, and at most 5 minutes.",
        "Remove the field from the object that the other field manager applies, or set the field "
        "in the spec of the LLMService to the same value.",
    )
    CLUSTER_ERROR = Facts(
        "ClusterError",
        Source.OPERATOR,
        "The API server does not respond to a write, or responds with an error.",
        "Wait, because the operator tries again. If this continues, look at the API server and at "
        "the admission webhook that the message names.",
    )
    OPERATOR_FAULT = Facts(
        "OperatorFault",
        Source.OPERATOR,
        "The operator met an unexpected error.",
        "Look at the operator's log, and report the error. The operator tries again.",
    )
    INVALID_SPEC = Facts(
        "InvalidSpec",
        Source.OPERATOR,
        "The spec cannot be carried out as written.",
        "Correct the field that the message names.",
    )

    FOLLOWING_LOAD = Facts(
        "FollowingLoad",
        Source.LOAD,
        "The number of replicas follows the load, within minReplicas and maxReplicas.",
        "Nothing.",
        is_normal=True,
    )
    AT_MAXIMUM = Facts(
        "AtMaximum",
        Source.LOAD,
        "The load needs more replicas than maxReplicas.",
        "Raise spec.autoscaling.maxReplicas, or make each replica faster.",
    )
    NO_CAPACITY = Facts(
        "NoCapacity",
        Source.LOAD,
        "The load needs more replicas than are ready: the cluster has no room for them, or a new "
        "replica was not ready after three times the usual cold start.",
        "Add nodes if room is missing, or lower spec.autoscaling.maxReplicas to a number that "
        "fits. The condition Ready names the obstacle.",
    )
    METRICS_MISSING = Facts(
        "MetricsMissing",
        Source.LOAD,
        "The load is unknown, so the number of replicas does not change; the message names the "
        "cause.",
        "Look at the pods and logs of the metrics server.",
    )
    WAITING_FOR_TRAFFIC = Facts(
        "WaitingForTraffic",
        Source.LOAD,
        "The load is not known yet: no replica is ready, too few requests have been answered, or "
        "the metrics server has watched the replicas for less than a minute.",
        "Wait, or send requests.",
        is_normal=True,
    )
    METRICS_AVAILABLE = Facts(
        "MetricsAvailable",
        Source.LOAD,
        "The metrics server knows the load.",
        "Nothing.",
        is_normal=True,
    )
    RECOMMENDING = Facts(
        "Recommending",
        Source.LOAD,
        "The mode is Recommend: the number of replicas does not change, and the status reports a "
        "recommended number.",
        "Set spec.autoscaling.mode to Active, so that the number of replicas follows the load.",
        is_normal=True,
    )
    PAUSED = Facts(
        "Paused",
        Source.LOAD,
        "The mode is Paused: the number of replicas does not change.",
        "Set spec.autoscaling.mode to Active, so that the number of replicas follows the load.",
        is_normal=True,
    )
    FOREIGN_METRICS_API = Facts(
        "ForeignMetricsAPI",
        Source.LOAD,
        "The provider External needs external.metrics.k8s.io, which the metrics server cannot "
        "serve in this cluster; the message says why.",
        "Set spec.autoscaling.provider to Auto, KEDA or Direct.",
    )
    KEDA_MISSING = Facts(
        "KEDAMissing",
        Source.LOAD,
        "The provider KEDA needs KEDA in the cluster, and rights on its ScaledObjects.",
        "Install KEDA 2.17 or newer and set the chart value keda.enabled, or set "
        "spec.autoscaling.provider to Auto.",
    )
    SLO_MET = Facts(
        "SLOMet",
        Source.LOAD,
        "The share of requests within the SLO is at least the objective.",
        "Nothing.",
        is_normal=True,
    )
    SLO_UNREACHABLE = Facts(
        "SLOUnreachable",
        Source.LOAD,
        "Even an idle replica does not attain a limit of spec.slo, so more replicas do not help.",
        "Raise the limit in spec.slo. A faster GPU, tensor parallelism, quantization or a smaller "
        "model lowers both latencies, speculative decoding the ITL, and shorter prompts or a "
        "larger engine.batching.maxNumBatchedTokens the TTFT.",
    )
    SLO_MISSED = Facts(
        "SLOMissed",
        Source.LOAD,
        "The share of requests within the SLO is below the objective.",
        "With autoscaling, wait for new replicas or raise the limit that AutoscalingActive names; "
        "without it, raise spec.replicas. Or relax spec.slo.",
    )

    source: Source
    meaning: str
    hint: str
    rank: Rank
    is_normal: bool
    is_transient: bool
    about: Subject | None

    def __new__(cls, facts: Facts) -> Self:
        member = str.__new__(cls, facts.word)
        member._value_ = facts.word
        member.source, member.meaning, member.hint = facts.source, facts.meaning, facts.hint
        member.rank, member.is_normal = facts.rank, facts.is_normal
        member.is_transient, member.about = facts.is_transient, facts.about
        return member

    @property
    def is_final(self) -> bool:
        """Whether a new replica with this problem does not start until somebody changes something,
        in the spec or in the cluster.
        """
        return self is Reason.CRASH_LOOP or (self.rank in _FINAL and not self.is_transient)

    def advice(self, name: str) -> str:
        """Return the hint with the name of the service in its commands."""
        return in_commands(name, self.hint)

    @classmethod
    def named(cls, word: str) -> Self | None:
        """Return the reason with this name; None if this version does not declare it."""
        return next((each for each in cls if each == word), None)
