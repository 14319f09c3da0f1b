"""Decides whether a service's model fits on the GPUs of one replica, and advises changes if not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from llmservice_operator.api.accelerator import AcceleratorType
from llmservice_operator.api.batching import (
    LEAST_STEP_TOKENS,
    SEQUENCES,
    SEQUENCES_ON_A_LARGE_GPU,
)
from llmservice_operator.api.engine_fields import AUTO
from llmservice_operator.api.fields import GIB
from llmservice_operator.api.spec import LLMServiceSpec
from llmservice_operator.fit.config_fields import UnknownShape
from llmservice_operator.fit.kv_cache import StateStorage, request_bytes
from llmservice_operator.fit.model_shape import ModelShape
from llmservice_operator.fit.states import FORMAT_BYTES
from llmservice_operator.fit.weights import Checkpoint, weight_bytes

UTILIZATION_PERCENT: Final = 92
"""Percentage of a GPU's memory that the engine uses if the spec sets none. Source: vLLM 0.30 to
0.33, config/cache.py."""
LARGE_GPU_BYTES: Final = 70 * GIB
"""Least memory of a GPU, in bytes, for which the plan assumes larger steps by default. Simplified
from vLLM 0.32, engine/arg_utils.py, which excludes the A100 and computes still larger steps with
160 GiB or more."""
LARGE_STEP_TOKENS: Final = 8192
BATCHES_IN_FLIGHT: Final = 2
"""Number of steps that the engine may schedule before the first of them has finished."""

UNCERTAIN: Final = 0.1
"""Uncertainty of the needed memory, as a share of the memory that the engine uses."""
LIBRARY_BYTES: Final = 3 * GIB // 2
"""Estimated bytes of the CUDA context, CUDA graphs and workspaces of each process."""
COLLECTIVE_BYTES: Final = GIB // 2
"""Estimated bytes of the buffers for the communication between GPUs."""
_STATE_FORMAT: Final = "--mamba-cache-dtype="
"""Beginning of the argument for the number format of the states of a request."""
_CHANNEL_FORMAT: Final = "--mamba-ssm-cache-dtype="
"""Beginning of the argument that replaces this format for the state of the channels."""
_KEEPS_MIDDLE_SINCE: Final = (0, 32)
"""First version of vLLM that keeps the state in the middle of a step."""
ROUND_TOKENS: Final = 1024
"""An advised length, in tokens, is rounded down to a multiple of this number."""


class Verdict(StrEnum):
    FITS = "fits"
    WITHIN_10_PERCENT = "within 10 %"
    DOES_NOT_FIT = "does not fit"


@dataclass(frozen=True, slots=True)
class Draft:
    """A separate draft model for speculative decoding, as its files describe it."""

    shape: ModelShape
    checkpoint: Checkpoint
    quantization: str | None = None
    """Quantization that the engine applies while it loads the draft model; None for none."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Memory of one GPU of a replica, in bytes, with the resulting verdict and advice."""

    verdict: Verdict
    gpu: int
    """Memory of the GPU."""
    budget: int
    """Part of that memory that the engine uses."""
    weights: int
    """Weights of the model."""
    draft_weights: int
    """Weights of the draft model; 0 if none is planned."""
    reserve: int
    """Estimate of activations, CUDA graphs and libraries."""
    token: float
    """Bytes of the KV cache per token, in a request of the longest length."""
    request: int
    """Bytes of the KV cache and of the states for one request of the longest length."""
    longest: int
    """Longest length of a request, in tokens."""
    refusal: str | None
    """Reason why the engine cannot split the model across the GPUs, and the setting to change; None
    if it can."""
    advice: tuple[str, ...]
    """Changes, each of which alone makes the model fit; empty if the model fits or there is a
    refusal."""

    @property
    def needed(self) -> int:
        """Bytes that the engine needs to serve one request of the longest length."""
        return self.weights + self.draft_weights + self.reserve + self.request

    @property
    def requests(self) -> int:
        """Number of concurrent requests of the longest length for which the KV cache has room."""
        return max(0, (self.budget - self.needed + self.request) // self.request)


@dataclass(frozen=True, slots=True)
class _Case:
    """One service on one kind of GPU."""

    spec: LLMServiceSpec
    shape: ModelShape
    checkpoint: Checkpoint
    gpu: int
    draft: Draft | None

    @property
    def tensor(self) -> int:
        return max(1, self.spec.tensor_parallelism)

    @property
    def pipeline(self) -> int:
        split = self.spec.engine.parallelism
        return split.pipeline if split is not None else 1

    @property
    def budget(self) -> int:
        percent = self.spec.engine.gpu_memory_utilization_percent or UTILIZATION_PERCENT
        return self.gpu * percent // 100

    @property
    def element_bytes(self) -> int:
        return 4 if self.spec.engine.dtype == "Float32" else self.shape.element_bytes

    @property
    def kv_element_bytes(self) -> int:
        cache = self.spec.engine.kv_cache
        has_eight_bits = cache is not None and (cache.dtype or "").startswith("FP8")
        return 1 if has_eight_bits else self.element_bytes

    @property
    def step_tokens(self) -> int:
        batching = self.spec.engine.batching
        if batching is not None and batching.max_num_batched_tokens is not None:
            return batching.max_num_batched_tokens
        return LARGE_STEP_TOKENS if self.gpu >= LARGE_GPU_BYTES else LEAST_STEP_TOKENS

    @property
    def sequences(self) -> int:
        batching = self.spec.engine.batching
        if batching is not None and batching.max_num_seqs is not None:
            return batching.max_num_seqs
        return SEQUENCES_ON_A_LARGE_GPU if self.gpu >= LARGE_GPU_BYTES else SEQUENCES

    @property
    def longest(self) -> int:
        chosen = self.spec.engine.fixed_len or self.shape.longest
        if self.spec.engine.max_model_len != AUTO:
            return chosen
        # With Auto, the engine chooses the greatest length that fits. If no length fits, the plan
        # uses the greatest length of the model.
        return _longest_that_fits(self, chosen) or chosen

    def weights(self, gpus: int) -> int:
        """Return the bytes of the weights on each GPU, if the model is split across `gpus` GPUs."""
        whole = weight_bytes(
            self.checkpoint, self.shape, self.element_bytes, self.spec.engine.quantization
        )
        return whole // gpus

    def draft_weights(self, tensor: int) -> int:
        """Return the bytes of the draft model's weights on each of `tensor` GPUs.

        The draft model is not split into pipeline stages. Only the GPUs that compute the last
        layers store it.
        """
        if self.draft is None:
            return 0
        draft = self.draft
        whole = weight_bytes(draft.checkpoint, draft.shape, self.element_bytes, draft.quantization)
        return whole // tensor

    def reserve(self, tensor: int) -> int:
        """Return the estimated bytes of a GPU that are neither weights nor KV cache."""
        states = 8 * self.shape.hidden_size + 4 * self.shape.intermediate_size // tensor
        logits = 3 * 4 * self.sequences * self.shape.vocabulary // tensor
        collective = COLLECTIVE_BYTES if tensor > 1 else 0
        return self.step_tokens * states * 2 + logits + LIBRARY_BYTES + collective

    @property
    def storage(self) -> StateStorage:
        every = self._format_bytes(_STATE_FORMAT) or self.element_bytes
        of_model = self.shape.state.element_bytes if self.shape.state is not None else None
        caching, version = self.spec.engine.prefix_caching, self.spec.engine.version
        return StateStorage(
            convolution_element_bytes=every,
            element_bytes=self._format_bytes(_CHANNEL_FORMAT) or of_model or every,
            # By default, the engine caches prefixes unless the model has no attention.
            caches_prefixes=bool(self.shape.windows) if caching is None else caching.enabled,
            keeps_middle=version is None
            or tuple(map(int, version.split("."))) >= _KEEPS_MIDDLE_SINCE,
        )

    def _format_bytes(self, argument: str) -> int | None:
        formats = (it for it in self.spec.engine.extra_args if it.startswith(argument))
        return FORMAT_BYTES.get(next(formats, "").removeprefix(argument))

    def request(self, tokens: int, *, kv_element_bytes: int, tensor: int) -> int:
        in_flight = BATCHES_IN_FLIGHT * self.step_tokens
        own = request_bytes(
            self.shape,
            tokens,
            in_flight_tokens=in_flight,
            element_bytes=kv_element_bytes,
            storage=self.storage,
            tensor=tensor,
            pipeline=self.pipeline,
        )
        if self.draft is None:
            return own
        return own + request_bytes(
            self.draft.shape,
            tokens,
            in_flight_tokens=in_flight,
            element_bytes=kv_element_bytes,
            storage=self.storage,
            tensor=tensor,
        )

    def needed(
        self, *, tokens: int | None = None, eight_bits: bool = False, tensor: int | None = None
    ) -> int:
        """Return the bytes that a GPU needs for one request. Each argument replaces a setting of
        the service.
        """
        split = tensor or self.tensor
        cache = self.request(
            tokens or self.longest,
            kv_element_bytes=1 if eight_bits else self.kv_element_bytes,
            tensor=split,
        )
        weights = self.weights(split * self.pipeline) + self.draft_weights(split)
        return weights + self.reserve(split) + cache

    def surely_fits(self, needed: int) -> bool:
        return needed <= (1 - UNCERTAIN) * self.budget


def plan_fit(
    spec: LLMServiceSpec,
    shape: ModelShape,
    checkpoint: Checkpoint,
    gpu: int,
    draft: Draft | None = None,
) -> Plan:
    """Return the plan for a service whose model has this shape and these weights.

    `gpu` is the memory of one GPU in bytes. `draft` is the draft model, if one is planned. The spec
    must contain the fields of its accelerator class. Raises UnknownShape for speculative decoding
    with a model that stores states.
    """
    shapes = [shape] if draft is None else [shape, draft.shape]
    has_states = any(each.state is not None for each in shapes)
    if has_states and spec.engine.speculative_decoding is not None:
        raise UnknownShape(
            "the memory of state-space layers with speculative decoding is not known here: remove "
            "engine.speculativeDecoding"
        )
    case = _Case(spec, shape, checkpoint, gpu, draft)
    needed = case.needed()
    if case.surely_fits(needed):
        verdict = Verdict.FITS
    elif needed <= (1 + UNCERTAIN) * case.budget:
        verdict = Verdict.WITHIN_10_PERCENT
    else:
        verdict = Verdict.DOES_NOT_FIT
    refusal = heads_refusal(spec, shape)
    if refusal is not None:
        verdict = Verdict.DOES_NOT_FIT
    request = case.request(case.longest, kv_element_bytes=case.kv_element_bytes, tensor=case.tensor)
    is_advised = verdict is not Verdict.FITS and refusal is None
    return Plan(
        verdict=verdict,
        gpu=gpu,
        budget=case.budget,
        weights=case.weights(case.tensor * case.pipeline),
        draft_weights=case.draft_weights(case.tensor),
        reserve=case.reserve(case.tensor),
        token=request / case.longest,
        request=request,
        longest=case.longest,
        refusal=refusal,
        advice=tuple(_advice(case)) if is_advised else (),
    )


def heads_refusal(spec: LLMServiceSpec, shape: ModelShape) -> str | None:
    """Return what to change if the engine cannot split the model's heads; None if it can."""
    tensor = max(1, spec.tensor_parallelism)
    if spec.accelerator.type is AcceleratorType.CPU or _splits(shape, tensor):
        return None
    possible = ", ".join(str(it) for it in range(1, 65) if _splits(shape, it))
    return (
        f"{tensor} GPUs cannot share the model's {_listed(shape.shared_parts)}: set "
        f"engine.parallelism.tensor to one of {possible}"
    )


def _listed(parts: tuple[str, ...]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _splits(shape: ModelShape, tensor: int) -> bool:
    if (state := shape.state) is not None:
        if state.heads % tensor or (state.groups > 1 and state.groups % tensor):
            return False
        if not shape.windows:
            return True
    if shape.attention_heads % tensor:
        return False
    if shape.latent_size is not None:
        return True
    return shape.kv_heads % tensor == 0 or tensor % shape.kv_heads == 0


def _advice(case: _Case) -> Iterator[str]:
    """Yield the advised changes. Each changed setting alone makes the model certainly fit."""
    longest = _longest_that_fits(case, case.longest)
    if longest:
        yield f"set engine.maxModelLen to at most {longest:,}"
    if case.kv_element_bytes > 1 and case.surely_fits(case.needed(eight_bits=True)):
        yield "set engine.kvCache.dtype to FP8"
    more = (it for it in range(case.tensor + 1, 65) if _splits(case.shape, it))
    enough = next((it for it in more if case.surely_fits(case.needed(tensor=it))), None)
    if enough is not None:
        yield f"set accelerator.count to {enough * case.pipeline}"
    if enough is None and not longest:
        yield "choose a GPU with more memory, or a quantized model"


def _longest_that_fits(case: _Case, most: int) -> int:
    """Return the greatest length in tokens, up to `most`, that certainly fits; 0 if none does.

    A length below `most` is rounded down.
    """
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if case.surely_fits(case.needed(tokens=middle)):
            low = middle
        else:
            high = middle - 1
    if low == most:
        return low
    return low // ROUND_TOKENS * ROUND_TOKENS or low
