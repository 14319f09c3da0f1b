"""Turns the command line into a running engine, phase by phase."""

import asyncio
import logging
import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from llmservice_server import cpu_platform, model_infos
from llmservice_server.adapter_list import MOST_ADAPTERS
from llmservice_server.compat import (
    Vllm,
    engine_version,
    is_cpu_build,
    keep_adapters_from_other_requests,
    load_vllm,
    read_environment_once,
    tell_steps,
)
from llmservice_server.context_limit import cap_answers, cut_texts
from llmservice_server.download import ModelDownload, hub_model, use_cache_only
from llmservice_server.engine import (
    Engine,
    observed_llm,
    prompts_without_token,
    report_aborts,
    step_recorder,
)
from llmservice_server.engine_usage import EngineLimits, EngineUsage
from llmservice_server.failures import (
    StartRefused,
    invalid_argument,
    no_configuration,
    undividable_heads,
)
from llmservice_server.filling import shared_cache
from llmservice_server.lifecycle import Lifecycle, Phase
from llmservice_server.settings import ServerSettings

logger = logging.getLogger(__name__)

_QUEUE_PER_SLOT = 8
"""Maximum number of waiting and running sequences, as a multiple of those that run at once.

The value is an estimate. A replica with eight full batches serves a further request later than
another replica. The flag --max-num-queued-reqs sets the total number of sequences instead.
"""

_OWN_FLAGS = (
    "host",
    "port",
    "uds",
    "grpc",
    "headless",
    "api_server_count",
    "root_path",
    "ssl_keyfile",
    "ssl_certfile",
    "ssl_ca_certs",
)
"""Flags of vLLM's own server process. This server replaces that process and refuses the flags."""

_TELLING_FLAGS = ("enable_log_requests", "enable_log_outputs")
"""Flags that log prompts or answers; they are refused."""


async def load_engine(
    command_line: Sequence[str],
    lifecycle: Lifecycle,
    usage: EngineUsage,
    settings: ServerSettings,
    on_arguments: Callable[[Namespace], None],
) -> Engine:
    """Return a running engine that updates `usage`; `on_arguments` gets the parsed flags.

    Everything that blocks runs in a thread, so that the probes keep responding. Errors are raised
    unchanged; failures.classify maps them to reasons.
    """
    on_cpu = is_cpu_build()
    # vLLM's compiled parts read the environment when they are imported.
    if on_cpu:
        cpu_platform.prepare_environment(os.environ, cpu_platform.cpu_limit())
    else:
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    # Without this variable, vLLM's handlers would stop the listener before the probes could report
    # the reason.
    os.environ["VLLM_KEEP_ALIVE_ON_ENGINE_DEATH"] = "1"
    # This variable makes vLLM log whole answers, some of which quote the prompt.
    os.environ.pop("VLLM_DEBUG_LOG_API_SERVER_RESPONSE", None)
    vllm = await asyncio.to_thread(load_vllm)
    arguments = await asyncio.to_thread(parse_arguments, vllm, command_line, on_cpu)
    if settings.adapters_file is not None:
        _make_room_for_adapters(arguments)
    if on_cpu and arguments.enable_lora:
        await asyncio.to_thread(keep_adapters_from_other_requests)
    on_arguments(arguments)
    await asyncio.to_thread(model_infos.lay_out, Path(vllm.VLLM_CACHE_ROOT))

    if on_cpu and arguments.enforce_eager:
        cpu_platform.compile_nothing(os.environ)

    lifecycle.enter(Phase.DOWNLOADING)
    one_tree = on_cpu and cpu_platform.use_one_process_tree(arguments, os.environ)
    cache = shared_cache(settings, lifecycle)
    downloads = await asyncio.to_thread(_looked_up_downloads, arguments)
    for download in downloads:
        await cache.fill_configuration(download)
    # The configuration comes before the weights, so that a wrong argument fails in seconds, not
    # after an hour of downloading.
    configuration = await asyncio.to_thread(_engine_configuration, vllm, arguments)
    cut_texts(vllm)
    if configuration.model_config.runner_type == "generate":
        cap_answers(vllm)
    logs_steps = tell_steps(configuration)
    for download in downloads:
        await cache.fill_weights(download)

    async with cache.compiling([engine_version(), *command_line]):
        lifecycle.enter(Phase.LOADING)
        if one_tree:
            cpu_platform.fork_engine(os.environ)
        llm = await asyncio.to_thread(
            observed_llm(vllm, usage, settings.max_choices).from_vllm_config,
            configuration,
            usage_context=vllm.UsageContext.OPENAI_API_SERVER,
            stat_loggers=[step_recorder(vllm, usage, logs_steps=logs_steps)],
            disable_log_stats=arguments.disable_log_stats,
            enable_log_requests=arguments.enable_log_requests,
        )
    read_environment_once()
    report_aborts(vllm, llm)
    usage.unfinished = llm.get_num_unfinished_requests
    usage.prompts = partial(prompts_without_token, llm)
    usage.limits = _limits(llm)
    return Engine(vllm, llm, arguments)


