"""spec.engine.env: variables of the model server's container, and the names that are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final

from pydantic import Field

from llmservice_operator.api.fields import Fields, Rule, ValueRule, matches
from llmservice_operator.api.references import KeySource

VARIABLES_WITH_A_FIELD: Final[Mapping[str, str]] = {
    "HF_ENDPOINT": "model.hubEndpoint",
    "HF_TOKEN": "model.credentialsSecretRef",
    "HUGGING_FACE_HUB_TOKEN": "model.credentialsSecretRef",
    "HF_HUB_OFFLINE": "model.offline",
    "TRANSFORMERS_OFFLINE": "model.offline",
    "HF_HUB_CACHE": "model.cache",
    "HUGGINGFACE_HUB_CACHE": "model.cache",
    "TRANSFORMERS_CACHE": "model.cache",
}
"""Variables that a field of the spec replaces, each with that field."""

_REFUSED: Final = (
    # The operator or the model server sets these: paths, users, ports and addresses of services.
    *("LLMSERVICE_.*", "HOME", "USER", "LOGNAME", "XDG_.*", "HF_HOME"),
    *("HF_MODULES_CACHE", "HF_TOKEN_PATH", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"),
    *("DO_NOT_TRACK", "VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK", "PROMETHEUS_MULTIPROC_DIR"),
    *(
        "VLLM_HOST_IP",
        "VLLM_PORT",
        "VLLM_API_KEY",
        "VLLM_(CONFIGURE|DEBUG_LOG)_.*",
        "KUBERNETES_.*",
    ),
    *("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "VLLM_USE_MODELSCOPE", "VLLM_WORKER_MULTIPROC_METHOD"),
    # These load code, or change the place from which code is loaded.
    *("LD_.*", "PYTHON.*", "PATH", "ENV", "BASH_.*", "GLIBC_TUNABLES", "GCONV_PATH", "CC", "CXX"),
    *("VLLM_PLUGINS", "VLLM_.*_(PATH|DIR|ROOT|FOLDER)", "NCCL_.*_PLUGIN", "CUDA_INJECTION.*"),
    *("TRITON_.*", "TORCH_EXTENSIONS_DIR", "CUDA_HOME", "AITER_.*_DIR"),
    # These enable routes and formats that vLLM itself describes as unsafe.
    *("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_.*"),
    # These choose GPUs or configure the container runtime. Some can expose the GPUs of other pods.
    *("NVIDIA_(VISIBLE_DEVICES|DRIVER_CAPABILITIES|REQUIRE_.*|DISABLE_REQUIRE|MIG_.*)",),
    *("CUDA_VISIBLE_DEVICES", "(HIP|ROCR|AMD)_VISIBLE_DEVICES"),
)
_NAMES: Final = "|".join(_REFUSED).replace(".*", "[A-Za-z0-9_]*")
_REFUSED_FORM: Final = re.compile(_NAMES)


def is_refused_variable(name: str) -> bool:
    """Return whether the variable could run foreign code, reach other GPUs, or conflict with the
    operator.

    The check compares the name with patterns, so that it also refuses variables of future versions.
    """
    return _REFUSED_FORM.fullmatch(name) is not None


def _has_field(variables: list[str], field: str) -> ValueRule:
    has = "has a field of its own" if len(variables) == 1 else "have a field of their own"
    return ValueRule(
        cel=f"!(self in {variables})",
        message=f"{' and '.join(variables)} {has}: set {field} instead",
        holds=lambda name: name not in variables,
    )


def _by_field() -> Mapping[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for variable, field in VARIABLES_WITH_A_FIELD.items():
        fields.setdefault(field, []).append(variable)
    return fields


class EnvironmentVariable(Fields):
    name: Annotated[
        str,
        Field(min_length=1, max_length=128),
        matches(
            "[A-Za-z_][A-Za-z0-9_]*",
            "must be a variable name of letters, digits and _, such as NCCL_DEBUG",
        ),
        *(_has_field(variables, field) for field, variables in _by_field().items()),
        ValueRule(
            cel=f"!self.matches('^({_NAMES})$')",
            message="is set by the operator or unsafe in a shared cluster: remove it",
            holds=lambda name: not is_refused_variable(name),
        ),
    ]
    """Name of the variable. Variables that the operator sets are refused. Variables that load code
    or give access to other GPUs are also refused."""
    value: Annotated[str, Field(max_length=4096)] | None = None
    """Value of the variable, visible to everyone with read access to the LLMService. Use valueFrom
    for secrets. $(NAME) expands to the value of the variable NAME, as in every pod."""
    value_from: KeySource | None = None
    """Source of the value, as an alternative to `value`."""

    rules: ClassVar = (
        Rule(
            "value",
            cel="has(self.value) != has(self.valueFrom)",
            message="is an alternative to valueFrom: set exactly one of the two",
            holds=lambda self: (self.value is None) != (self.value_from is None),
        ),
    )
