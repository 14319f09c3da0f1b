"""spec.model: the source of the weights, and the names by which clients call the model."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from llmservice_operator.api.adapters import (
    DEFAULT_MAX_LORA_RANK,
    DEFAULT_MAX_LORAS,
    MOST_ADAPTERS,
    Adapter,
    LoraRank,
)
from llmservice_operator.api.cache import Cache
from llmservice_operator.api.fields import ATOMIC, Fields, Rule, keyed_by, matches
from llmservice_operator.api.flags import EngineFlag
from llmservice_operator.api.model_source import (
    HUB_SCHEME,
    REVISION_RULE,
    STORE_SCHEME,
    ClaimModel,
    ModelUri,
    Revision,
    ServedName,
    Source,
    model_source,
)
from llmservice_operator.api.object_store import ObjectStore
from llmservice_operator.api.references import HTTP_ADDRESS, SUBDOMAIN_PATTERN


class SecretKeyReference(Fields):
    name: Annotated[
        str,
        Field(min_length=1, max_length=253),
        matches(SUBDOMAIN_PATTERN, "must be the name of a Secret, such as hub-token"),
    ]
    """Name of a Secret in the LLMService's namespace."""
    key: Annotated[
        str,
        Field(min_length=1, max_length=253),
        matches("[A-Za-z0-9._-]+", "must be a key of a Secret, such as HF_TOKEN"),
    ] = "HF_TOKEN"
    """Key in that Secret. Its value is the token."""


Quantization = Annotated[
    str,
    Field(min_length=1, max_length=64),
    matches(
        "[a-z0-9][a-z0-9_-]*", "must be a quantization method of the engine, such as fp8 or awq"
    ),
]


HubEndpoint = Annotated[
    str,
    Field(min_length=1, max_length=512),
    matches(
        HTTP_ADDRESS,
        "must be the address of a hub, such as https://hub.example.com, without a user or token: "
        "set model.credentialsSecretRef for a token",
    ),
]


