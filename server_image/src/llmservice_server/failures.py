"""Why a server could not serve: one reason word and a message that says what to change.

The words are those of the LLMService status. A load fails in our process or in the engine's, so
what is classified is not an exception but its facts, which travel between processes as JSON.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llmservice_server.lifecycle import Lifecycle, Phase

_TERMINATION_MESSAGE_BYTES = 4096
"""What the kubelet keeps of a termination message."""

_LONGEST_MESSAGE = 3000
"""Characters. An exception's text may hold a whole configuration."""


@dataclass(frozen=True)
class Failure:
    """A reason, CamelCase, and a sentence for the person who reads the status."""

    reason: str
    message: str


class StartRefused(Exception):
    """A start that we refuse ourselves; carries its failure."""

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
    """Return the exception and what caused it, the root last."""
    facts: list[ErrorFact] = []
    current: BaseException | None = error
    while current is not None and len(facts) < 10:
        facts.append(ErrorFact(tuple(c.__name__ for c in type(current).__mro__), str(current)))
        hidden = current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)
    return facts


def read_facts(path: Path) -> list[ErrorFact]:
    """Return the facts that the engine process left behind, none when it left none."""
    try:
        return [ErrorFact(tuple(f["types"]), f["text"]) for f in json.loads(path.read_text())]
    except (OSError, ValueError):
        return []


@dataclass(frozen=True)
class _Rule:
    """How a kind of failure is recognised, and what to tell the user about it."""

    reason: str
    advice: str
    types: tuple[str, ...] = ()
    text: str = ""
    longest: str = ""
    """Where the text tells the longest context that would do, a form whose group is the number."""

    def matches(self, fact: ErrorFact) -> bool:
        if self.types and not set(self.types) & set(fact.types):
            return False
        return re.search(self.text, fact.text, re.IGNORECASE | re.DOTALL) is not None

    def advise(self, fact: ErrorFact) -> str:
        longest = re.search(self.longest, fact.text) if self.longest else None
        return f"At most {longest[1]} tokens fit. {self.advice}" if longest else self.advice


_RULES = (
    _Rule(
        "ModelAccessDenied",
        "The model needs permission. Accept its terms on the hub and name a Secret with a token "
        "that may read it in spec.model.credentialsSecretRef.",
        types=("GatedRepoError",),
    ),
    _Rule(
        "ModelNotFound",
        "The model exists, but not in this revision. Correct spec.model.revision.",
        types=("RevisionNotFoundError",),
    ),
    _Rule(
        "ModelNotFound",
        "There is no such model. Correct spec.model.uri; for a private model name a Secret with a "
        "token in spec.model.credentialsSecretRef.",
        types=("RepositoryNotFoundError",),
    ),
    _Rule(
        "ModelAccessDenied",
        "The hub refused the token, or wants one. Check the Secret named in "
        "spec.model.credentialsSecretRef; without one the model must be public.",
        text=r"\b(401|403) (client error|unauthorized|forbidden)|invalid (user )?token|gated repo",
    ),
    _Rule(
        "ModelNotFound",
        "There is no model in this place. Correct spec.model.uri: it must name a repository, or a "
        "folder of the claim that holds config.json and the weights.",
        text=r"not a valid model identifier|not a local folder|can't load the configuration of|"
        r"invalid repository id|cannot find any model weights|does not appear to have a file "
        r"named config\.json|no such file or directory: '[^']*config\.json",
    ),
    _Rule(
        "HubUnreachable",
        "The hub did not answer and the model is not in the cache. Check the network, or set the "
        "hub's address (chart value model.hubEndpoint).",
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
        "RemoteCodeRefused",
        "The model brings Python code of its own, which is not run unless you trust it. Set "
        "spec.model.trustRemoteCode: true if you do.",
        text=r"trust_remote_code",
    ),
    _Rule(
        "UnsupportedArchitecture",
        "This vLLM cannot run the model. Choose another model, or an image with a newer vLLM in "
        "spec.engine.image.",
        text=r"model architectures? .* (not supported|failed to be inspected)|"
        r"does not recognize this architecture|no supported architecture",
    ),
    _Rule(
        "ContextDoesNotFit",
        "Lower spec.engine.maxModelLen, or give the engine more memory for its KV cache "
        "(spec.engine.gpuMemoryUtilizationPercent, or --kv-cache-memory-bytes in "
        "spec.engine.extraArgs).",
        text=r"to serve at least one request|no available memory for the cache blocks|"
        r"larger than the available kv cache memory",
        longest=r"estimated maximum model length is (\d+)",
    ),
    _Rule(
        "ContextDoesNotFit",
        "Lower spec.engine.maxModelLen to what the model supports.",
        text=r"max_model_len .* (is )?greater than the derived",
        longest=r"derived max_model_len \(\w+=(\d+)",
    ),
    _Rule(
        "GPUOutOfMemory",
        "The model does not fit the GPU. Use more GPUs (spec.accelerator.count), a larger one, a "
        "quantized model, or a lower spec.engine.maxModelLen.",
        types=("OutOfMemoryError",),
    ),
    _Rule(
        "GPUOutOfMemory",
        "The GPU has too little free memory. Make sure that nothing else uses it, or lower "
        "spec.engine.gpuMemoryUtilizationPercent.",
        text=r"cuda(?: error:)? out of memory|free memory on device .* is less than desired",
    ),
    _Rule(
        "OutOfMemory",
        "The container has too little memory. Raise spec.resources.limits.memory.",
        types=("MemoryError",),
    ),
    _Rule(
        "OutOfMemory",
        "The kernel killed the engine, most likely because the container has too little memory. "
        "Raise spec.resources.limits.memory.",
        text=r"failed core proc\(s\): \{[^}]*: -9\b",
    ),
    _Rule(
        "InvalidEngineArgument",
        "Correct the engine's arguments (spec.engine).",
        types=("ValidationError", "ArgumentError"),
    ),
)


