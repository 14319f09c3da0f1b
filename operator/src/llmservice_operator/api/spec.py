"""The LLMService resource: every field, its bounds, its rules and its documentation.

A field's docstring is its text in `kubectl explain`. Defaults that a user should see are schema
defaults; one that depends on other fields is none here and is decided in desired/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import ErrorDetails

from llmservice_operator.api.accelerator import Accelerator, AcceleratorType, Parallelism
from llmservice_operator.api.access import Auth, ServiceObject
from llmservice_operator.api.autoscaling import DEFAULT_SLO, MAX_REPLICAS, Autoscaling, Slo
from llmservice_operator.api.engine import Engine
from llmservice_operator.api.fields import PORTION_FORM, Fields, Rule, quantity_value
from llmservice_operator.api.lifecycle import (
    PodDisruptionBudget,
    RolloutStrategy,
    Startup,
    Termination,
)
from llmservice_operator.api.model import ClaimModel, HubModel, Model
from llmservice_operator.api.network import NetworkPolicy
from llmservice_operator.api.pods import Resources, Template
from llmservice_operator.api.serving import Serving
from llmservice_operator.api.status import LLMServiceStatus
from llmservice_operator.errors import InvalidSpec

_NAME = "[a-z]([-a-z0-9]{0,61}[a-z0-9])?"
"""A Service object's name (RFC 1035 label)."""


_DISK_LIMIT = "self.resources.limits.ephemeral__dash__storage"


def _nvidia_only(field: str, is_unset: Callable[[Engine], bool]) -> Rule:
    """Return the rule that a field of spec.engine, or a part of one, needs GPUs."""
    parts = f"engine.{field}".split(".")
    absent = (f"!has(self.{'.'.join(parts[: depth + 1])})" for depth in range(len(parts)))
    return Rule(
        f"engine.{field}",
        cel=f"self.accelerator.type == 'nvidia' || {' || '.join(absent)}",
        message="belongs to accelerator.type nvidia only: remove it or choose nvidia",
        holds=lambda spec: spec.accelerator.type is AcceleratorType.NVIDIA or is_unset(spec.engine),
    )


def _budget_lets_a_drain_finish(amount: str, replicas: str) -> str:
    """Return the rule for which Python has PodDisruptionBudget.lets_a_drain_finish."""
    return (
        "!has(self.podDisruptionBudget) || !has(self.podDisruptionBudget.minAvailable) || "
        f"{replicas} == 0 || !{amount}.matches('^({PORTION_FORM})$') || ({amount}.endsWith('%') ? "
        f"int({amount}.replace('%', '')) * {replicas} <= 100 * ({replicas} - 1) : "
        f"int({amount}) < {replicas})"
    )