class Model(Fields):
    uri: Annotated[ModelUri, EngineFlag("--model", is_computed=True)]
    """Source of the model. hf://ORGANISATION/NAME is a model on the Hugging Face Hub.
    pvc://CLAIM/PATH is a folder on a PersistentVolumeClaim of this namespace, mounted read-only.
    s3://BUCKET/PATH is a folder of an object store with an S3 API. The weights in this folder are
    streamed into the engine at every start."""
    name: Annotated[ServedName, EngineFlag("--served-model-name", is_computed=True)] | None = None
    """Model name that clients send as `model`. Default: the LLMService's name."""
    aliases: Annotated[
        tuple[ServedName, ...],
        Field(max_length=16, json_schema_extra=ATOMIC),
    ] = ()
    """Additional names that clients may send as `model`, such as the name of an earlier model that
    this model replaces."""
    revision: Annotated[Revision, EngineFlag("--revision")] | None = None
    """Branch, tag or commit of an hf:// model. Prefer a commit: with a branch, two replicas can
    serve different weights. Default: the repository's main branch."""
    hub_endpoint: HubEndpoint | None = None
    """Address of a hub or mirror that is compatible with Hugging Face. The hf:// models and
    adapters of this service are downloaded from this address. The token of credentialsSecretRef is
    sent to it. Default: the chart value model.hubEndpoint, or huggingface.co."""
    credentials_secret_ref: SecretKeyReference | None = None
    """Secret with the access token for a private or gated hf:// model or adapter. Default: no
    token."""
    object_store: ObjectStore | None = None
    """Address and credentials of the object store of an s3:// model. Default: Amazon S3, with the
    role of the ServiceAccount in template.serviceAccountName."""
    trust_remote_code: Annotated[bool, EngineFlag("--trust-remote-code")] = False
    """Whether the model server runs Python code that ships with the model. Set it only for a model
    whose code you have reviewed, and pin the model's commit in revision. If the chart's admission
    policy is on, setting this field, or changing the model or draft model while the field is true,
    requires the trust-remote-code verb on llmservices."""

    adapters: Annotated[
        tuple[Adapter, ...],
        Field(
            max_length=MOST_ADAPTERS,
            json_schema_extra=keyed_by("name"),
        ),
        EngineFlag("--enable-lora", also=("--lora-modules",), is_computed=True),
    ] = ()
    """LoRA adapters of the model. Clients send the name of an adapter as `model`. A change of the
    list restarts no replica, with one exception: if neither maxLoras nor maxLoraRank is set, the
    replicas restart when the first adapter is added and when the last one is removed."""
    max_loras: (
        Annotated[int, Field(ge=1, le=64), EngineFlag("--max-loras", is_computed=True)] | None
    ) = None
    """Maximum number of different adapters in one engine step. Requests for further adapters wait.
    The engine reserves GPU memory for this number of adapters, even if it has loaded fewer.
    Default: 4 if there is an adapter or maxLoraRank is set; otherwise none."""
    max_lora_rank: Annotated[LoraRank, EngineFlag("--max-lora-rank", is_computed=True)] | None = (
        None
    )
    """Maximum rank of an adapter. The engine reserves memory for adapters of this rank. Default: 16
    if there is an adapter or maxLoras is set; otherwise none."""
    offline: bool = False
    """Whether the model server works without the hub. With true, the model server loads the model
    only from the claim of a pvc:// model or from the claim of the cache."""
    cache: Cache | None = None
    """Storage for downloaded weights and compiled kernels. Default: the node's disk; the pod's
    files there are deleted with the pod."""

    rules: ClassVar = (
        REVISION_RULE,
        Rule(
            "offline",
            cel="!has(self.offline) || !self.offline || !self.uri.startsWith('hf://') || "
            "(has(self.cache) && self.cache.type == 'PersistentVolumeClaim')",
            message="leaves no source for an hf:// model: set cache to a claim that already "
            "holds the model, or remove offline",
            holds=lambda model: (
                not model.offline
                or not model.uri.startswith(HUB_SCHEME)
                or (model.cache is not None and model.cache.is_on_a_claim)
            ),
        ),
        Rule(
            "offline",
            cel="!has(self.offline) || !self.offline || !self.uri.startsWith('s3://')",
            message="contradicts an s3:// model, which every start reads from the object store: "
            "remove it, or use a pvc:// model",
            holds=lambda model: not model.offline or not model.uri.startswith(STORE_SCHEME),
        ),
        Rule(
            "objectStore",
            cel="!has(self.objectStore) || self.uri.startsWith('s3://')",
            message="applies to s3:// models only: remove it",
            holds=lambda model: model.object_store is None or model.uri.startswith(STORE_SCHEME),
        ),
        Rule(
            "aliases",
            cel="!has(self.aliases) || self.aliases.all(alias, "
            "(!has(self.name) || alias != self.name) && "
            "self.aliases.filter(other, other == alias).size() == 1)",
            message="must not repeat a name: remove the duplicate",
            holds=lambda model: len({model.name, *model.aliases}) == len(model.aliases) + 1,
        ),
        Rule(
            "adapters",
            cel="!has(self.adapters) || self.adapters.all(each, "
            "self.adapters.filter(other, other.name == each.name).size() == 1 && "
            "(!has(self.name) || each.name != self.name) && "
            "(!has(self.aliases) || !self.aliases.exists(alias, alias == each.name)))",
            message="must not repeat a name, or have the name of the model or an alias: choose "
            "another name",
            holds=lambda model: (
                len({each.name for each in model.adapters} - {model.name, *model.aliases})
                == len(model.adapters)
            ),
        ),
        Rule(
            "adapters",
            cel="!has(self.adapters) || self.adapters.all(each, !each.uri.startsWith('pvc://') || "
            "(self.uri.startsWith('pvc://') && "
            "each.uri.split('/')[2] == self.uri.split('/')[2]))",
            message="must not be on a claim other than the model's, because a replica mounts a "
            "single claim for both: move them to the model's claim, or use hf:// adapters",
            holds=lambda model: all(
                isinstance(model.source, ClaimModel) and source.claim == model.source.claim
                for source in (each.source for each in model.adapters)
                if isinstance(source, ClaimModel)
            ),
        ),
        Rule(
            "adapters",
            cel="!has(self.adapters) || !has(self.offline) || !self.offline || "
            "!self.adapters.exists(each, each.uri.startsWith('hf://'))",
            message="must be on the claim of the model when offline is true: move them there, or "
            "remove offline",
            holds=lambda model: not model.offline or not model.has_hub_adapters,
        ),
    )

    @property
    def takes_adapters(self) -> bool:
        """Whether the engine is started so that adapters can be loaded while it runs."""
        return bool(self.adapters) or self.max_loras is not None or self.max_lora_rank is not None

    @property
    def has_hub_adapters(self) -> bool:
        return any(each.is_on_the_hub for each in self.adapters)

    @property
    def adapter_slots(self) -> int | None:
        """Maximum number of adapters in one engine step; None if the engine takes no adapters."""
        return (self.max_loras or DEFAULT_MAX_LORAS) if self.takes_adapters else None

    @property
    def adapter_rank(self) -> int | None:
        """Maximum rank of an adapter; None if the engine takes no adapters."""
        return (self.max_lora_rank or DEFAULT_MAX_LORA_RANK) if self.takes_adapters else None

    @property
    def source(self) -> Source:
        return model_source(self.uri)
