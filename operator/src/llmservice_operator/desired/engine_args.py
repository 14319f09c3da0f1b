"""spec -> vLLM's command line: exec form, one --flag=value each, always in the same order."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from llmservice_operator import names
from llmservice_operator.api.engine import AcceleratorType
from llmservice_operator.api.model import ClaimModel, Model
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.engine_flags import ALLOWED_FLAGS, SWITCH_FLAGS
from llmservice_operator.errors import InvalidSpec


def build_engine_args(service: LLMService) -> list[str]:
    """Return the engine's arguments.

    Raises InvalidSpec for an extra argument that is not accepted.
    """
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
    args.extend(_extra_args(spec.engine.extra_args))
    # The kubelet puts the variable NAME, a token perhaps, in place of $(NAME); of $$(NAME) it does
    # not.
    return [arg.replace("$(", "$$(") for arg in args]


def model_location(model: Model) -> str:
    """Return what vLLM is to load: a repository of the hub, or a folder of the mounted claim."""
    source = model.source
    if isinstance(source, ClaimModel):
        return f"{names.MODELS_PATH}/{source.path}".rstrip("/")
    return source.repository


def _extra_args(given: tuple[str, ...]) -> Iterator[str]:
    seen: set[str] = set()
    for index, arg in enumerate(given):
        field = f"spec.engine.extraArgs[{index}]"
        flag, _, value = arg.partition("=")
        if flag not in ALLOWED_FLAGS:
            raise InvalidSpec(f"{flag} is not accepted here{_suggestion(flag)}", field)
        if flag in seen:
            raise InvalidSpec(f"{flag} is given twice: remove one of the two", field)
        seen.add(flag)
        if flag not in SWITCH_FLAGS:
            yield arg
        elif value == "true":
            yield flag
        elif value == "false":
            yield f"--no-{flag.removeprefix('--')}"
        else:
            raise InvalidSpec(f"{flag} is a switch: write {flag}=true or {flag}=false", field)


def _suggestion(flag: str) -> str:
    near = get_close_matches(flag, sorted(ALLOWED_FLAGS), n=1)
    if near:
        return f": did you mean {near[0]}?"
    accepted = ", ".join(sorted(ALLOWED_FLAGS))
    return f": remove it; accepted are {accepted}"
