"""Sets small defaults for an engine that runs on CPUs only.

vLLM's defaults assume a dedicated machine. They give most of the memory to the KV cache, pin every
core and compile kernels before the first token. Each of these defaults is too much for a container.
"""

import gc
import math
import os
from argparse import ArgumentParser, Namespace
from collections.abc import MutableMapping
from pathlib import Path

KV_CACHE_BYTES = 1024**3
"""Default size of the KV cache in bytes. It is an estimate that suffices for dozens of requests to
a small model."""

CGROUP = Path("/sys/fs/cgroup")


def cpu_limit(cgroup: Path = CGROUP) -> float:
    """Return the number of CPUs that this container may use.

    It is the minimum of the cgroup limit, if there is one, and the CPU affinity.
    """
    usable = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return usable
    return usable if quota == "max" else min(usable, int(quota) / int(period))


def prepare_environment(environment: MutableMapping[str, str], cpus: float) -> None:
    """Set the variables that vLLM reads at import, and keep values that the user has set."""
    # One CPU is left to the API and the scheduler. If all CPUs compute, every step of the engine
    # waits for threads that have no CPU to run on.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, math.floor(cpus) - 1)))
    # Pinning counts the node's cores, not the container's. It would put all servers of a node on
    # the same cores.
    environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def set_defaults(parser: ArgumentParser, environment: MutableMapping[str, str]) -> None:
    """Change engine defaults; a flag on the command line takes precedence."""
    # Compiling takes longer than most small models take to load.
    parser.set_defaults(enforce_eager=True)
    if "VLLM_CPU_KVCACHE_SPACE" not in environment:
        parser.set_defaults(kv_cache_memory_bytes=KV_CACHE_BYTES)


def compile_nothing(environment: MutableMapping[str, str]) -> None:
    """Prevent vLLM from compiling parts of an eager engine.

    Otherwise, the first request with log probabilities delays all other requests for half a minute.
    In the image, which has no compiler, that request fails. Import vLLM before you call this
    function.
    """
    import torch

    torch.compiler.set_stance("force_eager")
    # Spawned processes read this variable.
    environment["TORCH_COMPILE_DISABLE"] = "1"


def use_one_process_tree(arguments: Namespace, environment: MutableMapping[str, str]) -> bool:
    """Run the only worker inside the engine process, if one worker is enough.

    The engine remains a separate process, so its death can be detected. Returns whether one worker
    is enough.
    """
    if arguments.tensor_parallel_size * arguments.pipeline_parallel_size != 1:
        return False
    if arguments.distributed_executor_backend is None:
        arguments.distributed_executor_backend = "uni"
    # The CPU platform turns "uni" back into "mp" unless this is 0.
    environment.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    return True


def fork_engine(environment: MutableMapping[str, str]) -> None:
    """Let the engine process inherit the imported modules.

    A spawned process would import everything again, which takes ten seconds. Call this function
    after the engine's configuration is created, because creating it sets "spawn". A fork is safe if
    no accelerator has been initialized.
    """
    environment["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    # The garbage collector writes to every object that it visits, which would copy shared memory.
    gc.freeze()
