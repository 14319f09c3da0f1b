"""Classifies the failures of a server. Each failure has a reason and a message.

The reasons are those of the LLMService status. The operator adds the advice: it has one hint for
each reason. A load can fail in this process or in the engine process, and the engine process
reports its exception as JSON. So the rules classify facts about an exception, not the exception
object.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from llmservice_server.lifecycle import Lifecycle, Phase

_TERMINATION_MESSAGE_BYTES = 4096
"""Number of bytes of a termination message that the kubelet keeps."""

_TERMINATION_MESSAGE_FORMAT = 2
"""Format of the termination message. A message of format 1 has no field `format` and also contains
the advice."""

_LONGEST_MESSAGE = 3000
"""Maximum length of a message in characters. An exception may quote a whole configuration."""


class Reason(StrEnum):
    """Reasons for the failure of a server; the operator has a hint for each reason."""

    CACHE_LOST = "CacheLost"
    CERTIFICATE_NOT_TRUSTED = "CertificateNotTrusted"
    CONTEXT_DOES_NOT_FIT = "ContextDoesNotFit"
    ENGINE_DIED = "EngineDied"
    ENGINE_HUNG = "EngineHung"
    GPU_OUT_OF_MEMORY = "GPUOutOfMemory"
    GPU_UNUSABLE = "GPUUnusable"
    HUB_BROKEN = "HubBroken"
    HUB_OVERLOADED = "HubOverloaded"
    HUB_UNREACHABLE = "HubUnreachable"
    INVALID_ENGINE_ARGUMENT = "InvalidEngineArgument"
    LOAD_FAILED = "LoadFailed"
    """The load ended with an error that no rule recognises."""
    MODEL_ACCESS_DENIED = "ModelAccessDenied"
    MODEL_NOT_FOUND = "ModelNotFound"
    OUT_OF_MEMORY = "OutOfMemory"
    PROXY_REFUSED = "ProxyRefused"
    REMOTE_CODE_REFUSED = "RemoteCodeRefused"
    SECRET_MISSING = "SecretMissing"
    SHARED_MEMORY_FULL = "SharedMemoryFull"
    SMOKE_TEST_FAILED = "SmokeTestFailed"
    STARTUP_TIMEOUT = "StartupTimeout"
    STORAGE_ACCESS_DENIED = "StorageAccessDenied"
    STORAGE_FULL = "StorageFull"
    TENSOR_SIZE_DOES_NOT_FIT = "TensorSizeDoesNotFit"
    UNSUPPORTED_ARCHITECTURE = "UnsupportedArchitecture"


@dataclass(frozen=True)
class Failure:
    """A reason and its details, in sentences for the reader of the status."""

    reason: Reason
    message: str
    finding: str = field(default="", compare=False)
    """The part of the message before the engine's words; empty if no rule recognised an error."""


ENGINE_KILLED = Failure(
    Reason.ENGINE_DIED,
    "The engine process ended without a message, as it does when the kernel kills it for lack of "
    "memory.",
)
ENGINE_HUNG = Failure(
    Reason.ENGINE_HUNG, "The engine stopped making steps while requests were waiting for it."
)
NO_API_KEY = Failure(
    Reason.SECRET_MISSING,
    "There is no API key: the Secret with the API keys, or its key, does not exist or is empty.",
)
CACHE_LOST = Failure(
    Reason.CACHE_LOST,
    "Another model server took over the cache, because this one gave no sign of life while it "
    "filled it.",
)


def invalid_argument(said: str) -> Failure:
    """Return the failure of a start with arguments that vLLM's parser or this server refuses."""
    # The parser names a type by its `repr`, which contains an address that differs at each start.
    said = re.sub(r"<function (\S+) at 0x\w+>", r"\1", said).rstrip(".")
    return Failure(Reason.INVALID_ENGINE_ARGUMENT, f"The engine refused its arguments: {said}.")


def no_configuration(folder: str) -> Failure:
    """Return the failure of a start with a folder that contains no model."""
    return Failure(Reason.MODEL_NOT_FOUND, f"There is no config.json in {folder}.")


def wrong_ca_bundle(said: str) -> Failure:
    """Return the failure of a start with a CA bundle that contains no valid certificate."""
    return Failure(
        Reason.CERTIFICATE_NOT_TRUSTED,
        f"The CA bundle of the spec or of the chart has no valid certificate in PEM form: {said}.",
    )


def smoke_test_failure(finding: str) -> Failure:
    """Return the failure of a server whose smoke test failed; `finding` is a sentence."""
    return Failure(Reason.SMOKE_TEST_FAILED, f"The server sent itself a test request. {finding}")