def parse_arguments(vllm: Vllm, command_line: Sequence[str], on_cpu: bool) -> Namespace:
    """Parse vLLM's flags with vLLM's own parser.

    Raises StartRefused for a flag that is wrong or that this server cannot honour.
    """

    class Parser(vllm.FlexibleArgumentParser):  # type: ignore[misc,name-defined]
        def error(self, message: str) -> NoReturn:
            raise StartRefused(invalid_argument(message))

    parser: Any = vllm.make_arg_parser(Parser(prog="llmservice-server"))
    # A web page must not send requests to the model through the browser of a user with access.
    parser.set_defaults(allowed_origins=[])
    if on_cpu:
        cpu_platform.set_defaults(parser, os.environ)
    arguments: Namespace = parser.parse_args(list(command_line))
    if arguments.model_tag is not None:
        arguments.model = arguments.model_tag
    for name in _OWN_FLAGS:
        if getattr(arguments, name, None) != parser.get_default(name):
            flag = f"--{name.replace('_', '-')}"
            refused = f"{flag} is set by the model server itself"
            raise StartRefused(invalid_argument(refused))
    for name in _TELLING_FLAGS:
        if getattr(arguments, name, False):
            flag = f"--{name.replace('_', '-')}"
            refused = f"{flag} would log prompts, which is never done"
            raise StartRefused(invalid_argument(refused))
    if not isinstance(arguments.allowed_origins, list):
        refused = '--allowed-origins must be a list, such as ["https://my.page"]'
        raise StartRefused(invalid_argument(refused))
    try:
        vllm.validate_parsed_serve_args(arguments)
    except (TypeError, ValueError) as error:
        raise StartRefused(invalid_argument(str(error))) from error
    return arguments


def _make_room_for_adapters(arguments: Namespace) -> None:
    """Let the engine keep every adapter of the list in memory.

    Otherwise, vLLM would drop the least recently used adapter, and read its files again for the
    next request that needs it. If the files are gone, the engine exits. Raises StartRefused if the
    flags do not enable adapters.
    """
    if not arguments.enable_lora:
        refused = "LLMSERVICE_ADAPTERS_FILE is set, which requires --enable-lora"
        raise StartRefused(invalid_argument(refused))
    # The engine keeps the adapters of the list and those that requests in progress still use.
    arguments.max_cpu_loras = max(arguments.max_loras, 4 * MOST_ADAPTERS)


def _engine_configuration(vllm: Vllm, arguments: Namespace) -> Any:
    engine_arguments = vllm.AsyncEngineArgs.from_cli_args(arguments)
    configuration = engine_arguments.create_engine_config(
        usage_context=vllm.UsageContext.OPENAI_API_SERVER
    )
    refuse_undividable_heads(configuration)
    scheduling = configuration.scheduler_config
    if scheduling.max_num_queued_reqs is None:
        scheduling.max_num_queued_reqs = _QUEUE_PER_SLOT * scheduling.max_num_seqs
    return configuration


def refuse_undividable_heads(configuration: Any) -> None:
    """Raise StartRefused for a tensor parallel size that does not suit the KV heads of the model.

    At this point, vLLM checks only the attention heads. It checks the KV heads when it builds the
    model, after the download, and its error has no text.
    """
    model, size = configuration.model_config, configuration.parallel_config.tensor_parallel_size
    heads = model.get_total_num_kv_heads()
    if not model.use_mla and heads % size and size % heads:
        raise StartRefused(undividable_heads(heads, size))


def _limits(llm: Any) -> EngineLimits:
    """Return the limits of the running engines. The size of their KV cache is known by now."""
    cache, scheduling = llm.vllm_config.cache_config, llm.vllm_config.scheduler_config
    split = llm.vllm_config.parallel_config
    engines = split.data_parallel_size
    return EngineLimits(
        max_sequences=scheduling.max_num_seqs,
        max_step_tokens=scheduling.max_num_batched_tokens,
        # The number of blocks covers all engines together. The number of tokens covers one engine.
        kv_capacity_tokens=getattr(cache, "kv_cache_size_tokens", None)
        or cache.num_gpu_blocks * cache.block_size / engines,
        engines=engines,
        pipeline_stages=split.pipeline_parallel_size,
    )


def _looked_up_downloads(arguments: Namespace) -> list[ModelDownload]:
    """Return the downloads of the model and its draft model; a model outside the hub has none."""
    if Path(arguments.model).is_absolute() and not Path(arguments.model, "config.json").exists():
        raise StartRefused(no_configuration(arguments.model))
    if os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true"):
        return []
    draft = arguments.speculative_config or {}
    wanted = [(arguments.model, arguments.revision), (draft.get("model"), draft.get("revision"))]
    models = [
        hub_model(
            name, revision, str(arguments.load_format), arguments.download_dir, arguments.hf_token
        )
        for name, revision in wanted
        if name is not None
    ]
    downloads = [ModelDownload(model) for model in models if model is not None]
    for download in downloads:
        download.look_up()
    if downloads and all(download.is_from_cache for download in downloads):
        use_cache_only()
    return downloads