def classify(facts: Sequence[ErrorFact], unrecognised: str) -> Failure:
    """Return the failure that a chain of errors amounts to.

    Every rule is tried on the whole chain before the next rule: the list goes from the certain to
    the vague, while the telling exception may stand anywhere in a chain. `unrecognised` is the
    reason of an error that no rule knows.
    """
    for rule in _RULES:
        for fact in facts:
            if rule.matches(fact):
                return Failure(rule.reason, _message(rule.advise(fact), fact.text))
    root = facts[-1] if facts else ErrorFact(("unknown error",), "")
    return Failure(
        unrecognised,
        _message("The log has the details.", f"{root.types[0]}: {root.text}"),
    )


def too_slow(lifecycle: Lifecycle) -> Failure:
    """Return what is said when the time for a start is over before the engine serves."""
    done, advice = "", "choose a smaller or a quantized model, or nodes with faster disks."
    if lifecycle.phase in (Phase.DOWNLOADING, Phase.WAITING_FOR_CACHE):
        advice = (
            "bring the model nearer: a claim (spec.model.uri: pvc://...), or a mirror of the hub "
            "(chart value model.hubEndpoint)."
        )
        if lifecycle.download is not None:
            done = f", {lifecycle.download.bytes_done} of {lifecycle.download.bytes_total} bytes"
    return Failure(
        "StartupTimeout",
        f"The model was not ready after {lifecycle.elapsed_seconds:.0f} seconds and the server was "
        f"told to stop while {lifecycle.phase.value.replace('_', ' ')}{done}. "
        f"Raise spec.startup.timeoutSeconds, or {advice}",
    )


def _message(advice: str, text: str) -> str:
    said = " ".join(text.split())
    return f"{advice} The engine said: {said}"[:_LONGEST_MESSAGE] if said else advice


def write_termination_message(failure: Failure, path: Path) -> None:
    """Leave the failure where the kubelet looks for it; does nothing where there is no such file.

    The file is never created: outside a container /dev is not ours to write in.
    """
    if not os.access(path, os.W_OK):
        return
    message = failure.message
    while len(line := _line(failure.reason, message)) > _TERMINATION_MESSAGE_BYTES:
        message = message[: len(message) * 9 // 10]
    path.write_bytes(line)


def _line(reason: str, message: str) -> bytes:
    content = json.dumps({"reason": reason, "message": message}, ensure_ascii=False)
    return content.encode(errors="replace") + b"\n"
