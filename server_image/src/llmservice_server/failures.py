"""Classifies the failures of a server: each has a reason and a message.

The reasons are those of the LLMService status. The operator adds the advice, because it has one
hint for each reason. A load fails in this process or in the engine process. So the rules classify
facts about the exception, which pass between the processes as JSON.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from llmservice_server.lifecycle import Lifecycle, Phase

_TERMINATION_MESSAGE_BYTES = 4096
"""Number of bytes of a termination message that the kubelet keeps."""

_TERMINATION_MESSAGE_FORMAT = 2
"""Format of the termination message. A message of format 1 has no field `format` and also contains
the advice."""

_LONGEST_MESSAGE = 3000
"""Maximum length of a message in characters. An exception's text may hold a whole configuration."""


class Reason(StrEnum):
    """Reasons with which a server can end; the operator has a hint for each."""

    CACHE_LOST = "CacheLost"
    CONTEXT_DOES_NOT_FIT = "ContextDoesNotFit"
    ENGINE_DIED = "EngineDied"
    ENGINE_HUNG = "EngineHung"
    GPU_OUT_OF_MEMORY = "GPUOutOfMemory"
    HUB_UNREACHABLE = "HubUnreachable"
    INVALID_ENGINE_ARGUMENT = "InvalidEngineArgument"
    LOAD_FAILED = "LoadFailed"
    """The load ended with an error that no rule recognises."""
    MODEL_ACCESS_DENIED = "ModelAccessDenied"
    MODEL_NOT_FOUND = "ModelNotFound"
    OUT_OF_MEMORY = "OutOfMemory"
    REMOTE_CODE_REFUSED = "RemoteCodeRefused"
    SECRET_MISSING = "SecretMissing"
    STARTUP_TIMEOUT = "StartupTimeout"
    UNSUPPORTED_ARCHITECTURE = "UnsupportedArchitecture"


@dataclass(frozen=True)
class Failure:
    """A reason and its details, in sentences for the reader of the status."""

    reason: Reason
    message: str


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
    return Failure(
        Reason.INVALID_ENGINE_ARGUMENT, f"The engine refused its arguments: {said.rstrip('.')}."
    )


def no_configuration(folder: str) -> Failure:
    """Return the failure of a start with a folder that holds no model."""
    return Failure(Reason.MODEL_NOT_FOUND, f"There is no config.json in {folder}.")


class StartRefused(Exception):
    """A start that the server itself refuses, with its failure."""

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
    """Pattern of the longest context that fits; its group is the number of tokens. Empty when the
    text does not contain it."""

    def matches(self, fact: ErrorFact) -> bool:
        if self.types and not set(self.types) & set(fact.types):
            return False
        return re.search(self.text, fact.text, re.IGNORECASE | re.DOTALL) is not None

    def failure(self, fact: ErrorFact) -> Failure:
        longest = re.search(self.longest, fact.text) if self.longest else None
        finding = f"{self.finding} At most {longest[1]} tokens fit." if longest else self.finding
        return Failure(self.reason, _message(finding, fact.text))


_RULES = (
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
        text=r"cuda(?: error:)? out of memory|free memory on device .* is less than desired",
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
    said = " ".join(text.split())
    return f"{finding} The engine said: {said}".strip()[:_LONGEST_MESSAGE] if said else finding


def write_termination_message(failure: Failure, path: Path) -> None:
    """Write the failure to the file that the kubelet reads; do nothing if the file is missing.

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
