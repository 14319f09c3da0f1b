"""spec.engine.loading: settings for reading the weights."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from llmservice_operator.api.fields import Fields, Quantity, Rule, at_least
from llmservice_operator.api.flags import EngineFlag

FORMATS_OF_A_STORE: Final = ("Auto", "RunaiStreamer", "RunaiStreamerSharded")
"""Formats that can read from an object store. For a model in a store, Auto makes the engine choose
RunaiStreamer."""


def _requires_the_streamer(option: str, attribute: str) -> Rule:
    return Rule(
        option,
        cel=f"!has(self.{option}) || (has(self.format) && self.format == 'RunaiStreamer')",
        message="requires the format RunaiStreamer: set that format, or remove this field",
        holds=lambda self: getattr(self, attribute) is None or self.format == "RunaiStreamer",
    )


class Loading(Fields):
    format: (
        Annotated[
            Literal[
                "Auto",
                "BitsAndBytes",
                "FastSafetensors",
                "InstantTensor",
                "Mistral",
                "RunaiStreamer",
                "RunaiStreamerSharded",
                "Safetensors",
            ],
            EngineFlag(
                "--load-format",
                words={
                    "RunaiStreamer": "runai_streamer",
                    "RunaiStreamerSharded": "runai_streamer_sharded",
                },
                accepted_in_extra_args=True,
            ),
        ]
        | None
    ) = None
    """Loader of the weights. RunaiStreamer reads safetensors with many threads, from any source of
    the model. RunaiStreamerSharded reads files that were saved for each GPU. BitsAndBytes,
    FastSafetensors, InstantTensor and the streamers need a Python package in the image. Default:
    Auto, the engine's choice for the model's files, which is RunaiStreamer for an s3:// model."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Number of threads that read the weights, for the format RunaiStreamer. Default: the
    streamer's own default."""
    memory_limit: (
        Annotated[
            Quantity,
            at_least(
                "1Mi", "must be at least 1Mi: the buffer must have room for the largest tensor"
            ),
        ]
        | None
    ) = None
    """Size of the buffer in main memory through which the weights pass, such as 5Gi, for the format
    RunaiStreamer. It must have room for the largest tensor. Default: the streamer's own
    default."""
    distributed: bool | None = None
    """Whether the GPUs of a replica share the reading, and pass the weights to each other, for the
    format RunaiStreamer. With false, the process of each GPU reads all files. Default: false."""

    rules: ClassVar = (
        _requires_the_streamer("concurrency", "concurrency"),
        _requires_the_streamer("memoryLimit", "memory_limit"),
        _requires_the_streamer("distributed", "distributed"),
    )
