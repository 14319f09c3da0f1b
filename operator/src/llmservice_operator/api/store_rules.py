"""Rules between fields about models in object stores, and about the loader that reads them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from llmservice_operator.api.accelerator import AcceleratorType
from llmservice_operator.api.fields import Rule
from llmservice_operator.api.loading import FORMATS_OF_A_STORE
from llmservice_operator.api.model_source import HubModel
from llmservice_operator.api.object_store import VARIABLES

if TYPE_CHECKING:
    from llmservice_operator.api.spec import LLMServiceSpec


def _streams(spec: LLMServiceSpec) -> bool:
    loading = spec.engine.loading
    return spec.is_in_a_store or (loading is not None and loading.format == "RunaiStreamer")


def _holds_something(spec: LLMServiceSpec) -> bool:
    """Return whether the cache, if it is on a claim, stores anything: kernels or downloads from a
    hub. True for a cache that is not on a claim.
    """
    cache = spec.model.cache
    return (
        cache is None
        or not cache.is_on_a_claim
        or cache.keeps_kernels
        or spec.model.has_hub_adapters
        or any(isinstance(it, HubModel) for it in spec.sources)
    )


RULES_OF_A_STORE: Final = (
    Rule(
        "model.cache",
        cel="!self.model.uri.startsWith('s3://') || !has(self.model.cache) || "
        "self.model.cache.type != 'PersistentVolumeClaim' || "
        "(has(self.model.cache.compileCache) ? self.model.cache.compileCache : "
        "has(self.model.cache.size)) || (has(self.model.adapters) && "
        "self.model.adapters.exists(each, each.uri.startsWith('hf://'))) || "
        "(has(self.engine) && has(self.engine.speculativeDecoding) && "
        "has(self.engine.speculativeDecoding.draftModel) && "
        "self.engine.speculativeDecoding.draftModel.uri.startsWith('hf://'))",
        message="stores nothing of an s3:// model, whose weights are streamed at every start: "
        "set compileCache: true to keep compiled kernels there, or remove it",
        holds=lambda spec: not spec.is_in_a_store or _holds_something(spec),
    ),
    Rule(
        "accelerator.type",
        cel="self.accelerator.type != 'cpu' || (has(self.engine) && has(self.engine.image)) || "
        "(!self.model.uri.startsWith('s3://') && (!has(self.engine) || "
        "!has(self.engine.loading) || !has(self.engine.loading.format) || "
        "self.engine.loading.format != 'RunaiStreamer'))",
        message="must not be cpu for an s3:// model or the format RunaiStreamer, because the "
        "operator's own CPU image lacks the Python package runai-model-streamer[s3]: set "
        "engine.image to an image with this package, or use a GPU",
        holds=lambda spec: (
            spec.accelerator.type is not AcceleratorType.CPU
            or spec.engine.image is not None
            or not _streams(spec)
        ),
    ),
    Rule(
        "engine.loading.format",
        cel="!self.model.uri.startsWith('s3://') || !has(self.engine) || "
        "!has(self.engine.loading) || !has(self.engine.loading.format) || "
        f"self.engine.loading.format in {list(FORMATS_OF_A_STORE)}",
        message="cannot read an s3:// model: write RunaiStreamer or RunaiStreamerSharded, or "
        "remove it",
        holds=lambda spec: (
            not spec.is_in_a_store
            or spec.engine.loading is None
            or spec.engine.loading.format in (None, *FORMATS_OF_A_STORE)
        ),
    ),
    Rule(
        "engine.extraArgs",
        cel="!self.model.uri.startsWith('s3://') || !has(self.engine) || "
        "!has(self.engine.extraArgs) || self.engine.extraArgs.all(each, "
        "!each.startsWith('--load-format=') || "
        "each.matches('^--load-format=(auto|runai_streamer.*)$'))",
        message="contains a --load-format that cannot read an s3:// model: remove it, or set "
        "engine.loading.format to RunaiStreamer or RunaiStreamerSharded",
        holds=lambda spec: (
            not spec.is_in_a_store
            or all(
                re.fullmatch("--load-format=(auto|runai_streamer.*)", each) is not None
                for each in spec.engine.extra_args
                if each.startswith("--load-format=")
            )
        ),
    ),
    Rule(
        "engine.env",
        cel="!has(self.model.objectStore) || !has(self.engine) || !has(self.engine.env) || "
        f"!self.engine.env.exists(each, each.name in {list(VARIABLES)})",
        message=f"contains a variable that model.objectStore sets ({', '.join(VARIABLES)}): "
        "remove it",
        holds=lambda spec: (
            spec.model.object_store is None
            or not any(each.name in VARIABLES for each in spec.engine.env)
        ),
    ),
)
"""Rules of the whole spec about object stores."""
