import json
from pathlib import Path
from typing import Any

import pytest

from llmservice_server.failures import (
    ErrorFact,
    Failure,
    Reason,
    classify,
    facts_of,
    invalid_argument,
    read_facts,
    too_slow,
    write_termination_message,
)
from llmservice_server.lifecycle import DownloadProgress, Lifecycle, Phase

RECORDED = Path(__file__).parent / "recorded"


def fact(text: str, *types: str) -> ErrorFact:
    return ErrorFact((*types, "Exception"), text)


@pytest.mark.parametrize(
    ("facts", "reason", "finding"),
    [
        # Without a token, the hub answers 401 for a repository that does not exist.
        ([fact("401 Client Error.", "RepositoryNotFoundError")], "ModelNotFound", "no such model"),
        ([fact("404", "RevisionNotFoundError")], "ModelNotFound", "not in this revision"),
        (
            [fact("403", "GatedRepoError", "RepositoryNotFoundError")],
            "ModelAccessDenied",
            "have accepted its terms",
        ),
        (
            [fact("401 Client Error: Unauthorized for url ...", "HfHubHTTPError")],
            "ModelAccessDenied",
            "refused the token",
        ),
        (
            [fact("m is not a local folder and is not a valid model identifier", "OSError")],
            "ModelNotFound",
            "no model in this place",
        ),
        ([fact("no answer", "LocalEntryNotFoundError")], "HubUnreachable", "did not answer"),
        (
            [fact("No module named 'runai_model_streamer'", "ModuleNotFoundError")],
            "InvalidEngineArgument",
            "lacks the Python package runai-model-streamer[s3]",
        ),
        (
            [fact("An error occurred (AccessDenied) when calling the ListObjectsV2 operation: x")],
            "ModelAccessDenied",
            "The object store refused the credentials",
        ),
        (
            [fact("Unable to locate credentials", "NoCredentialsError")],
            "ModelAccessDenied",
            "no credentials for the object store",
        ),
        (
            [fact("An error occurred (NoSuchBucket) when calling the ListObjectsV2 operation: x")],
            "ModelNotFound",
            "no such bucket in this region",
        ),
        (
            [fact('Could not connect to the endpoint URL: "x"', "EndpointConnectionError")],
            "HubUnreachable",
            "The object store did not answer",
        ),
        (
            [fact("Please pass the argument `trust_remote_code=True` to allow", "ValueError")],
            "RemoteCodeRefused",
            "Python code of its own",
        ),
        (
            [fact("Model architectures ['X'] are not supported for now.", "ValueError")],
            "UnsupportedArchitecture",
            "This version of vLLM",
        ),
        (
            [
                fact("Engine core initialization failed.", "RuntimeError"),
                fact("To serve at least one request with the model's max seq len", "ValueError"),
            ],
            "ContextDoesNotFit",
            "cannot hold one request",
        ),
        (
            [
                fact(
                    "To serve at least one request with the model's max seq len (8192), (1.0 GiB "
                    "KV cache is needed, which is larger than the available KV cache memory (0.5 "
                    "GiB). Based on the available memory, the estimated maximum model length is "
                    "4096. Try increasing `gpu_memory_utilization` ..."
                )
            ],
            "ContextDoesNotFit",
            "of the maximum length. At most 4096 tokens fit. The engine said: To serve",
        ),
        (
            [fact("User-specified max_model_len (9) is greater than the derived max_model_len")],
            "ContextDoesNotFit",
            "longer than the model supports",
        ),
        (
            [fact("Failed core proc(s): {'EngineCore_DP0': -9}", "RuntimeError")],
            "OutOfMemory",
            "The kernel killed the engine",
        ),
        (
            [fact("1 validation error for ModelConfig", "ValidationError", "ValueError")],
            "InvalidEngineArgument",
            "refused its arguments",
        ),
    ],
)
def test_knows_the_ways_to_fail_and_what_was_found(
    facts: list[ErrorFact], reason: str, finding: str
) -> None:
    failure = classify(facts, Reason.LOAD_FAILED)
    assert failure.reason == reason
    assert finding in failure.message
    assert facts[-1].text in failure.message