class LLMServiceSpec(Fields):
    """What the user asks for."""

    model: Model
    """The model to serve."""
    replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] | None = None
    """Model servers to run; each holds a whole copy of the model. Default: 1, or as many as there
    were when autoscaling was removed."""
    autoscaling: Autoscaling | None = None
    """Replicas that follow the load, instead of a fixed number. Default: off."""
    slo: Slo | None = None
    """What a request is to achieve. Default: a TTFT of 500 ms and a mean ITL of 50 ms for 95 % of
    the requests when autoscaling is on; `slo: {}` switches it off."""
    accelerator: Accelerator = Accelerator()
    """What the model runs on."""
    engine: Engine = Engine()
    """How vLLM runs the model."""
    resources: Resources = Resources()
    """CPU, memory and disk of each replica; GPUs are asked for with accelerator.count."""
    template: Template = Template()
    """Where the replicas may run."""
    service: ServiceObject = ServiceObject()
    """How clients reach the API."""
    serving: Serving = Serving()
    """What a replica allows one request, and when it counts as hung."""
    auth: Auth | None = None
    """What a request must bring. Default: nothing, whoever reaches the API may use it."""
    startup: Startup = Startup()
    """How a replica begins."""
    termination: Termination = Termination()
    """How a replica ends."""
    rollout_strategy: RolloutStrategy = RolloutStrategy()
    """How pods are replaced after a change."""
    pod_disruption_budget: PodDisruptionBudget = PodDisruptionBudget()
    """How many replicas node drains may end at a time."""
    network_policy: NetworkPolicy = NetworkPolicy()
    """Who may reach the replicas: the API the own namespace and whom you list, the management port
    the kubelet, the metrics server and monitoring alone. The replicas themselves reach DNS, the
    model's source and whom you list. Needs a network plugin that enforces NetworkPolicies."""
    suspend: bool = False
    """True ends all replicas, keeps every object, address and setting, and starts them again as
    soon as it is false."""

    rules: ClassVar = (
        Rule(
            "replicas",
            cel="!has(self.replicas) || !has(self.autoscaling)",
            message="is decided by autoscaling: change autoscaling.minReplicas and "
            "autoscaling.maxReplicas, or remove autoscaling",
            holds=lambda spec: spec.replicas is None or spec.autoscaling is None,
        ),
        _nvidia_only("parallelism", lambda engine: engine.parallelism is None),
        _nvidia_only(
            "gpuMemoryUtilizationPercent",
            lambda engine: engine.gpu_memory_utilization_percent is None,
        ),
        _nvidia_only(
            "kvCache.offload", lambda engine: engine.kv_cache is None or not engine.kv_cache.offload
        ),
        Rule(
            "model.offline",
            cel="!has(self.model.offline) || !self.model.offline || !has(self.engine) || "
            "!has(self.engine.speculativeDecoding) || "
            "!has(self.engine.speculativeDecoding.draftModel) || "
            "!self.engine.speculativeDecoding.draftModel.uri.startsWith('hf://') || "
            "(has(self.model.cache) && self.model.cache.type == 'PersistentVolumeClaim')",
            message="leaves the hf:// draft model nowhere to come from: set model.cache to a claim "
            "that was filled before, take a draft model that is on a claim, or remove it",
            holds=lambda spec: not spec.model.offline or spec.can_draft_offline,
        ),
        Rule(
            "podDisruptionBudget.minAvailable",
            cel=_budget_lets_a_drain_finish(
                amount="string(self.podDisruptionBudget.minAvailable)",
                replicas="(has(self.autoscaling) ? self.autoscaling.minReplicas : "
                "has(self.replicas) ? self.replicas : 1)",
            ),
            message="must be less than the replicas, or no node with one could ever be drained: "
            "lower it, raise replicas, or remove it",
            holds=lambda spec: spec.pod_disruption_budget.lets_a_drain_finish(spec.least_replicas),
        ),
        Rule(
            "model.cache.size",
            cel="!has(self.model.cache) || self.model.cache.type != 'Ephemeral' || "
            "!has(self.model.cache.size) || !has(self.resources) || !has(self.resources.limits) || "
            f"!has({_DISK_LIMIT}) || !isQuantity(string(self.model.cache.size)) || "
            f"!isQuantity(string({_DISK_LIMIT})) || quantity(string(self.model.cache.size))"
            f".compareTo(quantity(string({_DISK_LIMIT}))) <= 0",
            message="is more than resources.limits.ephemeral-storage, at which a replica is ended: "
            "raise that, or lower this",
            holds=lambda spec: spec.cache_fits_the_disk,
        ),
        Rule(
            "accelerator.count",
            cel="!has(self.accelerator.count) || !has(self.engine) || "
            "!has(self.engine.parallelism) || (has(self.engine.parallelism.tensor) ? "
            "self.accelerator.count == self.engine.parallelism.tensor * "
            "self.engine.parallelism.pipeline * self.engine.parallelism.data : "
            "self.accelerator.count % "
            "(self.engine.parallelism.pipeline * self.engine.parallelism.data) == 0)",
            message="must be tensor x pipeline x data of engine.parallelism, or some GPUs would be "
            "idle: change one of them, or remove count",
            holds=lambda spec: (
                spec.accelerator.count is None
                or spec.engine.parallelism is None
                or spec.engine.parallelism.fits(spec.accelerator.count)
            ),
        ),
    )

    @property
    def sources(self) -> tuple[HubModel | ClaimModel, ...]:
        """Where the model comes from and, if there is one, the draft model."""
        speculation = self.engine.speculative_decoding
        draft = None if speculation is None else speculation.draft_model
        return (self.model.source,) if draft is None else (self.model.source, draft.source)

    @property
    def can_draft_offline(self) -> bool:
        """Whether the draft model, if there is one, can be had without the hub."""
        on_a_claim = self.model.cache is not None and self.model.cache.is_on_a_claim
        return on_a_claim or not any(isinstance(each, HubModel) for each in self.sources[1:])

    @property
    def cache_fits_the_disk(self) -> bool:
        """Whether the limit of the node's disk leaves the room that the cache is given."""
        size = None if self.model.cache is None else self.model.cache.node_size
        limit = None if self.resources.limits is None else self.resources.limits.ephemeral_storage
        if size is None or limit is None:
            return True
        return (quantity_value(size) or 0) <= (quantity_value(limit) or 0)

    @property
    def gpus(self) -> int:
        """GPUs of each replica."""
        if self.accelerator.type is AcceleratorType.CPU:
            return 0
        split = self.engine.parallelism or Parallelism()
        return self.accelerator.count or (split.tensor or 1) * split.pipeline * split.data

    @property
    def tensor_parallelism(self) -> int:
        """GPUs that each layer is split over; 0 on a CPU."""
        split = self.engine.parallelism or Parallelism()
        return self.gpus // (split.pipeline * split.data)

    @property
    def objectives(self) -> Slo:
        """What requests are judged by; without limits when nobody asked for any."""
        if self.slo is not None:
            return self.slo
        return Slo() if self.autoscaling is None else DEFAULT_SLO

    @property
    def least_replicas(self) -> int:
        """Replicas that there are, at least, unless the service is suspended."""
        if self.autoscaling is not None:
            return self.autoscaling.min_replicas
        return 1 if self.replicas is None else self.replicas

    @property
    def desired_replicas(self) -> int:
        """Replicas that are to run now; the least of them while autoscaling decides."""
        return 0 if self.suspend else self.least_replicas


