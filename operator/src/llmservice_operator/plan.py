"""`llmservice-operator plan`: reports whether the model of an LLMService fits on its GPUs.

The command needs only the model's files, so users learn the result before they rent a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmservice_operator.api.accelerator import AcceleratorType
from llmservice_operator.api.fields import GIB, quantity_value
from llmservice_operator.api.model_source import ClaimModel, StoreModel
from llmservice_operator.api.spec import LLMService
from llmservice_operator.api.speculation import DraftModel
from llmservice_operator.desired import check_fits_a_node, with_class
from llmservice_operator.desired.step_prior import gpu_product
from llmservice_operator.errors import InvalidSpec, OperatorError
from llmservice_operator.fit import Draft, ModelShape, Plan, Verdict, plan_fit, read_shape
from llmservice_operator.model_files import ModelFiles, read_folder, read_repository
from llmservice_operator.render import read_services
from llmservice_operator.scaling.hardware import memory_bytes
from llmservice_operator.settings import OperatorSettings

ReadModel = Callable[[LLMService, DraftModel | None], ModelFiles]
"""Function that returns the files of a service's model, or of the draft model if one is given."""

_WITHOUT_WEIGHTS: Final = ("Ngram", "Suffix")
"""Methods of speculative decoding whose draft needs no GPU memory."""
_WHOLE_MODEL: Final = "DraftModel"
"""Method whose draft is a complete model. The drafts of other methods are heads, whose memory is
not planned."""
_SLICE: Final = re.compile("/mig-[0-9]+g[.]([0-9]+)gb")
"""Resource name of a slice of a GPU. The name contains the memory of the slice in GB."""
USABLE_SHARE_OF_A_SLICE: Final = 0.95
"""GiB of memory that the driver reports for each GB in the name of a slice."""


@dataclass(frozen=True, slots=True)
class Plans:
    """The plans of the services in a file."""

    text: str
    """The plans as text for the user."""
    verdicts: tuple[Verdict | None, ...]
    """Verdict on each service; None if there is none, for example if a model cannot be read."""

    @property
    def may_fit(self) -> bool:
        """Whether every service has a verdict, and none of the verdicts is DOES_NOT_FIT."""
        return not {None, Verdict.DOES_NOT_FIT} & set(self.verdicts)


def plan_file(
    text: str, settings: OperatorSettings, read_model: ReadModel, gpu_memory: int | None
) -> Plans:
    """Return the plan of every LLMService in the YAML `text`.

    `gpu_memory` is the memory of one GPU in bytes. None means the memory of the GPU that the spec
    names. The plan of a service without a verdict is a sentence that says why. The other services
    are still planned. Raises InvalidSpec or InvalidFile if the text is not valid.
    """
    plans = [_plan(service, settings, read_model, gpu_memory) for service in read_services(text)]
    printed = "\n".join("\n".join(lines) + "\n" for lines, _ in plans)
    return Plans(printed, tuple(verdict for _, verdict in plans))


def _plan(
    service: LLMService,
    settings: OperatorSettings,
    read_model: ReadModel,
    gpu_memory: int | None,
) -> tuple[list[str], Verdict | None]:
    try:
        check_fits_a_node(service, settings.accelerator_classes, settings.gpus_per_node)
        service = with_class(service, settings.accelerator_classes)
        memory = gpu_memory or _memory_of(service)
        config, checkpoint = read_model(service, None)
        shape = read_shape(config)
        draft, left_out = _draft_of(service, read_model)
        plan = plan_fit(service.spec, shape, checkpoint, memory, draft)
    except OperatorError as error:
        return [f"{service.name}: no verdict: {error}"], None
    return [*_lines(service, shape, plan, left_out)], plan.verdict


def _draft_of(service: LLMService, read_model: ReadModel) -> tuple[Draft | None, str | None]:
    """Return the draft model, and the reason why a draft is left out of the plan.

    At least one of them is None.
    """
    speculation = service.spec.engine.speculative_decoding
    if speculation is None or speculation.method in _WITHOUT_WEIGHTS:
        return None, None
    draft = speculation.draft_model
    if draft is None or speculation.method != _WHOLE_MODEL:
        return None, "which needs memory of its own"
    try:
        config, checkpoint = read_model(service, draft)
        return Draft(read_shape(config), checkpoint, draft.quantization), None
    except OperatorError as error:
        return None, f"which needs memory of its own: {error}"