def test_a_refused_argument_is_told_in_the_same_words_at_each_start() -> None:
    said = (
        "argument --kv-cache-memory-bytes: "
        "Value lots cannot be converted to <function of.<locals>.human_readable_int at 0x7fd736>."
    )

    assert invalid_argument(said).message == (
        "The engine refused its arguments: argument --kv-cache-memory-bytes: "
        "Value lots cannot be converted to of.<locals>.human_readable_int."
    )


@pytest.mark.causes("GPUOutOfMemory")
@pytest.mark.parametrize(
    "recorded",
    json.loads((RECORDED / "gpu_out_of_memory.json").read_text()),
    ids=lambda r: r["gpu"],
)
def test_a_gpu_that_is_too_small_is_known_by_what_engines_said_on_real_ones(
    recorded: dict[str, Any],
) -> None:
    root = ErrorFact(tuple(recorded["types"]), recorded["text"])
    chain = [fact("Engine core initialization failed. See root cause above.", "RuntimeError"), root]
    failure = classify(chain, Reason.LOAD_FAILED)
    assert failure.reason == "GPUOutOfMemory"
    assert recorded["finding"] in failure.message
    assert failure.message.endswith(recorded["text"])


@pytest.mark.causes("GPUUnusable")
@pytest.mark.parametrize(
    ("said", "finding"),
    [
        (
            "The NVIDIA driver on your system is too old (found version 12040). Please update your "
            "GPU driver by downloading and installing a new version",
            "driver is too old for this image",
        ),
        (
            "CUDA error: CUDA driver version is insufficient for CUDA runtime version",
            "driver is too old for this image",
        ),
        (
            "CUDA error: no kernel image is available for execution on the device",
            "GPU is too old",
        ),
        ("No CUDA GPUs are available", "no GPU that the engine can use"),
        ("No HIP GPUs are available", "no GPU that the engine can use"),
        ("Found no NVIDIA driver on your system. Please check", "no GPU that the engine can use"),
        (
            "Failed to infer device type, please set the environment variable "
            "`VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose logging",
            "no GPU that the engine can use",
        ),
        ("CUDA error: invalid device ordinal", "fewer than it needs"),
        ("CUDA error: uncorrectable ECC error encountered", "faulty"),
        ("Error 802: system not yet initialized", "faulty"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_known_by_what_drivers_say(said: str, finding: str) -> None:
    failure = classify([fact(said, "RuntimeError")], Reason.LOAD_FAILED)
    assert failure.reason == "GPUUnusable"
    assert finding in failure.message


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("[Errno 28] No space left on device: '/cache/x'", "StorageFull"),
        ("[Errno 122] Disk quota exceeded: '/cache/x'", "StorageFull"),
        ("I/O error: No space left on device (os error 28)", "StorageFull"),
        (
            "unable to open shared memory object </torch_1>: No space left on device (28)",
            "SharedMemoryFull",
        ),
        (
            "Error while creating shared memory segment /dev/shm/nccl-x: No space left on device",
            "SharedMemoryFull",
        ),
        ("Failed core proc(s): {'EngineCore_DP0': -7}", "SharedMemoryFull"),
        ("[Errno 13] Permission denied: '/models/llama/model.safetensors'", "StorageAccessDenied"),
        ("Read-only file system (os error 30)", "StorageAccessDenied"),
        # A refusal by a firewall has the same text as an error of a file system.
        ("[Errno 13] Permission denied", "LoadFailed"),
    ],
)
def test_a_full_or_closed_storage_is_known_by_what_libraries_say(said: str, reason: str) -> None:
    assert classify([fact(said, "OSError")], Reason.LOAD_FAILED).reason == reason


def test_a_start_that_was_cut_off_says_how_far_it_came() -> None:
    now = 0.0
    lifecycle = Lifecycle(lambda: now)
    lifecycle.enter(Phase.DOWNLOADING)
    lifecycle.download = DownloadProgress(3, 8)
    now = 1800.0
    assert too_slow(lifecycle) == Failure(
        Reason.STARTUP_TIMEOUT,
        "The model was not ready after 1800 seconds, and the server was stopped while downloading, "
        "3 of 8 bytes.",
    )
    lifecycle.enter(Phase.WARMING_UP)
    assert too_slow(lifecycle).message.endswith("the server was stopped while warming up.")


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (
            "User-specified max_model_len (9) is greater than the derived max_model_len "
            "(max_position_embeddings=8 in model's config.json). To allow overriding this maximum, "
            "set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1. VLLM_ALLOW_LONG_MAX_MODEL_LEN must "
            "be used with extreme caution.",
            "(max_position_embeddings=8 in model's config.json).",
        ),
        (
            "Cannot find an appropriate cached snapshot folder. To enable repo look-ups and "
            "downloads online, set 'HF_HUB_OFFLINE=0' as environment variable.",
            "cached snapshot folder.",
        ),
        (
            "403 Forbidden: None.\nCannot access content at: http://hub/api.\n"
            "Make sure your token has the correct permissions.",
            "content at: http://hub/api.",
        ),
    ],
    ids=["a variable of vLLM", "a variable of the hub's library", "a token that was not refused"],
)
def test_advice_that_cannot_be_followed_is_not_repeated(said: str, kept: str) -> None:
    message = classify([fact(said)], Reason.LOAD_FAILED).message
    assert message.endswith(kept), message


