"""Record the messages of a release's model server to the operator, for the operator's tests.

    uv run python server_image/record_release.py 0.2.0

Run this script at every release, and commit the files. Every later operator must understand these
messages, because an image stays in use until its service's spec changes.
"""

import json
import sys
import tempfile
from pathlib import Path

from llmservice_server.failures import (
    CACHE_LOST,
    ENGINE_HUNG,
    ENGINE_KILLED,
    NO_API_KEY,
    ErrorFact,
    Failure,
    Reason,
    classify,
    invalid_argument,
    no_configuration,
    smoke_test_failure,
    too_slow,
    undividable_heads,
    write_termination_message,
)
from llmservice_server.lifecycle import DownloadProgress, Lifecycle, Phase

RECORDED = Path(__file__).parents[1] / "operator/tests/unit/recorded"

ERRORS = {
    "gated": ("GatedRepoError", "403 Client Error. Access to model org/secret is restricted."),
    "no-revision": ("RevisionNotFoundError", "404 Client Error. Revision Not Found."),
    "no-repository": ("RepositoryNotFoundError", "401 Client Error. Repository Not Found."),
    "token-refused": ("HfHubHTTPError", "401 Client Error: Unauthorized for url: https://hub/x"),
    "no-model-here": ("OSError", "/models/m is not a local folder"),
    "hub-away": ("LocalEntryNotFoundError", "Cannot find an appropriate cached snapshot folder"),
    "hub-overloaded": ("HfHubHTTPError", "429 Too Many Requests for url: https://hub/x."),
    "hub-broken": ("HfHubHTTPError", "Server error '502 Bad Gateway' for url 'https://hub/x'"),
    "hub-connection-broken": ("RemoteProtocolError", "Server disconnected without a response."),
    "proxy-refused": ("ProxyError", "403 Forbidden"),
    "proxy-without-login": (
        "HfHubHTTPError",
        "Client error '407 Proxy Authentication Required' for url 'https://hub/x'",
    ),
    "firewall": ("HfHubHTTPError", "403 Forbidden: None. Cannot access content at: https://hub/x."),
    "certificate": ("ConnectError", "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate"),
    "disk-full": ("OSError", "[Errno 28] No space left on device: '/cache/x'"),
    "read-only": ("OSError", "[Errno 30] Read-only file system: '/cache/x'"),
    "shared-memory-full": ("RuntimeError", "Insufficient space in /dev/shm: 160 MiB required."),
    "bus-error": ("RuntimeError", "Failed core proc(s): {'EngineCore_DP0': -7}"),
    "driver-too-old": ("RuntimeError", "The NVIDIA driver on your system is too old."),
    "gpu-too-old": ("RuntimeError", "CUDA error: no kernel image is available for execution"),
    "no-gpu": ("RuntimeError", "No CUDA GPUs are available"),
    "gpu-faulty": ("RuntimeError", "CUDA error: uncorrectable ECC error encountered"),
    "tensor-size": (
        "ValueError",
        "Total number of attention heads (32) must be divisible by tensor parallel size (3).",
    ),
    "remote-code": ("ValueError", "Please pass the argument `trust_remote_code=True`"),
    "architecture": ("ValueError", "Model architectures ['X'] are not supported for now."),
    "context-of-cache": (
        "ValueError",
        "To serve at least one request with the model's max seq len (8192), 1.0 GiB KV cache is "
        "needed. The estimated maximum model length is 4096.",
    ),
    "context-of-model": (
        "ValueError",
        "User-specified max_model_len (9999) is greater than the derived max_model_len "
        "(max_position_embeddings=2048).",
    ),
    "gpu-too-small": ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 80.00 MiB."),
    "gpu-in-use": ("ValueError", "Free memory on device (31/47 GiB) is less than desired GPU"),
    "memory-error": ("MemoryError", ""),
    "engine-killed-while-loading": ("RuntimeError", "Failed core proc(s): {'EngineCore_DP0': -9}"),
    "validation": ("ValidationError", "1 validation error for ModelConfig"),
    "unknown": ("ValueError", "invalid literal for int() with base 10: 'lots'"),
    "unknown-long": ("RuntimeError", "é\n" * 9000),
}
"""Name -> class and text of an error. Most rules of the model server match one of these errors, and
some errors match no rule."""


def failures() -> dict[str, Failure]:
    """Return name -> example of a failure that can end a server. Every reason has an example."""
    loading = {
        name: classify([ErrorFact((kind, "Exception"), text)], Reason.LOAD_FAILED)
        for name, (kind, text) in ERRORS.items()
    }
    return loading | {
        "died-with-facts": classify(
            [ErrorFact(("RuntimeError",), "the moon is full")], Reason.ENGINE_DIED
        ),
        "killed": ENGINE_KILLED,
        "hung": ENGINE_HUNG,
        "no-key": NO_API_KEY,
        "cache-lost": CACHE_LOST,
        "flag": invalid_argument("unrecognized arguments: --no-such-flag=1"),
        "kv-heads": undividable_heads(4, 3),
        "no-config": no_configuration("/models/absent"),
        "smoke-test": smoke_test_failure("32 of 32 log-probabilities are not finite, such as NaN."),
        "too-slow-downloading": too_slow(lifecycle_in(Phase.DOWNLOADING)),
        "too-slow-warming-up": too_slow(lifecycle_in(Phase.WARMING_UP)),
    }


def termination_messages() -> dict[str, str]:
    """Return the termination message of each failure, as the server writes it."""
    with tempfile.NamedTemporaryFile() as file:
        log, written = Path(file.name), {}
        for name, failure in failures().items():
            write_termination_message(failure, log)
            written[name] = log.read_text()
    return written


def probes() -> dict[str, dict[str, object]]:
    """Return the body of a probe in each phase, and the body while the engine hangs."""
    stalled = lifecycle_in(Phase.READY)
    stalled.is_stalled = True
    bodies = {phase.value: lifecycle_in(phase).report() for phase in Phase}
    return bodies | {"stalled": stalled.report()}


def lifecycle_in(phase: Phase) -> Lifecycle:
    """Return a lifecycle that is five seconds old and has been in the phase for two seconds."""
    seconds = iter((0.0, 3.0))
    lifecycle = Lifecycle(lambda: next(seconds, 5.0))
    if phase is Phase.FAILED:
        failure = no_configuration("/models/absent")
        lifecycle.fail(failure.reason, failure.message)
    elif phase is Phase.WAITING_FOR_CACHE:
        lifecycle.wait_for_cache("qwen-5c9-abc")
    else:
        lifecycle.enter(phase)
    lifecycle.download = DownloadProgress(10, 40)
    return lifecycle


def main(version: str) -> None:
    folder = RECORDED / f"server_v{version}"
    folder.mkdir(exist_ok=True)
    for name, content in (
        ("termination_messages.json", termination_messages()),
        ("probes.json", probes()),
    ):
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
