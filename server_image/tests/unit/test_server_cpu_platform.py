import gc
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from pathlib import Path

import pytest

from llmservice_server import cpu_platform


def parse(environment: dict[str, str], *command_line: str) -> Namespace:
    parser = ArgumentParser()
    parser.add_argument("--enforce-eager", action=BooleanOptionalAction, default=False)
    parser.add_argument("--kv-cache-memory-bytes", type=int, default=None)
    cpu_platform.set_defaults(parser, environment)
    return parser.parse_args(command_line)


def test_defaults_are_small_and_start_fast() -> None:
    arguments = parse({})
    assert arguments.enforce_eager is True
    assert arguments.kv_cache_memory_bytes == 1024**3


def test_flags_win_over_the_defaults() -> None:
    arguments = parse({}, "--no-enforce-eager", "--kv-cache-memory-bytes=5")
    assert arguments.enforce_eager is False
    assert arguments.kv_cache_memory_bytes == 5


def test_a_cache_size_from_the_environment_is_left_to_the_engine() -> None:
    assert parse({"VLLM_CPU_KVCACHE_SPACE": "2"}).kv_cache_memory_bytes is None


@pytest.mark.parametrize(
    ("cpus", "threads"), [(0.5, "1"), (1, "1"), (2, "1"), (4, "3"), (7.5, "6")]
)
def test_leaves_a_cpu_to_the_api(cpus: float, threads: str) -> None:
    environment: dict[str, str] = {}
    cpu_platform.prepare_environment(environment, cpus)
    assert environment["OMP_NUM_THREADS"] == threads
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_keeps_the_thread_settings_of_the_user() -> None:
    environment = {"OMP_NUM_THREADS": "8", "VLLM_CPU_OMP_THREADS_BIND": "0-7"}
    cpu_platform.prepare_environment(environment, 2)
    assert environment == {"OMP_NUM_THREADS": "8", "VLLM_CPU_OMP_THREADS_BIND": "0-7"}


def test_reads_the_limit_of_the_container(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert cpu_platform.cpu_limit(tmp_path) == 0.5


@pytest.mark.parametrize("content", ["max 100000\n", "nonsense", None])
def test_without_a_limit_it_may_use_what_it_may_run_on(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "cpu.max").write_text(content)
    assert cpu_platform.cpu_limit(tmp_path) >= 1


@pytest.mark.parametrize(("tensor", "pipeline", "one_tree"), [(1, 1, True), (2, 1, False)])
def test_one_worker_runs_inside_the_engine_process(
    tensor: int, pipeline: int, one_tree: bool
) -> None:
    arguments = Namespace(
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
        distributed_executor_backend=None,
    )
    environment: dict[str, str] = {}

    assert cpu_platform.use_one_process_tree(arguments, environment) is one_tree

    assert arguments.distributed_executor_backend == ("uni" if one_tree else None)
    assert environment == ({"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if one_tree else {})


def test_what_a_forked_engine_shares_is_not_looked_at_by_the_collector() -> None:
    environment: dict[str, str] = {}
    gc.unfreeze()
    try:
        cpu_platform.fork_engine(environment)

        assert environment == {"VLLM_WORKER_MULTIPROC_METHOD": "fork"}
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
