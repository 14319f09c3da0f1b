"""Decides whether a spec can express a command line so that vLLM reads the same values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from engine_asking import Ask
from llmservice_operator.api.spec import LLMService
from llmservice_operator.catalogue import service_of
from llmservice_operator.desired.engine_args import build_engine_args
from llmservice_operator.settings import ENGINE_VERSION
from migration.cases import GPUS_OF_A_NODE, Case
from translation import Inexpressible, refusals, spec_of, speculative_method

FILES: Final = ("chat_template", "reasoning_parser_plugin", "tool_parser_plugin")
"""Arguments of vLLM that name a file in the other project's image. With an LLMService, a template
comes from a ConfigMap, and a parser from the user's own image."""


@dataclass(frozen=True)
class Verdict:
    """Result for one case."""

    case: Case
    reasons: tuple[str, ...]
    """Reasons why a spec cannot express the case. Empty if it can."""

    @property
    def is_expressible(self) -> bool:
        """Whether a spec expresses the whole case."""
        return not self.reasons


def judge(cases: Iterable[Case], ask: Ask) -> list[Verdict]:
    """Return the verdict on each case.

    A case is expressible if three conditions hold: the GPUs of one node are enough, the operator
    accepts the spec, and vLLM's parser reads the same values from the operator's command line as
    from that of the case. Arguments in FILES are not compared.
    """
    found = []
    for case in cases:
        reasons = _obstacles(case)
        found.append(Verdict(case, tuple(reasons or _differences(case, ask))))
    return found


def _obstacles(case: Case) -> list[str]:
    if case.gpus > GPUS_OF_A_NODE:
        return [f"needs {case.gpus} GPUs, more than a node has"]
    try:
        return refusals(spec_of(case.model, case.flags, case.environment))
    except Inexpressible as error:
        return [str(error)]


def compiled(case: Case) -> list[str]:
    """Return the operator's command line for a case, after the kubelet's expansion of variables."""
    spec = spec_of(case.model, case.flags, case.environment)
    service = LLMService.parse(service_of("model", spec))
    return [arg.replace("$$", "$") for arg in build_engine_args(service, ENGINE_VERSION)]


def original(case: Case) -> list[str]:
    """Return the command line of a case, with flag and value in one argument.

    Only --served-model-name has its values in separate arguments.
    """
    said = [
        _written(flag, value) for flag, value in case.flags.items() if flag != "--served-model-name"
    ]
    names = str(case.flags.get("--served-model-name") or "").split()
    return [f"--model={case.model}", *said, *(("--served-model-name", *names) if names else ())]


def _written(flag: str, value: str | None) -> str:
    """Return a flag and its value as one argument.

    For a switch, the value may be true or false, which only older parsers accept. The result is
    then the switch alone, or its form with --no-.
    """
    if value in (None, "true"):
        return flag
    return f"--no-{flag.removeprefix('--')}" if value == "false" else f"{flag}={value}"


def _differences(case: Case, ask: Ask) -> list[str]:
    """Return a sentence for each setting to which the two command lines of the case give different
    values.

    One line is the catalogue's, and the other is the operator's. If vLLM refuses one of them, the
    refusal is the only result.
    """
    theirs, ours = original(case), compiled(case)
    for who, line in (("the case's own line", theirs), ("our line", ours)):
        (complaint,) = ask("parse", [line])
        if complaint is not None:
            return [f"vLLM {ENGINE_VERSION} refuses {who}: {complaint}"]
    said, read = (_readable(it) for it in ask("read", [theirs, ours]))
    return [
        f"vLLM reads {name} as {read.get(name)!r} instead of {value!r}"
        for name, value in said.items()
        if name not in FILES and read.get(name) != value
    ]


def _readable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values, with equivalent speculative configurations in the same form."""
    found = dict(values)
    config = found.get("speculative_config")
    if isinstance(config, str):
        config = json.loads(config)
    if isinstance(config, dict):
        method = speculative_method(config)
        is_own = method == "mtp"
        found["speculative_config"] = {
            key: int(value) if isinstance(value, str) and value.isdigit() else value
            for key, value in {**config, "method": method}.items()
            if not (key == "model" and is_own and value == found.get("model"))
        }
    return found
