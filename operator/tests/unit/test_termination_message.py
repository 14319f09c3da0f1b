"""Tests termination messages of model servers of this version and of every released version."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmservice_operator.api import Manifest
from llmservice_operator.api.reason_facts import Source
from llmservice_operator.api.reasons import Reason
from llmservice_operator.workload.pod_problems import Problem, pod_problems
from operator_support.services import a_pod, a_service

RECORDED = Path(__file__).parent / "recorded"
LOADING = Problem(
    Reason.LOADING_MODEL,
    "The model server downloads or loads the model. The container was restarted 1 time(s). "
    f"{Reason.LOADING_MODEL.hint}",
)


def ended(message: str) -> dict[str, Any]:
    return {"terminated": {"exitCode": 1, "reason": "Error", "message": message}}


def waits_for_restart(message: str, restarts: int = 3) -> Manifest:
    state = {"waiting": {"reason": "CrashLoopBackOff"}}
    return a_pod(state, restartCount=restarts, lastState=ended(message))


def runs_again(message: str, restarts: int) -> Manifest:
    state = {"running": {"startedAt": "2026-01-02T03:00:00Z"}}
    return a_pod(state, started=False, restartCount=restarts, lastState=ended(message))


def problem(pod: Manifest) -> Problem:
    return next(pod_problems(a_service(), pod, None))


def written(reason: str, message: str, **fields: Any) -> str:
    return json.dumps({"format": 2, "reason": reason, "message": message, **fields})


NOT_FOUND = written("ModelNotFound", "The hub has no such model")


@pytest.mark.parametrize(
    "pod",
    [a_pod(ended(NOT_FOUND)), waits_for_restart(NOT_FOUND), runs_again(NOT_FOUND, 1)],
    ids=["just now", "before the next start", "before the start that goes on"],
)
def test_what_a_server_found_is_followed_by_the_hint_of_its_reason(pod: Manifest) -> None:
    assert problem(pod) == Problem(
        Reason.MODEL_NOT_FOUND, f"The hub has no such model. {Reason.MODEL_NOT_FOUND.hint}"
    )


def test_what_a_restart_may_repair_is_reported_once_it_has_not() -> None:
    died = written("EngineDied", "The engine ended.")
    assert problem(runs_again(died, 1)) == LOADING
    assert problem(runs_again(died, 2)) == Problem(
        Reason.ENGINE_DIED,
        f"The engine ended. The container was restarted 2 time(s). {Reason.ENGINE_DIED.hint}",
    )


def test_for_a_reason_that_the_kubelet_sees_too_the_servers_message_is_used() -> None:
    said = written("StartupTimeout", "The model was not ready after 1800 seconds.")
    assert problem(runs_again(said, 1)) == Problem(
        Reason.STARTUP_TIMEOUT,
        f"The model was not ready after 1800 seconds. {Reason.STARTUP_TIMEOUT.hint}",
    )


def test_a_long_text_is_cut_to_its_beginning_and_keeps_the_hint() -> None:
    found = problem(a_pod(ended(written("ModelNotFound", "Found. " + "x" * 5000 + " end"))))
    assert found.message.startswith("Found. xxx")
    assert found.message.endswith(f"xxx ... {Reason.MODEL_NOT_FOUND.hint}")
    assert len(found.message) < 2500


@pytest.mark.parametrize(
    "said",
    [
        written("Tired", "I sleep."),
        # QuotaExceeded is a reason of the operator, but no model server reports it.
        written("QuotaExceeded", "I sleep."),
        written("Tired", "I sleep.", format=3, mood="bad"),
    ],
)
def test_a_reason_of_a_newer_model_server_is_a_crash_with_its_words(said: str) -> None:
    assert problem(waits_for_restart(said, 4)) == Problem(
        Reason.CRASH_LOOP,
        "The model server ended with exit code 1 and was restarted 4 time(s). I sleep. "
        f"{Reason.CRASH_LOOP.hint}",
    )


def test_a_newer_format_with_a_known_reason_is_read_as_this_one() -> None:
    said = written("OutOfMemory", "Killed.", format=3, mood="bad")
    assert problem(waits_for_restart(said)) == Problem(
        Reason.OUT_OF_MEMORY, f"Killed. {Reason.OUT_OF_MEMORY.hint}"
    )


@pytest.mark.parametrize("said", ["3", "[]", "{}", '"ModelNotFound"', '{"reason": 3}', "{"])
def test_what_is_no_message_of_a_model_server_is_quoted(said: str) -> None:
    found = problem(waits_for_restart(said))
    assert found.reason is Reason.CRASH_LOOP
    assert f" {said}. " in found.message


RELEASED = {
    f"{folder.name}: {name}": text
    for folder in sorted(RECORDED.glob("server_v*"))
    for name, text in json.loads((folder / "termination_messages.json").read_text()).items()
}


@pytest.mark.parametrize("text", RELEASED.values(), ids=RELEASED)
def test_the_message_of_a_released_server_is_shown_with_one_hint(text: str) -> None:
    found, said = problem(waits_for_restart(text)), json.loads(text)
    assert found.reason.value == said["reason"]
    assert found.reason.source is Source.MODEL_SERVER
    beginning = said["message"][:2000].rstrip(".")
    assert found.message.startswith(beginning)
    added = found.message.removeprefix(beginning).strip(" .")
    restarted = "The container was restarted 3 time(s). " if found.reason.is_transient else ""
    # Servers of version 0.1.0 wrote the hint into the message, and named no format.
    hint = found.reason.hint if "format" in said else ""
    assert added == f"{restarted}{hint}".strip(" .")


def test_every_reason_that_v0_1_0_could_give_is_recorded() -> None:
    """Every later version of the operator must understand these reasons of the server."""
    said = {json.loads(text)["reason"] for name, text in RELEASED.items() if "v0.1.0" in name}
    assert said == {
        *("CacheLost", "ContextDoesNotFit", "EngineDied", "EngineHung", "GPUOutOfMemory"),
        *("HubUnreachable", "InvalidEngineArgument", "LoadFailed", "ModelAccessDenied"),
        *("ModelNotFound", "OutOfMemory", "RemoteCodeRefused", "SecretMissing"),
        *("StartupTimeout", "UnsupportedArchitecture"),
    }
