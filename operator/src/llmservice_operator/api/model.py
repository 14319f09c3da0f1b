"""spec.model: the source of the weights, and the names by which clients call the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from pydantic import Field

from llmservice_operator.api.cache import Cache
from llmservice_operator.api.fields import Fields, Rule, ValueRule, matches
from llmservice_operator.api.flags import EngineFlag
from llmservice_operator.api.references import SUBDOMAIN_PATTERN

HUB_SCHEME, CLAIM_SCHEME = "hf://", "pvc://"
_HUB_URI = "hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
_CLAIM_URI = f"pvc://{SUBDOMAIN_PATTERN}(/[A-Za-z0-9_][A-Za-z0-9._-]*)*"


@dataclass(frozen=True)
class HubModel:
    """A model on the Hugging Face hub or a mirror of it."""

    repository: str
    """ORGANISATION/NAME."""


@dataclass(frozen=True)
class ClaimModel:
    """A model in a folder on a PersistentVolumeClaim."""

    claim: str
    path: str
    """Folder below the volume's root, without a leading slash; empty means the root."""


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
    """Key of that Secret whose value is the token."""


_FOLDER: Final = "(/|[.]|~|(file|hostPath|hostpath|host|local|nfs|nas):)"
"""Begin of a text that names a folder of a node or of a file server."""
_FOLDER_FORM: Final = re.compile(_FOLDER)

NEEDS_A_CLAIM: Final = (
    "a pod mounts a folder of a node or of a file server by a claim only: let an administrator "
    "create a PersistentVolume for it, such as one of type nfs or local, and a "
    "PersistentVolumeClaim, and set model.uri to pvc://CLAIM/PATH"
)

_URI_RULES = (
    ValueRule(
        cel=f"!self.matches('^{_FOLDER}')",
        message=f"names a folder, and {NEEDS_A_CLAIM}",
        holds=lambda uri: _FOLDER_FORM.match(uri) is None,
    ),
    ValueRule(
        cel=f"self.startsWith('hf://') || self.startsWith('pvc://') || self.matches('^{_FOLDER}')",
        message="must start with hf:// or pvc://: write hf://ORGANISATION/NAME for a model on "
        "the Hugging Face Hub, or pvc://CLAIM/PATH for a folder on a "
        "PersistentVolumeClaim",
        holds=lambda uri: (
            uri.startswith((HUB_SCHEME, CLAIM_SCHEME)) or _FOLDER_FORM.match(uri) is not None
        ),
    ),
    ValueRule(
        cel=f"!self.startsWith('hf://') || self.matches('^{_HUB_URI}$')",
        message="must have the form hf://ORGANISATION/NAME, such as "
        "hf://HuggingFaceTB/SmolLM2-135M-Instruct; write a revision into model.revision",
        holds=lambda uri: not uri.startswith(HUB_SCHEME) or re.fullmatch(_HUB_URI, uri) is not None,
    ),
    ValueRule(
        cel=f"!self.startsWith('pvc://') || self.matches('^{_CLAIM_URI}$')",
        message="must have the form pvc://CLAIM or pvc://CLAIM/PATH, such as "
        "pvc://models/llama; each part of PATH consists of letters, digits and . _ - "
        "and starts with a letter, digit or _",
        holds=lambda uri: (
            not uri.startswith(CLAIM_SCHEME) or re.fullmatch(_CLAIM_URI, uri) is not None
        ),
    ),
)


ModelUri = Annotated[str, Field(min_length=1, max_length=512), *_URI_RULES]

Revision = Annotated[
    str,
    Field(min_length=1, max_length=128),
    matches(
        "[A-Za-z0-9][A-Za-z0-9._/-]*",
        "must be a branch, tag or commit, such as main or a 40-digit commit",
    ),
]

REVISION_RULE = Rule(
    "revision",
    cel="!has(self.revision) || !self.uri.startsWith('pvc://')",
    message="applies to hf:// models only: remove it, because a folder on a claim has no revision",
    holds=lambda model: model.revision is None or model.uri.startswith(HUB_SCHEME),
)

