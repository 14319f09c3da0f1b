"""spec.model.adapters: LoRA adapters that the replicas serve in addition to the model."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from pydantic import Field

from llmservice_operator.api.fields import Fields, ValueRule
from llmservice_operator.api.model_source import (
    HUB_SCHEME,
    REVISION_RULE,
    OtherUri,
    Revision,
    ServedName,
    Source,
    model_source,
)

MOST_ADAPTERS: Final = 32
"""Maximum number of adapters of a service. It limits the length of the reports about them."""
DEFAULT_MAX_LORAS: Final = 4
DEFAULT_MAX_LORA_RANK: Final = 16

_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that every known version of the engine accepts."""

LoraRank = Annotated[
    int,
    Field(ge=_RANKS[0], le=_RANKS[-1]),
    ValueRule(
        cel=f"self in {list(_RANKS)}",
        message=f"must be one of the engine's values: {', '.join(map(str, _RANKS))}",
        holds=lambda rank: rank in _RANKS,
    ),
]


class Adapter(Fields):
    name: Annotated[ServedName, Field(max_length=128)]
    """Name that clients send as `model`."""
    uri: Annotated[OtherUri, Field(max_length=256)]
    """Source of the adapter, in PEFT's format, with its weights as safetensors.
    hf://ORGANISATION/NAME is a repository on the Hugging Face Hub. pvc://CLAIM/PATH is a folder on
    the claim of the model. If the files of an adapter change, set another revision or folder."""
    revision: Revision | None = None
    """Branch, tag or commit of an hf:// adapter. Prefer a commit: with a branch, two replicas can
    serve different weights. Default: the repository's main branch."""

    rules: ClassVar = (REVISION_RULE,)

    @property
    def source(self) -> Source:
        return model_source(self.uri)

    @property
    def is_on_the_hub(self) -> bool:
        return self.uri.startswith(HUB_SCHEME)
