"""Small defaults and settings of an engine that runs on CPUs only.

vLLM's own defaults fit a machine that is ours alone: half of its memory for the KV cache, every
core pinned, kernels compiled before the first token. In a container each of them is too much.
"""

import gc
import math
import os
from argparse import ArgumentParser, Namespace
from collections.abc import MutableMapping
from pathlib import Path

KV_CACHE_BYTES = 1024**3
"""KV cache unless asked otherwise. A judgement: enough for dozens of requests to a small model."""

CGROUP = Path("/sys/fs/cgroup")


def cpu_limit(cgroup: Path = CGROUP) -> float:
    """Return how many CPUs this container may use: its cgroup limit, else what it may run on."""
    usable = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return usable
    return usable if quota == "max" else min(usable, int(quota) / int(period))


def prepare_environment(environment: MutableMapping[str, str], cpus: float) -> None:
    """Set what must be known before vLLM is imported; what the user set stays."""
    # One CPU is left to the API and the scheduler: with all of them computing, every step of the
    # engine waits for threads that have no CPU to run on.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, math.floor(cpus) - 1)))
    # Pinning counts the node's cores, not the container's, and would put every server of a node
    # on the same ones.
    environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def set_defaults(parser: ArgumentParser, environment: MutableMapping[str, str]) -> None:
    """Change engine defaults; a flag on the command line still wins."""
    # Compiling takes longer than most small models take to load.
    parser.set_defaults(enforce_eager=True)
    if "VLLM_CPU_KVCACHE_SPACE" not in environment:
        parser.set_defaults(kv_cache_memory_bytes=KV_CACHE_BYTES)


def compile_nothing(environment: MutableMapping[str, str]) -> None:
    """Keep the parts of an eager engine eager that vLLM compiles all the same.

    The first request with log probabilities would otherwise hold up everybody for half a minute,
    or fail where there is no compiler, as in the image. vLLM must have been imported.
    """
    import torch

    torch.compiler.set_stance("force_eager")
    # For the processes that are started anew.
    environment["TORCH_COMPILE_DISABLE"] = "1"


def use_one_process_tree(arguments: Namespace, environment: MutableMapping[str, str]) -> bool:
    """Run the only worker inside the engine process, where one worker is enough.

    The engine stays a process of its own, so its death is seen. Returns whether it applies.
    """
    if arguments.tensor_parallel_size * arguments.pipeline_parallel_size != 1:
        return False
    if arguments.distributed_executor_backend is None:
        arguments.distributed_executor_backend = "uni"
    # The CPU platform turns "uni" back into "mp" unless this is 0.
    environment.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    return True


def fork_engine(environment: MutableMapping[str, str]) -> None:
    """Let the engine process inherit the modules that are imported already.

    To be called after the engine's configuration is made, which forces "spawn": importing
    everything again takes ten seconds. Safe where no accelerator has been initialised.
    """
    environment["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    # The collector writes to every object that it looks at, and so would copy what the two share.
    gc.freeze()