class Metadata(Fields):
    """The part of an object's metadata that the operator reads."""

    name: str
    namespace: str = "default"
    uid: str = ""
    """Empty only for an object that was never in a cluster."""
    generation: int = 0
    deletion_timestamp: str | None = None


class LLMService(Fields):
    """One language model, served by vLLM."""

    metadata: Metadata
    spec: LLMServiceSpec
    status: LLMServiceStatus = LLMServiceStatus()

    rules: ClassVar = (
        Rule(
            "metadata.name",
            cel=f"self.metadata.name.matches('^{_NAME}$')",
            message="must be usable as the name of a Service: at most 63 lower-case "
            "letters, digits and '-', first a letter, last a letter or digit, such as qwen-7b",
            holds=lambda service: re.fullmatch(_NAME, service.metadata.name) is not None,
        ),
    )

    @field_validator("status", mode="wrap")
    @classmethod
    def _forget_malformed_status(
        cls, value: Any, parse: ValidatorFunctionWrapHandler
    ) -> LLMServiceStatus:
        # Every pass writes the whole status anew, so one that cannot be read is worth nothing,
        # while refusing the service for it would stop the operator from repairing it.
        try:
            status: LLMServiceStatus = parse(value)
        except ValidationError:
            return LLMServiceStatus()
        return status

    @classmethod
    def parse(cls, body: Mapping[str, Any], *, refuse_unknown_fields: bool = False) -> Self:
        """Return the service that `body`, an object of the API server, describes.

        Unknown fields of the spec are ignored unless `refuse_unknown_fields`, for input that no
        API server has checked. Raises InvalidSpec for the first thing that is wrong.
        """
        try:
            service = cls.model_validate(body)
        except ValidationError as error:
            raise _invalid_spec(error) from error
        if refuse_unknown_fields:
            try:
                LLMServiceSpec.model_validate(
                    body["spec"], extra="forbid", by_alias=True, by_name=False
                )
            except ValidationError as error:
                raise _invalid_spec(error, "spec") from error
        return service

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str:
        return self.metadata.namespace

    @property
    def uid(self) -> str:
        return self.metadata.uid

    @property
    def generation(self) -> int:
        return self.metadata.generation

    @property
    def is_deleting(self) -> bool:
        return self.metadata.deletion_timestamp is not None


def _invalid_spec(error: ValidationError, *within: str) -> InvalidSpec:
    """Return the first complaint of `error` with the path as it stands in the user's YAML."""
    first = error.errors(include_url=False)[0]
    path = [*within, *first["loc"], *filter(None, [first.get("ctx", {}).get("field")])]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return InvalidSpec(_message(first), field.lstrip("."))


def _message(details: ErrorDetails) -> str:
    match details["type"]:
        case "rule":
            return details["msg"]
        case "missing":
            return "is required"
        case "model_type":
            return f"should be an object with fields, not {details['input']!r}"
        case "extra_forbidden":
            return (
                "is no field of an LLMService: correct its name, or its indentation; "
                "`kubectl explain llmservice.spec --recursive` lists them all"
            )
        case _:
            # Pydantic writes "Input should be ..." and the field's path stands before it.
            return f"{details['msg'].removeprefix('Input ')}, not {details['input']!r}"
