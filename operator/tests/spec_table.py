"""Tables of accepted specs, and of refused specs with the API server's exact messages."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from llmservice_operator.api.extra_args import FLAG_FIELDS, has_refused_form
from operator_support.services import HARMLESS_ARG, HARMLESS_FLAG

FOLDER: Final = Path(__file__).parent / "specs"

NOT_COMPLETE: Final = (
    "<nil>: Invalid value: null: some validation rules were not checked because the object was "
    "invalid; correct the existing errors to complete validation"
)
"""Message that the API server adds to some errors of the schema."""


@dataclass(frozen=True)
class Refused:
    """An LLMService that is refused because it differs from a valid one in these parts."""

    says: str
    """Message of the API server, without the object's name at its start."""
    spec: dict[str, Any] | None = None
    """Fields of the spec that replace those of the valid LLMService."""
    name: str | None = None
    body: dict[str, Any] | None = None
    """Parts of the object that replace those of the valid LLMService."""


def _too_long(field: str, most: int) -> str:
    return f"{field}: Too long: may not be more than {most} bytes"


LONG: Final = {
    "a uri of 513 characters": Refused(
        _too_long("spec.model.uri", 512), {"model": {"uri": "hf://org/" + "a" * 504}}
    ),
    "thirty-three arguments": Refused(
        "spec.engine.extraArgs: Too many: 33: must have at most 32 items",
        {"engine": {"extraArgs": [HARMLESS_ARG] * 33}},
    ),
    "an argument of 1025 characters": Refused(
        _too_long("spec.engine.extraArgs[0]", 1024),
        {"engine": {"extraArgs": ["--x=" + "a" * 1021]}},
    ),
    "a chat template of 65537 characters": Refused(
        _too_long("spec.engine.chatTemplate.inline", 65536),
        {"engine": {"chatTemplate": {"inline": "{" * 65537}}},
    ),
    "a variable of 4097 characters": Refused(
        _too_long("spec.engine.env[0].value", 4096),
        {"engine": {"env": [{"name": "A", "value": "a" * 4097}]}},
    ),
    "a thousand variables": Refused(
        "spec.engine.env: Too many: 1000: must have at most 64 items",
        {"engine": {"env": [{"name": f"A{i}", "value": "a"} for i in range(1000)]}},
    ),
    "an image of 513 characters": Refused(
        _too_long("spec.engine.image", 512), {"engine": {"image": "a" * 513}}
    ),
    "a GPU resource whose name has 64 characters": Refused(
        "spec.accelerator.resourceName: Invalid value: must have the form DOMAIN/NAME, "
        "as in a node's status.allocatable, such as nvidia.com/gpu",
        {"accelerator": {"resourceName": "a.b/" + "a" * 64}},
    ),
    "an amount of 33 characters": Refused(
        _too_long("spec.resources.limits.memory", 32),
        {"resources": {"limits": {"memory": "1" * 33}}},
    ),
    "a name of 64 characters": Refused(
        "metadata.name: Invalid value: must be a valid Service name: at most 63 "
        "lower-case letters, digits and '-', starting with a letter and ending with a letter or "
        "digit, such as qwen-7b",
        name="a" * 64,
    ),
}
"""Cases that are easier to read as code than in a file."""

FLAGS: Final = {
    f"{flag} by its flag": Refused(
        f"spec.engine.extraArgs[0]: Invalid value: {flag} has a field of its own: set "
        f"{field.name} instead",
        {"engine": {"extraArgs": [f"{flag}=1"]}},
    )
    for field in FLAG_FIELDS
    for flag in field.flag.refused_in_extra_args
    if not has_refused_form(flag)
}
"""Cases of flags that one rule refuses. The flags that two rules refuse are in a file."""


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Return the cases of a file.

    In the file, --harmless is a placeholder for a flag that extraArgs accepts.
    """
    text = file.read_text().replace("--harmless=", f"{HARMLESS_FLAG}=")
    # The loader in C takes a tenth of the time.
    cases: dict[str, dict[str, Any]] = yaml.load(text, yaml.CSafeLoader)
    return cases


REFUSED: Final = {
    f"{file.stem}: {sentence}": Refused(**case)
    for file in sorted((FOLDER / "refused").glob("*.yaml"))
    for sentence, case in _read(file).items()
} | {**LONG, **FLAGS}

ACCEPTED: Final = _read(FOLDER / "accepted.yaml")

_PREFIX = re.compile(
    'LLMService[.]llmservice[.]dev "[^"]*" is invalid: |'
    'LLMService in version "v1alpha1" cannot be handled as a LLMService: '
)


_QUOTED_VALUE = re.compile(r'(Invalid value: )(?:"(?:[^"\\]|\\.)*": |-?[0-9]+: (?=must))')
"""Wrong value in a rule's message. API servers before 1.37 quote the value's type instead."""

_SAID_TWICE = re.compile(r", <nil>: Invalid value: Checked value must be of type [^],]*")
"""Text that API servers since 1.37 add to the message about a number of the wrong type."""


def plain(message: str) -> str:
    """Return the API server's message about a fault, without the value and the object's name."""
    text = _PREFIX.sub("", message, count=1).replace(f", {NOT_COMPLETE}", "")
    text = _SAID_TWICE.sub("", _QUOTED_VALUE.sub(r"\1", text))
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text
