"""The LLMService resource: every field, its bounds, its rules and its documentation.

A field's docstring is its text in `kubectl explain`. A default that a user should see is a schema
default. A default that depends on other fields is None here and is decided in desired/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import ErrorDetails

from llmservice_operator.api.accelerator import (
    REQUIRES_GPUS,
    Accelerator,
    AcceleratorType,
    Parallelism,
)
from llmservice_operator.api.access import LIMITS_NEED_ROUTER, Auth, ServiceObject
from llmservice_operator.api.autoscaling import DEFAULT_SLO, Autoscaling, Slo
from llmservice_operator.api.engine import Engine
from llmservice_operator.api.fields import PORTION_FORM, Fields, Rule, quantity_value
from llmservice_operator.api.idle_rules import RULES_OF_AN_IDLE_SERVICE
from llmservice_operator.api.labels import ObjectMetadata
from llmservice_operator.api.lifecycle import (
    PodDisruptionBudget,
    RolloutStrategy,
    SmokeTest,
    Startup,
    Termination,
)
from llmservice_operator.api.model import Model
from llmservice_operator.api.model_source import HubModel, Source, StoreModel
from llmservice_operator.api.network import NetworkPolicy
from llmservice_operator.api.pods import Resources, Template
from llmservice_operator.api.references import KeySource
from llmservice_operator.api.route import Route
from llmservice_operator.api.router import Router, RouterMode
from llmservice_operator.api.schedule import MAX_REPLICAS
from llmservice_operator.api.serving import Serving
from llmservice_operator.api.status import LLMServiceStatus
from llmservice_operator.api.step_rules import STEP_RULES
from llmservice_operator.api.store_rules import RULES_OF_A_STORE
from llmservice_operator.api.unknown_fields import why_unknown
from llmservice_operator.errors import InvalidSpec

_NAME = "[a-z]([-a-z0-9]{0,61}[a-z0-9])?"
"""Pattern of the name of a Service object (RFC 1035 label)."""


_NAMES_A_HUB = (
    "(self.model.uri.startsWith('hf://') || (has(self.model.adapters) && "
    "self.model.adapters.exists(each, each.uri.startsWith('hf://'))) || (has(self.engine) && "
    "has(self.engine.speculativeDecoding) && has(self.engine.speculativeDecoding.draftModel) && "
    "self.engine.speculativeDecoding.draftModel.uri.startsWith('hf://')))"
)
"""The CEL form of `LLMServiceSpec.names_a_hub`."""
_DISK_LIMIT = "self.resources.limits.ephemeral__dash__storage"


def _gpus_only(field: str, is_unset: Callable[[Engine], bool]) -> Rule:
    """Return the rule that a field of spec.engine, or a part of such a field, requires GPUs."""
    parts = f"engine.{field}".split(".")
    absent = (f"!has(self.{'.'.join(parts[: depth + 1])})" for depth in range(len(parts)))
    return Rule(
        f"engine.{field}",
        cel=f"self.accelerator.type != 'cpu' || {' || '.join(absent)}",
        message=REQUIRES_GPUS,
        holds=lambda spec: (
            spec.accelerator.type is not AcceleratorType.CPU or is_unset(spec.engine)
        ),
    )


def _budget_lets_a_drain_finish(amount: str, replicas: str) -> str:
    """Return the CEL form of PodDisruptionBudget.lets_a_drain_finish."""
    return (
        "!has(self.podDisruptionBudget) || !has(self.podDisruptionBudget.minAvailable) || "
        f"{replicas} == 0 || !{amount}.matches('^({PORTION_FORM})$') || ({amount}.endsWith('%') ? "
        f"int({amount}.replace('%', '')) * {replicas} <= 100 * ({replicas} - 1) : "
        f"int({amount}) < {replicas})"
    )


class LLMServiceSpec(Fields):
    """Desired state of the service."""

    model: Model
    """Model to serve."""
    replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] | None = None
    """Number of replicas. Each replica loads the whole model. Default: 1; after autoscaling is
    removed, the number that autoscaling set last."""
    autoscaling: Autoscaling | None = None
    """Scaling with the load, instead of a fixed number of replicas. Default: off."""
    slo: Slo | None = None
    """Latency objectives of the requests. Default with autoscaling: a TTFT of 500 ms and a mean ITL
    of 50 ms for 95 % of the requests; `slo: {}` sets no objective. Default without autoscaling:
    none."""
    accelerator: Accelerator = Accelerator()
    """Hardware that the model runs on."""
    engine: Engine = Engine()
    """Settings of the inference engine, vLLM."""
    resources: Resources = Resources()
    """CPU, memory and disk of each replica. Set the number of GPUs in spec.accelerator.count."""
    template: Template = Template()
    """Pod settings of the replicas: scheduling, ServiceAccount, labels and annotations."""
    object_metadata: ObjectMetadata = ObjectMetadata()
    """Labels and annotations of every object that the operator creates for the service. The pods
    have those of `template` instead, so a change here restarts no replica."""
    service: ServiceObject = ServiceObject()
    """Service object through which clients reach the API."""
    route: Route | None = None
    """Route from Gateways of the Gateway API to the Service object, as an HTTPRoute with the paths
    for clients. The cluster needs the Gateway API, and a user who sets this field needs the right
    to create httproutes in the namespace. Default: none."""
    router: Router | None = None
    """Router between the Service object and the replicas, which chooses a replica for each request
    and lets requests wait while all replicas are busy. Default: see router.enabled."""
    serving: Serving = Serving()
    """Limits of a single request, and the time limit of an engine step."""
    auth: Auth | None = None
    """Authentication of requests. Default: none; every client that can reach the API can use it."""
    startup: Startup = Startup()
    """Time limit for the startup of a replica."""
    smoke_test: SmokeTest = SmokeTest()
    """Test of a new replica: a request that it sends to itself before it is ready."""
    termination: Termination = Termination()
    """Time limits for the shutdown of a replica."""
    rollout_strategy: RolloutStrategy = RolloutStrategy()
    """How a rollout replaces pods, when it counts as stuck, and whether it is rolled back if
    it fails."""
    pod_disruption_budget: PodDisruptionBudget = PodDisruptionBudget()
    """Limit on the number of replicas that may be evicted at a time, for example by a node
    drain."""
    network_policy: NetworkPolicy = NetworkPolicy()
    """Network access to and from the replicas. The API port accepts pods of the same namespace and
    the peers in `from`. The management port accepts only the kubelet, the metrics server and the
    monitoring that the chart names. The replicas can reach DNS, the model's source, the HTTP
    proxies in engine.env or the chart value server.proxy, and the destinations in `to`. The cluster
    needs a network plugin that enforces NetworkPolicies."""
    ca_bundle: KeySource | None = None
    """Certificates, in PEM format, of the authorities that the replicas trust in addition to the
    public ones, such as the authority of a private hub or of a proxy that inspects TLS. The
    replicas use them for connections to the hub, to hosts of media that requests refer to, and to
    all other servers. Default: the chart value server.caBundle."""
    suspend: bool = False
    """Whether the service is suspended. With true, all replicas terminate. The addresses,
    the settings and all other objects remain, except a ScaledObject of KEDA. With false, the
    replicas start again."""

    rules: ClassVar = (
        Rule(
            "replicas",
            cel="!has(self.replicas) || !has(self.autoscaling)",
            message="cannot be set with autoscaling: set autoscaling.minReplicas and "
            "autoscaling.maxReplicas instead, or remove autoscaling",
            holds=lambda spec: spec.replicas is None or spec.autoscaling is None,
        ),
        _gpus_only("parallelism", lambda engine: engine.parallelism is None),
        _gpus_only(
            "gpuMemoryUtilizationPercent",
            lambda engine: engine.gpu_memory_utilization_percent is None,
        ),
        _gpus_only(
            "kvCache.offload", lambda engine: engine.kv_cache is None or not engine.kv_cache.offload
        ),
        Rule(
            "model.offline",
            cel="!has(self.model.offline) || !self.model.offline || !has(self.engine) || "
            "!has(self.engine.speculativeDecoding) || "
            "!has(self.engine.speculativeDecoding.draftModel) || "
            "!self.engine.speculativeDecoding.draftModel.uri.startsWith('hf://') || "
            "(has(self.model.cache) && self.model.cache.type == 'PersistentVolumeClaim')",
            message="leaves no source for the hf:// draft model: set model.cache to a claim "
            "that already holds it, use a draft model on a claim, or remove offline",
            holds=lambda spec: not spec.model.offline or spec.can_draft_offline,
        ),
        Rule(
            "model.credentialsSecretRef",
            cel=f"!has(self.model.credentialsSecretRef) || {_NAMES_A_HUB}",
            message="applies to hf:// models, draft models and adapters only: remove it, because a "
            "claim needs no token, and an s3:// model has objectStore.credentialsSecretRef",
            holds=lambda spec: spec.model.credentials_secret_ref is None or spec.names_a_hub,
        ),
        Rule(
            "model.hubEndpoint",
            cel="!has(self.model.hubEndpoint) || "
            f"((!has(self.model.offline) || !self.model.offline) && {_NAMES_A_HUB})",
            message="has no effect on a service that downloads nothing from a hub: remove it, or "
            "use an hf:// model or adapter without offline",
            holds=lambda spec: spec.model.hub_endpoint is None or spec.downloads,
        ),
        *RULES_OF_A_STORE,
        *STEP_RULES,
        Rule(
            "service.tls",
            cel="!has(self.service) || !has(self.service.tls) || !has(self.router) || "
            "!has(self.router.enabled) || self.router.enabled",
            message="requires the router, which ends TLS: remove router.enabled: false, or remove "
            "it",
            holds=lambda spec: (
                spec.service.tls is None or spec.router_settings.enabled is not False
            ),
        ),
        *RULES_OF_AN_IDLE_SERVICE,
        Rule(
            "service.tls",
            cel="!has(self.service) || !has(self.service.tls) || !has(self.router) || "
            "self.router.mode == 'Proxy'",
            message="has no effect with router.mode InferencePool, because requests do not pass "
            "through the router: remove it, or remove router.mode",
            holds=lambda spec: (
                spec.service.tls is None or spec.router_settings.mode is RouterMode.PROXY
            ),
        ),
        LIMITS_NEED_ROUTER,
        Rule(
            "auth.isolatePrefixCache",
            cel="!has(self.auth) || !self.auth.isolatePrefixCache || !has(self.engine) || "
            "!has(self.engine.prefixCaching) || self.engine.prefixCaching.enabled",
            message="has no effect without prefix caching: remove it, or set "
            "engine.prefixCaching.enabled: true",
            holds=lambda spec: (
                spec.auth is None
                or not spec.auth.isolate_prefix_cache
                or spec.engine.prefix_caching is None
                or spec.engine.prefix_caching.enabled
            ),
        ),
        Rule(
            "smokeTest.timeoutSeconds",
            cel="!has(self.smokeTest) || !has(self.smokeTest.timeoutSeconds) || "
            "!has(self.startup) || !has(self.startup.timeoutSeconds) || "
            "self.smokeTest.timeoutSeconds <= self.startup.timeoutSeconds",
            message="must be at most startup.timeoutSeconds, of which it is a part: lower it, or "
            "raise startup.timeoutSeconds",
            holds=lambda spec: spec.smoke_test.timeout_seconds <= spec.startup.timeout_seconds,
        ),
        Rule(
            "podDisruptionBudget.minAvailable",
            cel=_budget_lets_a_drain_finish(
                amount="string(self.podDisruptionBudget.minAvailable)",
                replicas="(has(self.autoscaling) ? "
                "(self.autoscaling.minReplicas == 0 ? 1 : self.autoscaling.minReplicas) : "
                "has(self.replicas) ? self.replicas : 1)",
            ),
            message="must be less than the number of replicas, or nodes that run one can never "
            "be drained: lower it, raise the number of replicas, or remove it",
            holds=lambda spec: spec.pod_disruption_budget.lets_a_drain_finish(spec.least_replicas),
        ),
        Rule(
            "model.cache.size",
            cel="!has(self.model.cache) || self.model.cache.type != 'Ephemeral' || "
            "!has(self.model.cache.size) || !has(self.resources) || !has(self.resources.limits) || "
            f"!has({_DISK_LIMIT}) || !isQuantity(string(self.model.cache.size)) || "
            f"!isQuantity(string({_DISK_LIMIT})) || quantity(string(self.model.cache.size))"
            f".compareTo(quantity(string({_DISK_LIMIT}))) <= 0",
            message="exceeds resources.limits.ephemeral-storage, at which the kubelet evicts a "
            "replica: raise that limit or lower the size",
            holds=lambda spec: spec.cache_fits_the_disk,
        ),
        Rule(
            "resources.extended",
            cel="!has(self.resources) || !has(self.resources.extended) || "
            "!has(self.accelerator.resourceName) || "
            "!(self.accelerator.resourceName in self.resources.extended)",
            message="contains accelerator.resourceName: remove it, and set accelerator.count",
            holds=lambda spec: spec.accelerator.resource_name not in spec.resources.extended,
        ),
        Rule(
            "accelerator.count",
            cel="!has(self.accelerator.count) || !has(self.engine) || "
            "!has(self.engine.parallelism) || (has(self.engine.parallelism.tensor) ? "
            "self.accelerator.count == self.engine.parallelism.tensor * "
            "self.engine.parallelism.pipeline * self.engine.parallelism.data : "
            "self.accelerator.count % "
            "(self.engine.parallelism.pipeline * self.engine.parallelism.data) == 0)",
            message="must equal tensor x pipeline x data of engine.parallelism or, if tensor is "
            "unset, be a multiple of pipeline x data: change one of them, or remove count",
            holds=lambda spec: (
                spec.accelerator.count is None
                or spec.engine.parallelism is None
                or spec.engine.parallelism.fits(spec.accelerator.count)
            ),
        ),
    )

    @property
    def sources(self) -> tuple[Source, ...]:
        """Sources of the model and, if there is one, of the draft model."""
        speculation = self.engine.speculative_decoding
        draft = None if speculation is None else speculation.draft_model
        return (self.model.source,) if draft is None else (self.model.source, draft.source)

    @property
    def names_a_hub(self) -> bool:
        """Whether the model, the draft model or an adapter is an hf:// model."""
        from_hub = any(isinstance(it, HubModel) for it in self.sources)
        return from_hub or self.model.has_hub_adapters

    @property
    def downloads(self) -> bool:
        """Whether the replicas may download a model or an adapter from a hub."""
        return not self.model.offline and self.names_a_hub

    @property
    def is_in_a_store(self) -> bool:
        """Whether the model is in an object store."""
        return isinstance(self.model.source, StoreModel)

    @property
    def can_draft_offline(self) -> bool:
        """Whether the service can get its draft model, if it has one, without the hub."""
        on_a_claim = self.model.cache is not None and self.model.cache.is_on_a_claim
        return on_a_claim or not any(isinstance(each, HubModel) for each in self.sources[1:])

    @property
    def cache_fits_the_disk(self) -> bool:
        """Whether the disk limit of a replica has room for its model cache."""
        size = None if self.model.cache is None else self.model.cache.node_size
        limit = None if self.resources.limits is None else self.resources.limits.ephemeral_storage
        if size is None or limit is None:
            return True
        return (quantity_value(size) or 0) <= (quantity_value(limit) or 0)

    @property
    def gpus(self) -> int:
        """Number of GPUs of each replica; 0 on a CPU."""
        if self.accelerator.type is AcceleratorType.CPU:
            return 0
        split = self.engine.parallelism or Parallelism()
        return self.accelerator.count or (split.tensor or 1) * split.pipeline * split.data

    @property
    def tensor_parallelism(self) -> int:
        """Number of GPUs that each layer is split across; 0 on a CPU."""
        split = self.engine.parallelism or Parallelism()
        return self.gpus // (split.pipeline * split.data)

    @property
    def objectives(self) -> Slo:
        """Objectives that requests are measured against. Without spec.slo: DEFAULT_SLO if the
        service has autoscaling, otherwise no limits.
        """
        if self.slo is not None:
            return self.slo
        return Slo() if self.autoscaling is None else DEFAULT_SLO

    @property
    def router_settings(self) -> Router:
        """Settings of the router, if the service has one."""
        return self.router or Router()

    @property
    def least_allowed_replicas(self) -> int:
        """Minimum number of replicas, also while the service is idle."""
        return 1 if self.autoscaling is None else self.autoscaling.min_replicas

    @property
    def scales_to_zero(self) -> bool:
        """Whether the service has no replicas while nobody uses it."""
        it = self.autoscaling
        return it is not None and it.scales_to_zero and not self.suspend

    @property
    def least_replicas(self) -> int:
        """Minimum number of replicas, unless the service is suspended or idle."""
        if self.autoscaling is not None:
            return self.autoscaling.fewest_running
        return 1 if self.replicas is None else self.replicas

    @property
    def most_replicas(self) -> int:
        """Maximum number of replicas, unless the service is suspended."""
        return self.least_replicas if self.autoscaling is None else self.autoscaling.max_replicas

    @property
    def desired_replicas(self) -> int:
        """Number of replicas that should run now; the minimum if autoscaling is set."""
        return 0 if self.suspend else self.least_replicas


