"""Tests that a flag with a field still works in extraArgs, and that the status names the field."""

from dataclasses import replace
from typing import Any, Final

import pytest

from llmservice_operator.api.conditions import MESSAGE_LIMIT
from llmservice_operator.api.extra_args import FLAG_FIELDS, field_rules, has_refused_form
from llmservice_operator.api.flags import EngineFlag, FlagField
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired import engine_args, engine_flags, extra_args
from llmservice_operator.desired.engine_args import build_engine_args
from llmservice_operator.desired.engine_flags import accepted_flags
from llmservice_operator.desired.extra_args import build_notices
from llmservice_operator.desired.flag_tables import TABLES, Flag, FlagKind
from llmservice_operator.desired.gone_flags import GONE_VARIABLES
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.settings import ENGINE_VERSION
from llmservice_operator.status import Event, Failure, StatusUpdate, build_status
from llmservice_operator.workload import EnginePin, Observation
from operator_support.services import HARMLESS_ARG, NOW, a_body, a_service

PROMOTED = EngineFlag("--leap-size", accepted_in_extra_args=True)
"""A fictitious flag, which no field of the spec can set."""
ARGUMENT = {"extraArgs": [HARMLESS_ARG, "--leap-size=16"]}
NOTICE = (
    "spec.engine.extraArgs[1]: --leap-size has a field now: set spec.engine.maxModelLen instead. "
    "The argument still works; the change may replace the pods."
)
NOTICE_BESIDE_THE_FIELD = (
    "spec.engine.extraArgs[1]: --leap-size has a field, which is set: remove the argument."
)


@pytest.fixture(autouse=True)
def _the_newest_version_has_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {**TABLES[ENGINE_VERSION], PROMOTED.name: Flag(FlagKind.VALUE)}
    monkeypatch.setattr(engine_flags, "TABLES", {**TABLES, ENGINE_VERSION: table})