def _memory_of(service: LLMService) -> int:
    """Return the memory of one of the service's GPUs in bytes.

    Raises InvalidSpec if the memory is unknown, or if the service uses no GPU.
    """
    if service.spec.accelerator.type is AcceleratorType.CPU:
        raise InvalidSpec(
            "is cpu, where the container's memory limit holds the model: a plan is for GPUs only",
            "spec.accelerator.type",
        )
    slice_ = _SLICE.search(service.spec.accelerator.gpu_resource)
    if slice_ is not None:
        return int(int(slice_[1]) * GIB * USABLE_SHARE_OF_A_SLICE)
    product = gpu_product(service.spec)
    memory = None if product is None else memory_bytes(product)
    if memory is None:
        raise InvalidSpec(
            "names no GPU with a known memory: set it to one such as H100, or pass --gpu-memory",
            "spec.accelerator.class",
        )
    return memory


def _lines(
    service: LLMService, shape: ModelShape, plan: Plan, left_out: str | None
) -> Iterator[str]:
    spec = service.spec
    yield f"{service.name}: {plan.verdict}{_reason(plan)}"
    parts = ", ".join((shape.layers, *shape.shared_parts))
    yield f"  model      {spec.model.uri}: {parts}"
    count = f"{spec.gpus} GPUs" if spec.gpus > 1 else "1 GPU"
    yield f"  GPU        {count} of {_gib(plan.gpu)}, of which the engine uses {_gib(plan.budget)}"
    if spec.accelerator.type is AcceleratorType.AMD:
        yield "  untried    on AMD GPUs: the estimate is that of NVIDIA GPUs"
    yield f"  weights    {_gib(plan.weights)} on each GPU"
    if plan.draft_weights:
        yield f"  draft      {_gib(plan.draft_weights)} of weights on each GPU"
    yield f"  estimate   {_gib(plan.reserve)} for activations, CUDA graphs and libraries"
    if shape.state is not None and not shape.windows:
        yield f"  state      {plan.request / 1024**2:,.1f} MiB for one request of any length"
        yield f"  room       {plan.requests:,} requests at a time"
    else:
        yield (
            f"  KV cache   {plan.token / 1024:,.1f} KiB per token, {_gib(plan.request)} for one "
            f"request of {plan.longest:,} tokens"
        )
        yield f"  room       {plan.requests} requests of {plan.longest:,} tokens at a time"
    if left_out is not None:
        yield f"  left out   the draft of the speculative decoding, {left_out}"
    for number, change in enumerate(plan.advice):
        yield f"  {'to fit' if number == 0 else 'or':9}  {change}"


def _reason(plan: Plan) -> str:
    if plan.refusal is not None:
        return f": {plan.refusal}"
    if plan.verdict is Verdict.FITS:
        return ""
    sizes = f"needs {_gib(plan.needed)}, has {_gib(plan.budget)}"
    if plan.verdict is Verdict.WITHIN_10_PERCENT:
        return f": {sizes}, and the estimate decides"
    return f": {sizes}"


def _gib(size: int) -> str:
    return f"{size / GIB:,.1f} GiB"


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Arguments of the command line about the source of a model's files and the GPU's memory."""

    folder: Path | None
    """Folder with the files; None reads them from the hub."""
    draft_folder: Path | None
    """Folder with the files of the draft model; None reads them from the hub."""
    gpu_memory: str | None
    """Memory of one GPU as a quantity; None means that of the GPU that the spec names."""
    endpoint: str | None
    """Address of the hub for a spec that names none; None means the hub of the settings."""
    token: str | None
    """Token for the hub; None sends no token."""


def plan_command(text: str, settings: OperatorSettings, options: PlanOptions) -> Plans:
    """Return the plans of the services in `text`, with the arguments of the command line.

    Raises InvalidSpec or InvalidFile if the text is not valid, and InvalidSpec if the memory is not
    a positive quantity.
    """
    memory = None if options.gpu_memory is None else quantity_value(options.gpu_memory)
    if options.gpu_memory is not None and (memory is None or memory <= 0):
        raise InvalidSpec("must be an amount of memory, such as 24Gi", "--gpu-memory")

    def read_model(service: LLMService, draft: DraftModel | None) -> ModelFiles:
        model = service.spec.model
        folder, flag, field = (
            (options.folder, "--model-dir", "spec.model.uri")
            if draft is None
            else (
                options.draft_folder,
                "--draft-dir",
                "spec.engine.speculativeDecoding.draftModel.uri",
            )
        )
        if folder is not None:
            return read_folder(folder)
        wanted = draft or model
        source = wanted.source
        if isinstance(source, ClaimModel):
            raise InvalidSpec(
                "is a folder on a claim: copy its config.json and safetensors files, or mount the "
                f"claim, and pass the folder with {flag}",
                field,
            )
        if isinstance(source, StoreModel):
            raise InvalidSpec(
                "is in an object store: copy its config.json and safetensors files, and pass the "
                f"folder with {flag}",
                field,
            )
        hub = model.hub_endpoint or options.endpoint or settings.hub_endpoint
        return read_repository(source.repository, wanted.revision, hub, options.token)

    return plan_file(text, settings, read_model, None if memory is None else int(memory))
