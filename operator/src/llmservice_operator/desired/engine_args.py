"""spec -> vLLM's command line: exec form, one --flag=value each, always in the same order."""

from __future__ import annotations

from collections.abc import Iterator

from llmservice_operator import names
from llmservice_operator.api.engine import AcceleratorType
from llmservice_operator.api.model import ClaimModel, Model
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.engine_flags import EngineFlags
from llmservice_operator.errors import InvalidSpec


def build_engine_args(service: LLMService, version: str) -> list[str]:
    """Return the arguments for an engine of this vLLM version.

    Raises InvalidSpec for a version that is not known, and for a field or an extra argument that
    the version does not have.
    """
    flags = EngineFlags.of(version)
    spec = service.spec
    args = [
        f"--model={model_location(spec.model)}",
        f"--served-model-name={spec.model.name or service.name}",
    ]
    if spec.model.revision is not None:
        args.append(f"--revision={spec.model.revision}")
    if spec.engine.max_model_len is not None:
        args.append(f"--max-model-len={spec.engine.max_model_len}")
    if spec.engine.dtype is not None:
        args.append(f"--dtype={spec.engine.dtype}")
    if spec.accelerator.type is AcceleratorType.NVIDIA:
        args.append(f"--tensor-parallel-size={spec.accelerator.gpus}")
    args.extend(_extra_args(spec.engine.extra_args, flags))
    # The kubelet puts the variable NAME, a token perhaps, in place of $(NAME); of $$(NAME) it does
    # not.
    return [arg.replace("$(", "$$(") for arg in args]


def model_location(model: Model) -> str:
    """Return what vLLM is to load: a repository of the hub, or a folder of the mounted claim."""
    source = model.source
    if isinstance(source, ClaimModel):
        return f"{names.MODELS_PATH}/{source.path}".rstrip("/")
    return source.repository


def _extra_args(given: tuple[str, ...], flags: EngineFlags) -> Iterator[str]:
    seen: set[str] = set()
    for index, arg in enumerate(given):
        field = f"spec.engine.extraArgs[{index}]"
        flag, _, value = arg.partition("=")
        yield from flags.write_extra(flag, value, field)
        if flag in seen:
            raise InvalidSpec(f"{flag} is given twice: remove one of the two", field)
        seen.add(flag)