def test_an_unknown_error_keeps_its_own_words() -> None:
    failure = classify([fact("the moon is full", "RuntimeError")], Reason.LOAD_FAILED)
    assert failure == Failure(Reason.LOAD_FAILED, "The engine said: RuntimeError: the moon is full")


def test_a_certain_sign_anywhere_in_the_chain_beats_a_vague_one_before_it() -> None:
    chain = [fact("x", "ValidationError"), fact("... trust_remote_code=True ...", "ValueError")]
    assert classify(chain, Reason.LOAD_FAILED).reason == "RemoteCodeRefused"


def test_the_facts_of_an_error_go_down_to_its_root() -> None:
    try:
        try:
            raise MemoryError("root")
        except MemoryError as root:
            raise RuntimeError("top") from root
    except RuntimeError as error:
        facts = facts_of(error)

    assert [f.text for f in facts] == ["top", "root"]
    assert "MemoryError" in facts[1].types


def test_an_error_raised_in_place_of_another_hides_it() -> None:
    def fail() -> None:
        try:
            raise MemoryError("hidden")
        except MemoryError:
            raise RuntimeError("told") from None

    with pytest.raises(RuntimeError) as failed:
        fail()
    assert [f.text for f in facts_of(failed.value)] == ["told"]


def test_reads_nothing_where_the_engine_left_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("{")
    assert read_facts(tmp_path / "absent") == []
    assert read_facts(tmp_path / "broken") == []


def test_the_termination_message_is_one_line_of_json_that_the_kubelet_keeps_whole(
    tmp_path: Path,
) -> None:
    log = tmp_path / "termination-log"
    log.touch()

    write_termination_message(classify([fact("é\n" * 9000)], Reason.LOAD_FAILED), log)

    content = log.read_bytes()
    assert len(content) <= 4096
    assert content.count(b"\n") == 1
    assert json.loads(content)["reason"] == "LoadFailed"


def test_no_termination_file_is_made_where_there_is_none(tmp_path: Path) -> None:
    write_termination_message(Failure(Reason.LOAD_FAILED, "b"), tmp_path / "termination-log")
    assert list(tmp_path.iterdir()) == []