class Metadata(Fields):
    """Part of an object's metadata that the operator reads."""

    name: str
    namespace: str = "default"
    uid: str = ""
    """UID of the object; empty only for an object that was never in a cluster."""
    generation: int = 0


class LLMService(Fields):
    """One language model, served by vLLM."""

    metadata: Metadata
    spec: LLMServiceSpec
    status: LLMServiceStatus = LLMServiceStatus()

    rules: ClassVar = (
        Rule(
            "metadata.name",
            cel=f"self.metadata.name.matches('^{_NAME}$')",
            message="must be a valid Service name: at most 63 lower-case letters, digits and "
            "'-', starting with a letter and ending with a letter or digit, such as "
            "qwen-7b",
            holds=lambda service: re.fullmatch(_NAME, service.metadata.name) is not None,
        ),
        Rule(
            "spec.model.adapters",
            cel="has(self.spec.model.name) || !has(self.spec.model.adapters) || "
            "!self.spec.model.adapters.exists(each, each.name == self.metadata.name)",
            message="must not have the name of the model, which is the LLMService's: choose "
            "another name, or set model.name",
            holds=lambda service: (
                service.spec.model.name is not None
                or service.metadata.name not in {it.name for it in service.spec.model.adapters}
            ),
        ),
    )

    @field_validator("status", mode="wrap")
    @classmethod
    def _forget_malformed_status(
        cls, value: Any, parse: ValidatorFunctionWrapHandler
    ) -> LLMServiceStatus:
        # Every pass writes the whole status again, so an unreadable status can be ignored. An error
        # here would keep the operator from repairing it.
        try:
            status: LLMServiceStatus = parse(value)
        except ValidationError:
            return LLMServiceStatus()
        return status

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Return the service that `body`, an object of the API server, describes.

        Unknown fields of the spec are ignored. Raises InvalidSpec for the first error.
        """
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            raise _invalid_spec(error.errors(include_url=False)[0]) from error

    @classmethod
    def problems(cls, body: Mapping[str, Any]) -> list[InvalidSpec]:
        """Return every error in `body`, an LLMService that was not sent to an API server. Unknown
        fields are errors, too.

        The rules between the fields of an object are checked only if each field of the object is
        valid.
        """
        try:
            cls.model_validate(body)
        except ValidationError as error:
            found = error.errors(include_url=False)
        else:
            found = []
        try:
            LLMServiceSpec.model_validate(
                body.get("spec"), extra="forbid", by_alias=True, by_name=False
            )
        except ValidationError as error:
            unknown = [it for it in error.errors(include_url=False) if _is_unknown(it)]
            found += [ErrorDetails({**it, "loc": ("spec", *it["loc"])}) for it in unknown]
        return [_invalid_spec(each) for each in found]

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


def _is_unknown(details: ErrorDetails) -> bool:
    return details["type"] == "extra_forbidden"


def _invalid_spec(details: ErrorDetails) -> InvalidSpec:
    """Return the error about one problem, with the path of its field in the user's YAML."""
    path = [*details["loc"], *filter(None, [details.get("ctx", {}).get("field")])]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return InvalidSpec(_message(details), field.lstrip("."))


def _message(details: ErrorDetails) -> str:
    match details["type"]:
        case "rule":
            return details["msg"]
        case "missing":
            return "is required"
        case "model_type":
            return f"must be an object with fields, not {details['input']!r}"
        case "extra_forbidden":
            return why_unknown(str(details["loc"][-1]), LLMServiceSpec)
        case _:
            # Pydantic writes "Input should be ...", but here the field's path comes first.
            return f"{details['msg'].removeprefix('Input ')}, not {details['input']!r}"