@pytest.fixture
def promoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give --leap-size a field. In these tests, engine.maxModelLen sets it."""
    promote(monkeypatch, PROMOTED)


def promote(monkeypatch: pytest.MonkeyPatch, flag: EngineFlag) -> None:
    fields = tuple(
        replace(field, flag=flag) if field.name == "engine.maxModelLen" else field
        for field in FLAG_FIELDS
    )
    for module in (engine_args, extra_args):
        monkeypatch.setattr(module, "FLAG_FIELDS", fields)


def compiled(engine: dict[str, Any]) -> list[str]:
    return build_engine_args(a_service({"engine": engine}), ENGINE_VERSION)


def test_an_argument_keeps_its_place_when_its_flag_gets_a_field(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = compiled(ARGUMENT)
    promote(monkeypatch, PROMOTED)
    assert compiled(ARGUMENT) == before
    assert before[-2:] == [HARMLESS_ARG, "--leap-size=16"]


@pytest.mark.usefixtures("promoted")
def test_a_field_and_an_argument_with_the_same_value_are_written_once() -> None:
    assert compiled({**ARGUMENT, "maxModelLen": 16}) == compiled(
        {"maxModelLen": 16, "extraArgs": [HARMLESS_ARG]}
    )


@pytest.mark.usefixtures("promoted")
def test_a_field_and_an_argument_that_differ_are_refused_with_both_names() -> None:
    with pytest.raises(InvalidSpec) as refused:
        compiled({**ARGUMENT, "maxModelLen": 32})
    assert str(refused.value) == (
        "spec.engine.maxModelLen: differs from spec.engine.extraArgs[1], --leap-size=16: "
        "remove that argument"
    )


@pytest.mark.usefixtures("promoted")
def test_an_argument_of_a_flag_with_a_field_is_still_given_only_once() -> None:
    with pytest.raises(InvalidSpec, match="--leap-size is given twice"):
        compiled({"maxModelLen": 16, "extraArgs": ["--leap-size=16", "--leap-size=16"]})


def test_an_argument_replaces_what_the_operator_would_compute_for_its_field(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    promote(monkeypatch, replace(PROMOTED, is_computed=True))
    monkeypatch.setattr(
        engine_args, "COMPUTED", {**engine_args.COMPUTED, "--leap-size": lambda _: 64}
    )
    assert "--leap-size=64" in compiled({})
    assert [arg for arg in compiled(ARGUMENT) if "leap-size" in arg] == ["--leap-size=16"]


@pytest.mark.usefixtures("promoted")
@pytest.mark.parametrize(
    ("engine", "notices"),
    [
        ({}, ()),
        ({"maxModelLen": 16, "extraArgs": [HARMLESS_ARG]}, ()),
        (ARGUMENT, (NOTICE,)),
        ({**ARGUMENT, "maxModelLen": 16}, (NOTICE_BESIDE_THE_FIELD,)),
    ],
    ids=["no argument", "the field alone", "the argument alone", "both"],
)
def test_a_notice_says_which_field_to_set(engine: dict[str, Any], notices: tuple[str, ...]) -> None:
    assert build_notices(a_service({"engine": engine}).spec) == notices


def test_a_variable_that_vllm_no_longer_reads_has_a_notice() -> None:
    variables = [{"name": "NCCL_DEBUG", "value": "INFO"}, {"name": "VLLM_USE_V1", "value": "1"}]
    assert build_notices(a_service({"engine": {"env": variables}}).spec) == (
        "spec.engine.env[1]: VLLM_USE_V1 has no effect, because vLLM no longer reads it: remove "
        "it.",
    )


@pytest.mark.parametrize("advice", sorted(set(GONE_VARIABLES.values())))
def test_the_advice_on_a_variable_names_a_flag_that_extra_args_takes(advice: str) -> None:
    flags = [word for word in advice.split() if word.startswith("--")]
    assert advice == "remove it" or flags
    assert all(set(flags) <= set(accepted_flags(table)) for table in TABLES.values())


def test_the_rules_take_the_argument_but_none_of_the_flags_that_are_parts_of_it() -> None:
    field = FLAG_FIELDS[0]
    accepted = replace(field, flag=replace(PROMOTED, also=("--leaps",)))
    (rule,) = field_rules([accepted])
    assert rule.holds("--leap-size=16")
    assert not rule.holds("--leaps=1")
    (refusing,) = field_rules([replace(field, flag=EngineFlag("--leap-size"))])
    assert not refusing.holds("--leap-size=16")


PIN = EnginePin("registry/gpu:1", ENGINE_VERSION, "nvidia")
SERVING = Observation(
    replicas=1, updated_replicas=1, ready_replicas=1, is_rolled_out=True, has_loaded_model=True
)
DEPRECATED = Event("Warning", "DeprecatedArgument", NOTICE)


def reported(before: StatusUpdate | None = None, failure: Failure | None = None) -> StatusUpdate:
    """Return the next status of a service with the argument; `before` is the previous one."""
    status = {} if before is None else {"status": before.status}
    service = LLMService.parse(a_body({"engine": ARGUMENT}, **status))
    return build_status(service, PIN, SERVING, NOW, failure)


def message(update: StatusUpdate, condition: str) -> str:
    found: str = next(
        each["message"] for each in update.status["conditions"] if each["type"] == condition
    )
    return found


@pytest.mark.usefixtures("promoted")
def test_the_status_has_the_notice_and_the_service_is_ready() -> None:
    update = reported()
    assert message(update, "Progressing") == f"All pods run the current spec. {NOTICE}"
    assert {each["type"]: each["status"] for each in update.status["conditions"]} == {
        "Ready": "True",
        "Progressing": "False",
        "Available": "True",
        "ModelReady": "True",
    }
    assert "extraArgs" not in message(update, "Ready")


def test_a_flag_without_a_field_has_no_notice() -> None:
    update = reported()
    assert message(update, "Progressing") == "All pods run the current spec."
    assert DEPRECATED.reason not in {event.reason for event in update.events}


@pytest.mark.usefixtures("promoted")
def test_a_notice_is_an_event_once() -> None:
    first = reported()
    assert first.events[-1] == DEPRECATED
    assert reported(first).events == ()


def test_a_notice_is_an_event_when_a_later_operator_gives_the_flag_its_field(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = reported()
    promote(monkeypatch, PROMOTED)
    assert reported(before).events == (DEPRECATED,)


@pytest.mark.usefixtures("promoted")
def test_a_long_message_does_not_push_the_notice_out() -> None:
    failure = Failure(Reason.INVALID_SPEC, "no " * MESSAGE_LIMIT)
    first = reported(failure=failure)
    assert len(message(first, "Progressing")) == MESSAGE_LIMIT
    assert message(first, "Progressing").endswith(NOTICE)
    assert DEPRECATED not in reported(first, failure).events


REFUSED_FROM_THE_BEGINNING: Final = {
    "--speculative-config",
    "--trust-remote-code",
    *("--model", "--served-model-name", "--revision", "--max-model-len", "--dtype"),
    *("--quantization", "--gpu-memory-utilization", "--tensor-parallel-size"),
    *("--pipeline-parallel-size", "--data-parallel-size", "--enable-expert-parallel"),
    *("--max-num-seqs", "--max-num-batched-tokens", "--enable-chunked-prefill"),
    *("--long-prefill-token-threshold", "--scheduling-policy", "--performance-mode"),
    *("--max-num-queued-reqs", "--max-num-queued-tokens", "--enable-prefix-caching"),
    *("--kv-cache-dtype", "--kv-offloading-size", "--chat-template", "--enable-auto-tool-choice"),
    *("--tool-call-parser", "--reasoning-parser"),
}
"""Flags that already had a field in the first release. Add no other flag here."""


@pytest.mark.parametrize("field", FLAG_FIELDS, ids=lambda field: field.name)
def test_a_flag_that_got_its_field_later_still_works_in_extra_args(field: FlagField) -> None:
    flag = field.flag
    was_accepted = flag.name not in REFUSED_FROM_THE_BEGINNING and not has_refused_form(flag.name)
    assert flag.accepted_in_extra_args == was_accepted, (
        f"a stored service may have {flag.name} in extraArgs: declare it on spec.{field.name} with "
        "accepted_in_extra_args=True"
    )
