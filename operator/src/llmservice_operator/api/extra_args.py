"""spec.engine.extraArgs: the form of an argument, and the flags that are never accepted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Final

from pydantic import Field

from llmservice_operator.api.engine_fields import EngineFields
from llmservice_operator.api.fields import ValueRule, matches
from llmservice_operator.api.flags import FlagField, declared_flags, listed
from llmservice_operator.api.model import Model

FLAG_FIELDS: Final = declared_flags(model=Model, engine=EngineFields)
"""The fields that set a flag, in the order in which the engine gets their flags."""

FLAGS_WITH_A_FIELD: Final[Mapping[str, str]] = {
    flag: field.name for field in FLAG_FIELDS for flag in (field.flag.name, *field.flag.also)
}
"""For each engine flag, the field that sets it."""

_REFUSED: Final = (
    # These open access to the server, or set its addresses and protocols.
    *("allow-credentials", "allowed-.*", "api-server-count", "disable-fastapi-docs"),
    *("enable-offline-docs", "enable-scale-out", "enable-ssl-refresh", "grpc", "headless", "host"),
    *("enable-tokenizer-info-endpoint", "middleware", ".*-port", "root-path", "ssl-.*"),
    *("tokens-only", "tool-server", "uds", "otlp-traces-endpoint", "collect-detailed-traces"),
    # The model server has its own HTTP listener, so these would have no effect.
    *("disable-access-log-for-endpoints", ".*uvicorn-.*", "h11-.*", "enable-request-id-headers"),
    # These load code, or data that is executed like code.
    *(".*-cls", ".*-plugin", "(.*-)?config", "code-revision"),
    *("logits-processors", "model-class-overrides", "trust-.*"),
    *("enable-prompt-embeds", "enable-mm-embeds"),
    *("pt-load-map-location", "skip-tokenizer-init", "tokenizer"),
    "tokenizer-revision",
    # These name files of the container.
    *(".*-path", ".*-dir", ".*-file"),
    # These change the processes of a replica, or what the processes serve, keep or log.
    *("convert", "runner", "device-ids", "disable-log-stats", "enable-log-.*"),
    *("data-parallel-(address|backend|.*lb|rank|size-local|start-rank)", "dp-supervisor-.*"),
    *(".*elastic-ep.*", "enable-fault-tolerance", "enable-trace-replay", "master-addr", "nnodes"),
    *("node-rank", "numa-.*", "prefill-context-parallel-size", "ray-.*", ".*sleep-.*"),
    *("enable-cumem-allocator", "enable-nccl-comm-suspend", ".*lora.*", "shutdown-timeout"),
)
SET_BY: Final[Mapping[str, str]] = {
    "--api-key": "auth.apiKeysSecretRef",
    "--download-dir": "model.cache",
    "--hf-token": "model.credentialsSecretRef",
    "--port": "service.port",
}
"""Refused flags, each with the field to set instead."""

_HARMLESS: Final = (
    "(override-)?generation-config|allowed-media-domains|allowed-origins|"
    "(additional|attention|compilation|diffusion|kernel|pooler|reasoning)-config|"
    "(reasoning|tool|tool-call)-parser-plugin"
)
"""Exceptions to the refused names. These flags need no check: generation-config and
override-generation-config (sampling defaults), allowed-media-domains (a limit on what the server
fetches), and allowed-origins (the web pages that may call the API, whose calls still need a key if
the service has keys). desired/checked_values.py checks the values of the other exceptions."""

SAFE_VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "--config-format": ("auto", "hf", "mistral"),
    "--distributed-executor-backend": ("mp",),
    "--load-format": (
        *("auto", "bitsandbytes", "fastsafetensors", "instanttensor", "mistral"),
        *("runai_streamer", "runai_streamer_sharded", "safetensors"),
    ),
}
"""Flags of which only some values are safe, each with these values. Other formats can contain code,
and other executors use more than one pod."""

# Match only the flag's name. Its value may contain anything, such as an equals sign.
_NAMES: Final = "|".join(_REFUSED).replace(".*", "[a-z0-9-]*")
_SET_BY: Final = "|".join(flag.removeprefix("--") for flag in SET_BY)
_REFUSED_FORM: Final = re.compile(f"--(?!({_HARMLESS})$)({_NAMES})")

IS_REFUSED: Final = "is set by the operator or unsafe in a shared cluster: remove it"


def is_refused(flag: str) -> bool:
    """Return whether the flag could run foreign code, open files or ports, or conflict with the
    operator.

    The check compares the name with patterns, so that it also refuses flags of future vLLM
    versions.
    """
    return flag not in FLAGS_WITH_A_FIELD and (flag in SET_BY or has_refused_form(flag))


def has_refused_form(flag: str) -> bool:
    """Return whether a pattern of refused names matches the flag.

    In contrast to `is_refused`, the result does not depend on the fields that set flags.
    """
    return _REFUSED_FORM.fullmatch(flag) is not None


def field_rules(fields: Iterable[FlagField]) -> tuple[ValueRule, ...]:
    """Return the rules by which extraArgs refuses the flags of these fields."""
    return tuple(
        _is_absent(flag, f"{flag} has a field of its own: set {field.name} instead")
        for field in fields
        for flag in field.flag.refused_in_extra_args
    )


def _takes_only(flag: str, values: tuple[str, ...]) -> ValueRule:
    choose = "choose one of them" if len(values) > 1 else "write that value"
    return ValueRule(
        cel=f"!self.startsWith('{flag}=') || self.matches('^{flag}=({'|'.join(values)})$')",
        message=f"{flag} accepts only {listed(values)}: {choose}, or remove it",
        holds=lambda arg: not arg.startswith(f"{flag}=") or arg.partition("=")[2] in values,
    )


def _is_absent(flag: str, message: str) -> ValueRule:
    return ValueRule(
        cel=f"self != '{flag}' && !self.startsWith('{flag}=')",
        message=message,
        holds=lambda arg: arg.partition("=")[0] != flag,
    )


ExtraArg = Annotated[
    str,
    Field(min_length=1, max_length=1024),
    *field_rules(FLAG_FIELDS),
    *(
        _is_absent(flag, f"{flag} is set by the operator: set {field} instead")
        for flag, field in SET_BY.items()
    ),
    *(_takes_only(flag, values) for flag, values in SAFE_VALUES.items()),
    ValueRule(
        cel=f"self.matches('^--({_HARMLESS}|{_SET_BY})(=|$)') || "
        f"!self.matches('^--({_NAMES})(=|$)')",
        message=IS_REFUSED,
        holds=lambda arg: arg.partition("=")[0] in SET_BY or not is_refused(arg.partition("=")[0]),
    ),
    # This rule comes last. So an argument with a refused flag gets the message about the flag, even
    # if the form of the argument is wrong, too.
    matches(
        "--[a-z][a-z0-9-]*=[ -~]+",
        "must be --flag=value in printable ASCII, with the flag's full name in lower case and "
        "dashes, such as --response-role=assistant; write a switch as --flag=true, and nested "
        'options as JSON, such as --attention-config={"backend": "TRITON_ATTN"}',
    ),
]