Quantization = Annotated[
    str,
    Field(min_length=1, max_length=64),
    matches(
        "[a-z0-9][a-z0-9_-]*", "must be a quantization method of the engine, such as fp8 or awq"
    ),
]


def model_source(uri: str) -> HubModel | ClaimModel:
    """Return the model that a valid uri names."""
    if uri.startswith(HUB_SCHEME):
        return HubModel(uri.removeprefix(HUB_SCHEME))
    claim, _, path = uri.removeprefix(CLAIM_SCHEME).partition("/")
    return ClaimModel(claim, path)


_PORT: Final = (
    "[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
)

HubEndpoint = Annotated[
    str,
    Field(min_length=1, max_length=512),
    matches(
        f"https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:({_PORT}))?(/[A-Za-z0-9._~/-]*)?",
        "must be the address of a hub, such as https://hub.example.com, without a user or token: "
        "set model.credentialsSecretRef for a token",
    ),
]

ServedName = Annotated[
    str,
    Field(min_length=1, max_length=253),
    matches(
        "[A-Za-z0-9][A-Za-z0-9._:/-]*",
        "must start with a letter or digit and contain only letters, digits and . _ : / -",
    ),
]


class Model(Fields):
    uri: Annotated[ModelUri, EngineFlag("--model", is_computed=True)]
    """Source of the model. hf://ORGANISATION/NAME is a model on the Hugging Face Hub.
    pvc://CLAIM/PATH is a folder on a PersistentVolumeClaim of this namespace, mounted read-only."""
    name: Annotated[ServedName, EngineFlag("--served-model-name", is_computed=True)] | None = None
    """Model name that clients send as `model`. Default: the LLMService's name."""
    aliases: Annotated[
        tuple[ServedName, ...],
        Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Additional names that clients may send as `model`, such as the name of the model that this
    one replaces."""
    revision: Annotated[Revision, EngineFlag("--revision")] | None = None
    """Branch, tag or commit of an hf:// model. Prefer a commit: with a branch, two replicas can
    serve different weights. Default: the repository's main branch."""
    hub_endpoint: HubEndpoint | None = None
    """Address of a Hugging Face compatible hub or mirror, from which the hf:// models of this
    service are downloaded. The token of credentialsSecretRef is sent to it. Default: the chart
    value model.hubEndpoint, or huggingface.co."""
    credentials_secret_ref: SecretKeyReference | None = None
    """Secret with the access token for a private or gated hf:// model."""
    trust_remote_code: Annotated[bool, EngineFlag("--trust-remote-code")] = False
    """Whether the model server runs Python code that ships with the model. Set it only for a model
    whose code you have reviewed, and pin its commit in revision. If the chart's admission policy is
    on, setting it requires the trust-remote-code verb on llmservices."""

    offline: bool = False
    """Whether the model server works without the hub. It then loads the model only from the claim
    of a pvc:// model or of the cache."""
    cache: Cache | None = None
    """Storage for downloaded weights and compiled kernels. Default: the node's disk, for the
    lifetime of a pod."""

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
            "aliases",
            cel="!has(self.aliases) || self.aliases.all(alias, "
            "(!has(self.name) || alias != self.name) && "
            "self.aliases.filter(other, other == alias).size() == 1)",
            message="must not repeat a name: remove the duplicate",
            holds=lambda model: len({model.name, *model.aliases}) == len(model.aliases) + 1,
        ),
        Rule(
            "credentialsSecretRef",
            cel="!has(self.credentialsSecretRef) || !self.uri.startsWith('pvc://')",
            message="applies to hf:// models only: remove it, because a claim needs no token",
            holds=lambda model: (
                model.credentials_secret_ref is None or model.uri.startswith(HUB_SCHEME)
            ),
        ),
    )

    @property
    def source(self) -> HubModel | ClaimModel:
        return model_source(self.uri)
