"""The reasons that a condition may have, declared once, each with what to do about it.

docs/conditions.md is made from what is declared here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from llmservice_operator.api.reason_facts import Facts, Rank, Source, Subject


class Reason(StrEnum):
    """Why a condition has its status."""

    SERVING = Facts(
        "Serving",
        Source.COUNTS,
        "All replicas asked for are ready and run the present spec.",
        "Nothing.",
        is_normal=True,
    )
    MODEL_LOADED = Facts(
        "ModelLoaded",
        Source.COUNTS,
        "A model server of the present spec is ready.",
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
        "Pods are being created or replaced and nothing hinders them.",
        "Wait.",
        is_normal=True,
    )
    SCALED_TO_ZERO = Facts(
        "ScaledToZero",
        Source.COUNTS,
        "No replica is asked for: spec.replicas is 0.",
        "Set it to 1 or more to serve the model.",
        is_normal=True,
    )
    SUSPENDED = Facts(
        "Suspended",
        Source.COUNTS,
        "No replica is asked for: spec.suspend is true.",
        "Set it to false to serve the model again.",
        is_normal=True,
    )
    NO_REPLICA_READY = Facts(
        "NoReplicaReady",
        Source.COUNTS,
        "No model server answers.",
        "The condition Ready says why.",
    )

    QUOTA_EXCEEDED = Facts(
        "QuotaExceeded",
        Source.ROLLOUT,
        "A ResourceQuota of the namespace refuses the pods.",
        "Raise the quota, or lower spec.replicas, spec.accelerator.count or spec.resources.",
        rank=Rank.QUOTA,
        about=Subject.ROOM,
    )
    POD_REFUSED = Facts(
        "PodRefused",
        Source.ROLLOUT,
        "The API server refuses the pods for another reason, such as an admission policy.",
        "Change what it names, or the policy.",
        rank=Rank.ADMISSION,
    )
    ROLLOUT_IN_PLACE = Facts(
        "RolloutInPlace",
        Source.OPERATOR,
        "No accelerator is free for a new replica beside the old ones, so each old one ends before "
        "its successor starts.",
        "Wait, or add GPU nodes; with spec.rolloutStrategy.type RollingUpdate a rollout waits for "
        "a free GPU instead.",
    )
    ROLLOUT_STUCK = Facts(
        "RolloutStuck",
        Source.ROLLOUT,
        "The rollout made no progress within its deadline and no pod says why.",
        "Look at `kubectl describe pods -l llmservice.dev/name=NAME`.",
        rank=Rank.DEADLINE,
    )

    WAITING_FOR_GPU = Facts(
        "WaitingForGPU",
        Source.POD,
        "The scheduler finds no node with enough free GPUs; the message has its numbers.",
        "Add GPU nodes or free GPUs, lower spec.accelerator.count or spec.replicas, or tolerate "
        "in spec.template.tolerations what taints the GPU nodes have beside that of their GPUs. "
        "Nodes offer GPUs only with a device plugin: `kubectl describe nodes` lists them.",
        rank=Rank.ACCELERATOR,
        about=Subject.ROOM,
    )
    UNSCHEDULABLE = Facts(
        "Unschedulable",
        Source.POD,
        "The scheduler finds no node for another reason: CPU, memory, taints, node selector.",
        "Lower spec.resources, correct spec.template, or add nodes.",
        rank=Rank.NODE,
        about=Subject.ROOM,
    )
    VOLUME_PENDING = Facts(
        "VolumePending",
        Source.POD,
        "A claim that the pods mount is missing or not bound to a volume.",
        "Create the claim in this namespace, see with `kubectl describe pvc` why it is not bound, "
        "or correct its name in the spec.",
        rank=Rank.VOLUME,
    )
    IMAGE_PULL_ERROR = Facts(
        "ImagePullError",
        Source.POD,
        "The node cannot get the image.",
        "Correct spec.engine.image or, where it is not set, the chart values server.gpuImage and "
        "server.cpuImage; for a private registry name a Secret in spec.engine.imagePullSecrets.",
        rank=Rank.IMAGE,
    )
    SECRET_MISSING = Facts(
        "SecretMissing",
        Source.MODEL_SERVER,
        "A Secret that the spec names, or its key, does not exist.",
        "Create the Secret, or correct spec.model.credentialsSecretRef, "
        "spec.auth.apiKeysSecretRef or spec.engine.env.",
        rank=Rank.LAST_WORDS,
    )
    CONFIG_MAP_MISSING = Facts(
        "ConfigMapMissing",
        Source.POD,
        "A ConfigMap that the spec names, or its key, does not exist.",
        "Create the ConfigMap, or correct spec.engine.chatTemplate or spec.engine.env.",
        rank=Rank.CONFIGURATION,
    )
    CONTAINER_START_ERROR = Facts(
        "ContainerStartError",
        Source.POD,
        "The node cannot create or start the container.",
        "An image in spec.engine.image must hold the command llmservice-server.",
        rank=Rank.CONTAINER,
    )
    LOADING_MODEL = Facts(
        "LoadingModel",
        Source.POD,
        "The container runs and loads the model, or downloads it where no metrics server tells.",
        "Wait, or follow it with `kubectl logs`.",
        rank=Rank.LOAD,
        is_normal=True,
        about=Subject.MODEL,
    )
    DOWNLOADING_MODEL = Facts(
        "DownloadingModel",
        Source.METRICS_SERVER,
        "The container downloads the model; the message says how much of it is there, in steps of "
        "5 %.",
        "Wait, or follow it with `kubectl logs`.",
        rank=Rank.DOWNLOAD,
        is_normal=True,
        about=Subject.MODEL,
    )
    STARTUP_TIMEOUT = Facts(
        "StartupTimeout",
        Source.MODEL_SERVER,
        "The model was not loaded within spec.startup.timeoutSeconds, and the kubelet restarted "
        "the container.",
        "Raise spec.startup.timeoutSeconds, bring the model nearer (a claim with pvc://, or a "
        "mirror with the chart value model.hubEndpoint), or choose a smaller or quantized one.",
        rank=Rank.LAST_WORDS,
        about=Subject.MODEL,
    )
    CRASH_LOOP = Facts(
        "CrashLoop",
        Source.POD,
        "The container ends again and again; the message carries its last words.",
        "Look at `kubectl logs --previous`, and at spec.engine.",
        rank=Rank.CRASH,
        is_transient=True,
        about=Subject.MODEL,
    )
    SERVER_NOT_READY = Facts(
        "ServerNotReady",
        Source.POD,
        "The model server served and does not answer its readiness probe now.",
        "Wait: one that hangs is restarted. If it happens again, look at `kubectl logs` and at the "
        "load of each replica.",
        rank=Rank.READINESS,
    )

    MODEL_NOT_FOUND = Facts(
        "ModelNotFound",
        Source.MODEL_SERVER,
        "The hub has no such model or revision, or the claim no such folder.",
        "Correct spec.model.uri or spec.model.revision; for a private model name a Secret with a "
        "token in spec.model.credentialsSecretRef.",
        rank=Rank.LAST_WORDS,
        about=Subject.MODEL,
    )
    MODEL_ACCESS_DENIED = Facts(
        "ModelAccessDenied",
        Source.MODEL_SERVER,
        "The hub wants a token, or refuses the given one.",
        "Accept the model's terms on the hub and name a Secret with a token that may read it in "
        "spec.model.credentialsSecretRef.",
        rank=Rank.LAST_WORDS,
        about=Subject.MODEL,
    )
    HUB_UNREACHABLE = Facts(
        "HubUnreachable",
        Source.MODEL_SERVER,
        "The hub does not answer.",
        "Check the network of the pods, which their NetworkPolicy lets reach DNS and public "
        "addresses at port 443; see spec.networkPolicy. Or set the chart value model.hubEndpoint "
        "to a mirror.",
        rank=Rank.LAST_WORDS,
        about=Subject.MODEL,
    )
    REMOTE_CODE_REFUSED = Facts(
        "RemoteCodeRefused",
        Source.MODEL_SERVER,
        "The model brings Python code of its own, which is not run unless you trust it.",
        "Set spec.model.trustRemoteCode: true if you do, or choose another model.",
        rank=Rank.LAST_WORDS,
        about=Subject.MODEL,
    )
    UNSUPPORTED_ARCHITECTURE = Facts(
        "UnsupportedArchitecture",
        Source.MODEL_SERVER,
        "The engine's version does not know the model's architecture.",
        "Choose another model, or an image with a newer vLLM in spec.engine.image.",
        rank=Rank.LAST_WORDS,
        about=Subject.MODEL,
    )
    CONTEXT_DOES_NOT_FIT = Facts(
        "ContextDoesNotFit",
        Source.MODEL_SERVER,
        "The KV cache cannot hold one request of engine.maxModelLen tokens, or the model was not "
        "made for so many; the message has the largest number that fits.",
        "Lower spec.engine.maxModelLen, or leave the KV cache more memory: "
        "spec.engine.gpuMemoryUtilizationPercent, more GPUs, a quantized model.",
        rank=Rank.LAST_WORDS,
        about=Subject.MODEL,
    )
    INVALID_ENGINE_ARGUMENT = Facts(
        "InvalidEngineArgument",
        Source.MODEL_SERVER,
        "The engine refuses one of its arguments.",
        "Correct the field of spec.engine, or the flag in spec.engine.extraArgs, that the message "
        "names.",
        rank=Rank.LAST_WORDS,
        about=Subject.MODEL,
    )
    GPU_OUT_OF_MEMORY = Facts(
        "GPUOutOfMemory",
        Source.MODEL_SERVER,
        "The GPU's memory cannot hold the model, or something else uses it.",
        "Use more GPUs (spec.accelerator.count), larger ones, a quantized model, or lower "
        "spec.engine.maxModelLen or spec.engine.gpuMemoryUtilizationPercent.",
        rank=Rank.LAST_WORDS,
        about=Subject.MODEL,
    )
    OUT_OF_MEMORY = Facts(
        "OutOfMemory",
        Source.MODEL_SERVER,
        "The container came to its memory limit; where that kills it at once, the kubelet says so.",
        "Raise spec.resources.limits.memory, or lower spec.engine.maxModelLen.",
        rank=Rank.LAST_WORDS,
        about=Subject.MODEL,
    )

    NAME_CONFLICT = Facts(
        "NameConflict",
        Source.OPERATOR,
        "An object with a name that this service needs belongs to somebody else.",
        "Delete or rename that object, or give the LLMService another name.",
    )
    IMMUTABLE_FIELD = Facts(
        "ImmutableField",
        Source.OPERATOR,
        "The API server refuses a change of a field that cannot change.",
        "Delete that object: it is made anew as wanted. A claim holds data: put spec.model.cache "
        "back instead, or set claimName to another claim.",
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
        "The replicas follow the load, within minReplicas and maxReplicas.",
        "Nothing.",
        is_normal=True,
    )
    AT_MAXIMUM = Facts(
        "AtMaximum",
        Source.LOAD,
        "The load needs more replicas than maxReplicas.",
        "Raise spec.autoscaling.maxReplicas, or make a replica sustain more.",
    )
    NO_CAPACITY = Facts(
        "NoCapacity",
        Source.LOAD,
        "The load needs more replicas than become ready: the cluster has no room for them, or "
        "three cold starts did not suffice.",
        "Ready says what they wait for; add nodes if it is room, or lower "
        "spec.autoscaling.maxReplicas to what there is room for.",
    )
    METRICS_MISSING = Facts(
        "MetricsMissing",
        Source.LOAD,
        "The load is not known; the replicas are held.",
        "See the message; if the metrics server is away, look at its pods.",
    )
    WAITING_FOR_TRAFFIC = Facts(
        "WaitingForTraffic",
        Source.LOAD,
        "Nothing is known yet: no replica is ready, no request came, or the first minute lasts.",
        "Wait, or send a request.",
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
        "The mode is Recommend: the replicas stay, and the status says how many there would be.",
        "Set spec.autoscaling.mode to Active to let them follow.",
        is_normal=True,
    )
    PAUSED = Facts(
        "Paused",
        Source.LOAD,
        "The mode is Paused: the replicas stay.",
        "Set spec.autoscaling.mode to Active to let them follow the load.",
        is_normal=True,
    )
    FOREIGN_METRICS_API = Facts(
        "ForeignMetricsAPI",
        Source.LOAD,
        "The provider External needs external.metrics.k8s.io, which cannot be served here; the "
        "message says why. It is left alone.",
        "Set spec.autoscaling.provider to Auto, KEDA or Direct.",
    )
    KEDA_MISSING = Facts(
        "KEDAMissing",
        Source.LOAD,
        "The provider KEDA needs KEDA in the cluster and rights on its ScaledObjects.",
        "Install KEDA 2.17 or newer and set the chart value keda.enabled, or set "
        "spec.autoscaling.provider to Auto.",
    )
    SLO_MET = Facts(
        "SLOMet",
        Source.LOAD,
        "As many requests as the objective asks for are within the SLO.",
        "Nothing.",
        is_normal=True,
    )
    SLO_MISSED = Facts(
        "SLOMissed",
        Source.LOAD,
        "Fewer requests than the objective asks for are within the SLO.",
        "If AutoscalingActive is at a limit, lift it; else wait for the new replicas, or relax "
        "spec.slo.",
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

    @classmethod
    def named(cls, word: str) -> Self | None:
        """Return the reason with this word; None for one of another version."""
        return next((each for each in cls if each == word), None)
