"""Sources of models, draft models and adapters, and the names by which clients call them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field

from llmservice_operator.api.fields import Rule, ValueRule, matches
from llmservice_operator.api.references import SUBDOMAIN_PATTERN

HUB_SCHEME, CLAIM_SCHEME, STORE_SCHEME = "hf://", "pvc://", "s3://"
_GOOGLE_SCHEME: Final = "gs://"
_HUB_URI = "hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
_CLAIM_URI = f"pvc://{SUBDOMAIN_PATTERN}(/[A-Za-z0-9_][A-Za-z0-9._-]*)*"
_STORE_URI = "s3://[a-z0-9][a-z0-9.-]*[a-z0-9](/[A-Za-z0-9_][A-Za-z0-9._=+-]*)*"


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


@dataclass(frozen=True)
class StoreModel:
    """A model in a folder of an object store."""

    address: str
    """s3://BUCKET/PATH."""


Source = HubModel | ClaimModel | StoreModel

_FOLDER: Final = "(/|[.]|~|(file|hostPath|hostpath|host|local|nfs|nas):)"
"""Pattern of the beginning of a text that names a folder of a node or of a file server."""
_FOLDER_FORM: Final = re.compile(_FOLDER)

NEEDS_A_CLAIM: Final = (
    "a pod can mount a folder of a node or of a file server only through a claim: let an "
    "administrator create a PersistentVolume for it, such as one of type nfs or local, and a "
    "PersistentVolumeClaim"
)
"""The reason and the first step in messages that end with the field to set."""

_IS_A_FOLDER: Final = ValueRule(
    cel=f"!self.matches('^{_FOLDER}')",
    message=f"names a folder, and {NEEDS_A_CLAIM}, and set this field to pvc://CLAIM/PATH",
    holds=lambda uri: _FOLDER_FORM.match(uri) is None,
)
_URI_RULES: Final = (
    ValueRule(
        cel=f"!self.startsWith('hf://') || self.matches('^{_HUB_URI}$')",
        message="must have the form hf://ORGANISATION/NAME, such as "
        "hf://HuggingFaceTB/SmolLM2-135M-Instruct; write a revision into the field revision",
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
_STORE_RULE: Final = ValueRule(
    cel=f"!self.startsWith('s3://') || self.matches('^{_STORE_URI}$')",
    message="must have the form s3://BUCKET or s3://BUCKET/PATH, such as s3://weights/llama; each "
    "part of PATH consists of letters, digits and . _ = + - and starts with a letter, digit or _",
    holds=lambda uri: not uri.startswith(STORE_SCHEME) or re.fullmatch(_STORE_URI, uri) is not None,
)
_GOOGLE_RULE: Final = ValueRule(
    cel=f"!self.startsWith('{_GOOGLE_SCHEME}')",
    message="names a bucket of Google Cloud Storage, which the replicas can read only through its "
    "S3 API: write s3://BUCKET/PATH, and set objectStore.endpoint to "
    "https://storage.googleapis.com and objectStore.credentialsSecretRef to a Secret with an HMAC "
    "key",
    holds=lambda uri: not uri.startswith(_GOOGLE_SCHEME),
)


def _has_scheme(schemes: tuple[str, ...], message: str) -> ValueRule:
    starts = " || ".join(f"self.startsWith('{scheme}')" for scheme in schemes)
    return ValueRule(
        cel=f"{starts} || self.matches('^{_FOLDER}')",
        message=message,
        holds=lambda uri: uri.startswith(schemes) or _FOLDER_FORM.match(uri) is not None,
    )


_WRITE: Final = (
    "write hf://ORGANISATION/NAME for a model on the Hugging Face Hub, or pvc://CLAIM/PATH for a "
    "folder on a PersistentVolumeClaim"
)

ModelUri = Annotated[
    str,
    Field(min_length=1, max_length=512),
    _IS_A_FOLDER,
    _GOOGLE_RULE,
    _has_scheme(
        # A gs:// address gets the more useful message of its own rule.
        (HUB_SCHEME, CLAIM_SCHEME, STORE_SCHEME, _GOOGLE_SCHEME),
        f"must start with hf://, pvc:// or s3://: {_WRITE}, or s3://BUCKET/PATH for an object "
        "store with an S3 API, such as that of Google Cloud Storage",
    ),
    *_URI_RULES,
    _STORE_RULE,
]
OtherUri = Annotated[
    str,
    Field(min_length=1, max_length=512),
    _IS_A_FOLDER,
    _has_scheme(
        (HUB_SCHEME, CLAIM_SCHEME),
        f"must start with hf:// or pvc://, because only the model itself can be in an object "
        f"store: {_WRITE}",
    ),
    *_URI_RULES,
]
"""Source of a draft model or an adapter."""

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
    cel="!has(self.revision) || self.uri.startsWith('hf://')",
    message="applies to hf:// models only: remove it, because a folder has no revision",
    holds=lambda model: model.revision is None or model.uri.startswith(HUB_SCHEME),
)


def model_source(uri: str) -> Source:
    """Return the source that a valid URI names."""
    if uri.startswith(STORE_SCHEME):
        return StoreModel(uri)
    if uri.startswith(HUB_SCHEME):
        return HubModel(uri.removeprefix(HUB_SCHEME))
    claim, _, path = uri.removeprefix(CLAIM_SCHEME).partition("/")
    return ClaimModel(claim, path)


ServedName = Annotated[
    str,
    Field(min_length=1, max_length=253),
    matches(
        "[A-Za-z0-9][A-Za-z0-9._:/-]*",
        "must start with a letter or digit and contain only letters, digits and . _ : / -",
    ),
]