def no_adapter_list(file: Path, error: Exception) -> Failure:
    """Return the failure of a start without a readable list of LoRA adapters."""
    return Failure(
        Reason.INVALID_ENGINE_ARGUMENT, f"The list of adapters {file} cannot be read: {error}."
    )


def undividable_heads(heads: int, size: int) -> Failure:
    """Return the failure of a model whose KV heads cannot be split over `size` GPUs."""
    return Failure(
        Reason.TENSOR_SIZE_DOES_NOT_FIT,
        f"The model has {heads} KV heads, which cannot be split evenly over {size} GPUs.",
    )


class StartRefused(Exception):
    """The server itself refuses to start; `failure` contains the reason."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True)
class ErrorFact:
    """One exception of a chain: the names of its class and base classes, and its text."""

    types: tuple[str, ...]
    text: str

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def facts_of(error: BaseException) -> list[ErrorFact]:
    """Return the facts of the exception and of its causes, the root cause last."""
    facts: list[ErrorFact] = []
    current: BaseException | None = error
    while current is not None and len(facts) < 10:
        facts.append(ErrorFact(tuple(c.__name__ for c in type(current).__mro__), str(current)))
        hidden = current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)
    return facts


def read_facts(path: Path) -> list[ErrorFact]:
    """Return the facts that the engine process wrote; empty when it wrote none."""
    try:
        return [ErrorFact(tuple(f["types"]), f["text"]) for f in json.loads(path.read_text())]
    except (OSError, ValueError):
        return []


@dataclass(frozen=True)
class _Rule:
    """Pattern of one kind of failure, with its reason and its finding for the user."""

    reason: Reason
    finding: str
    types: tuple[str, ...] = ()
    text: str = ""
    longest: str = ""
    """Pattern of a statement of the longest context that fits; its group is the number of tokens.
    Empty if errors of this kind state no length."""

    def matches(self, fact: ErrorFact) -> bool:
        if self.types and not set(self.types) & set(fact.types):
            return False
        return re.search(self.text, fact.text, re.IGNORECASE | re.DOTALL) is not None

    def failure(self, fact: ErrorFact) -> Failure:
        longest = re.search(self.longest, fact.text) if self.longest else None
        finding = f"{self.finding} At most {longest[1]} tokens fit." if longest else self.finding
        return Failure(self.reason, _message(finding, fact.text), finding)


_ADVICE_IN_VAIN = re.compile(
    r"VLLM_ALLOW_|derived_max_model_len|HF_HUB_OFFLINE|local_files_only|hf auth login|"
    r"huggingface-cli login|--shm-size|your token has the correct permissions"
)
"""Pattern of sentences with advice for users of the library. Users of an LLMService cannot follow
this advice, because the operator refuses the setting or sets it from a field. The hint of the
reason replaces these sentences."""

_NO_SPACE = r"\[errno (27|28|122)\]|\(os error (27|28|122)\)|no space left on device|quota exceeded"
"""Pattern of the errors with which a full file system, a file size limit or a quota refuses a
write."""

_RULES = (
    _Rule(
        Reason.SHARED_MEMORY_FULL,
        "The shared memory (/dev/shm) is full.",
        text=rf"(/dev/shm|shared memory).*({_NO_SPACE})|({_NO_SPACE}).*/dev/shm|"
        r"insufficient (space in /dev/shm|shared memory)|bus error",
    ),
    _Rule(
        # If shared memory cannot grow, the process that writes to it is killed with SIGBUS.
        Reason.SHARED_MEMORY_FULL,
        "The engine ended with a bus error, most likely because the shared memory (/dev/shm) is "
        "full.",
        text=r"failed core proc\(s\): \{[^}]*: -7\b",
    ),
    _Rule(
        Reason.STORAGE_FULL,
        "A file cannot be written, because its volume is full or its quota is used up.",
        text=_NO_SPACE,
    ),
    _Rule(
        # The path distinguishes a file from a connection. If a firewall refuses a connection, the
        # error has the same words but no path.
        Reason.STORAGE_ACCESS_DENIED,
        "A file or folder cannot be used, because its volume is read-only or its permissions "
        "forbid it.",
        text=r"\[errno (1|13|30)\] [^:]*: b?['\"]|read-only file system|"
        r"permission denied \(os error 13\)",
    ),
    _Rule(
        Reason.CERTIFICATE_NOT_TRUSTED,
        "The certificate of the hub, or of a proxy in front of it, is not trusted.",
        text=r"certificate_verify_failed|certificate verify failed",
    ),
    _Rule(
        Reason.PROXY_REFUSED,
        "A proxy refused the connection to the hub.",
        types=("ProxyError",),
    ),
    _Rule(
        Reason.PROXY_REFUSED,
        "A proxy in front of the hub requires authentication.",
        text=r"\b407 (client error|proxy authentication required)",
    ),
    _Rule(
        # When the hub itself refuses a request, the error contains a message instead of "None".
        Reason.PROXY_REFUSED,
        "A proxy or a firewall, and not the hub itself, answered with 403.",
        text=r"\b403 forbidden: none\.",
    ),
    _Rule(
        Reason.HUB_OVERLOADED,
        "The hub refused the request because it is overloaded, or because too many requests come "
        "from this address.",
        text=r"\b(408 request time-?out|429 (client error|too many requests))",
    ),
    _Rule(
        Reason.HUB_BROKEN,
        "The hub, or a proxy in front of it, answered with an error of its own.",
        text=r"server error '5\d\d\b|\b5\d\d server error",
    ),
    _Rule(
        Reason.INVALID_ENGINE_ARGUMENT,
        "The image lacks the Python package runai-model-streamer[s3], which reads the weights.",
        text=r"no module named '(runai_model_streamer|boto3)|vllm\[runai\]|"
        r"s3 files module not found",
    ),
    _Rule(
        Reason.MODEL_ACCESS_DENIED,
        "The object store refused the credentials, or they do not allow to list and read the "
        "bucket.",
        text=r"an error occurred \((AccessDenied|403|InvalidAccessKeyId|SignatureDoesNotMatch|"
        r"ExpiredToken|InvalidToken)\) when calling",
    ),
    _Rule(
        Reason.MODEL_ACCESS_DENIED,
        "There are no credentials for the object store.",
        types=("NoCredentialsError", "PartialCredentialsError"),
    ),
    _Rule(
        Reason.MODEL_NOT_FOUND,
        "The object store has no such bucket in this region.",
        text=r"an error occurred \((NoSuchBucket|NoSuchKey|404|PermanentRedirect|301|"
        r"AuthorizationHeaderMalformed)\) when calling",
    ),
    _Rule(
        Reason.HUB_UNREACHABLE,
        "The object store did not answer.",
        types=("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError"),
    ),
    _Rule(
        Reason.MODEL_ACCESS_DENIED,
        "The hub serves this model only to those who have accepted its terms.",
        types=("GatedRepoError",),
    ),
    _Rule(
        Reason.MODEL_NOT_FOUND,
        "The hub has this model, but not in this revision.",
        types=("RevisionNotFoundError",),
    ),
    _Rule(
        Reason.MODEL_NOT_FOUND,
        "The hub has no such model, or it is private and the token may not read it.",
        types=("RepositoryNotFoundError",),
    ),
    _Rule(
        Reason.MODEL_ACCESS_DENIED,
        "The hub refused the token, or requires one.",
        text=r"\b(401|403) (client error|unauthorized|forbidden)|invalid (user )?token|gated repo",
    ),
    _Rule(
        Reason.MODEL_NOT_FOUND,
        "There is no model in this place.",
        text=r"not a valid model identifier|not a local folder|can't load the configuration of|"
        r"invalid repository id|cannot find any model weights|does not appear to have a file "
        r"named config\.json|no such file or directory: '[^']*config\.json",
    ),
    _Rule(
        Reason.HUB_UNREACHABLE,
        "The hub did not answer, and the model is not in the cache.",
        types=(
            "LocalEntryNotFoundError",
            "OfflineModeIsEnabled",
            "ConnectionError",
            "ConnectError",
            "ConnectTimeout",
            "ReadTimeout",
        ),
    ),
    _Rule(
        Reason.HUB_UNREACHABLE,
        "The connection to the hub broke.",
        types=("NetworkError", "RemoteProtocolError"),
    ),
    _Rule(
        Reason.REMOTE_CODE_REFUSED,
        "The model brings Python code of its own, and running it is not allowed.",
        text=r"trust_remote_code",
    ),
    _Rule(
        Reason.UNSUPPORTED_ARCHITECTURE,
        "This version of vLLM cannot run the model.",
        text=r"model architectures? .* (not supported|failed to be inspected)|"
        r"does not recognize this architecture|no supported architecture",
    ),
    _Rule(
        Reason.CONTEXT_DOES_NOT_FIT,
        "The KV cache cannot hold one request of the maximum length.",
        text=r"to serve at least one request|no available memory for the cache blocks|"
        r"larger than the available kv cache memory",
        longest=r"estimated maximum model length is (\d+)",
    ),
    _Rule(
        Reason.CONTEXT_DOES_NOT_FIT,
        "The maximum length is longer than the model supports.",
        text=r"max_model_len .* (is )?greater than the derived",
        longest=r"derived max_model_len \(\w+=(\d+)",
    ),
    _Rule(
        Reason.GPU_OUT_OF_MEMORY,
        "The model does not fit into the memory of the GPU.",
        types=("OutOfMemoryError",),
    ),
    _Rule(
        Reason.GPU_OUT_OF_MEMORY,
        "The GPU has too little free memory: the engine asks for more, or another process uses it.",
        text=r"(?:cuda|hip)(?: error:)? out of memory|"
        r"free memory on device .* is less than desired",
    ),
    _Rule(
        Reason.GPU_UNUSABLE,
        "The GPU's driver is too old for this image.",
        text=r"nvidia driver on your system is too old|cuda driver version is insufficient",
    ),
    _Rule(
        Reason.GPU_UNUSABLE,
        "The GPU is too old for this image.",
        text=r"no kernel image is available for execution|"
        r"gpus? with compute capability .* (is|are) too old",
    ),
    _Rule(
        Reason.GPU_UNUSABLE,
        "The container has no GPU that the engine can use, or fewer than it needs.",
        text=r"failed to infer device type|no (?:cuda|hip) gpus are available|"
        r"found no nvidia driver|no cuda-capable device|libcuda\.so\.1: cannot open|no gpus? found|"
        r"(larger|greater|exceeds?) .*number of available gpus|invalid device ordinal",
    ),
    _Rule(
        Reason.GPU_UNUSABLE,
        "The GPU or its driver is faulty.",
        text=r"cuda (error: )?unknown error|system not yet initialized|"
        r"unable to determine the device handle|uncorrectable ecc error|gpu is lost",
    ),
    _Rule(
        Reason.TENSOR_SIZE_DOES_NOT_FIT,
        "The number of GPUs over which the model is split does not divide its heads or layers.",
        text=r"heads \(\d+\) must be divisible by tensor parallel size|"
        r"^\d+ is not divisible by \d+$",
    ),
    _Rule(
        Reason.OUT_OF_MEMORY,
        "The container has too little memory.",
        types=("MemoryError",),
    ),
    _Rule(
        Reason.OUT_OF_MEMORY,
        "The kernel killed the engine, most likely because the container has too little memory.",
        text=r"failed core proc\(s\): \{[^}]*: -9\b",
    ),
    _Rule(
        Reason.INVALID_ENGINE_ARGUMENT,
        "The engine refused its arguments.",
        types=("ValidationError", "ArgumentError"),
    ),
)


def classify(facts: Sequence[ErrorFact], unrecognised: Reason) -> Failure:
    """Return the failure of the first rule that matches an error of the chain.

    The rules are ordered from the most to the least certain. Each rule is tried on the whole chain
    before the next rule, because the decisive exception may be anywhere in the chain.
    `unrecognised` is the reason of an error that no rule recognises.
    """
    for rule in _RULES:
        for fact in facts:
            if rule.matches(fact):
                return rule.failure(fact)
    root = facts[-1] if facts else ErrorFact(("unknown error",), "")
    return Failure(unrecognised, _message("", f"{root.types[0]}: {root.text}"))


def too_slow(lifecycle: Lifecycle) -> Failure:
    """Return the failure of a server that is stopped before its engine serves."""
    done = ""
    is_fetching = lifecycle.phase in (Phase.DOWNLOADING, Phase.WAITING_FOR_CACHE)
    if is_fetching and lifecycle.download is not None:
        done = f", {lifecycle.download.bytes_done} of {lifecycle.download.bytes_total} bytes"
    return Failure(
        Reason.STARTUP_TIMEOUT,
        f"The model was not ready after {lifecycle.elapsed_seconds:.0f} seconds, and the server "
        f"was stopped while {lifecycle.phase.value.replace('_', ' ')}{done}.",
    )


def _message(finding: str, text: str) -> str:
    sentences = re.split(r"(?<=[.!?])\s+(?=['\"`]?[A-Z])", " ".join(text.split()))
    said = " ".join(each for each in sentences if not _ADVICE_IN_VAIN.search(each))
    return f"{finding} The engine said: {said}".strip()[:_LONGEST_MESSAGE] if said else finding


def write_termination_message(failure: Failure, path: Path) -> None:
    """Write the failure to the file that the kubelet reads, if the file exists and is writable.

    The file is never created, because the server must not write to /dev outside a container.
    """
    if not os.access(path, os.W_OK):
        return
    message = failure.message
    while len(line := _line(failure.reason, message)) > _TERMINATION_MESSAGE_BYTES:
        message = message[: len(message) * 9 // 10]
    path.write_bytes(line)


def _line(reason: str, message: str) -> bytes:
    content = json.dumps(
        {"format": _TERMINATION_MESSAGE_FORMAT, "reason": reason, "message": message},
        ensure_ascii=False,
    )
    return content.encode(errors="replace") + b"\n"
