"""What is declared about conditions and reasons, and where each reason is brought about."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from core_support import REPOSITORY
from llmservice_operator.api.conditions import ConditionType
from llmservice_operator.api.crd import build_crd
from llmservice_operator.api.reason_facts import Facts, Rank, Source
from llmservice_operator.api.reasons import Reason

SCHEMA = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_says_what_happened_and_what_to_do(reason: Reason) -> None:
    assert re.fullmatch("[A-Z][A-Za-z]+", reason.value)
    for text in (reason.meaning, reason.hint):
        assert re.fullmatch("[A-Z].*[.]", text)
        assert "|" not in text, "it stands in a table"


def test_a_reason_that_can_be_a_problem_of_a_replica_and_has_no_rank_is_named() -> None:
    with pytest.raises(TypeError, match="Tired can be a problem of a replica and has no rank"):
        Facts("Tired", Source.POD, "It sleeps.", "Wait.")


def test_a_rank_that_nothing_would_read_is_refused() -> None:
    with pytest.raises(TypeError, match="Tired has a rank, but its source LOAD reports no problem"):
        Facts("Tired", Source.LOAD, "It sleeps.", "Wait.", rank=Rank.CRASH)


@pytest.mark.parametrize("kind", ConditionType)
def test_every_condition_says_who_sets_it_and_when_it_is_absent(kind: ConditionType) -> None:
    assert "True" in kind.meaning
    assert kind.set_by
    assert kind.absent


def fields(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    yield path
    for name, child in schema.get("properties", {}).items():
        yield from fields(child, f"{path}.{name}")


@pytest.mark.parametrize("reason", Reason)
def test_advice_names_fields_that_exist(reason: Reason) -> None:
    known = set(fields(SCHEMA["properties"]["spec"], "spec"))
    assert set(re.findall(r"spec(?:\.[a-zA-Z]+)+", reason.hint)) <= known


_API, _ENGINE, _UNIT = "operator/tests/api", "server_image/tests/engine", "operator/tests/unit"
_REASONS = "e2e/tests/test_e2e_reasons.py"
_E2E = f"{_REASONS}::test_the_status_says_what_is_wrong_and_what_to_change"
_SERVED = f"{_API}/test_api_status.py::test_the_status_follows_the_pods_from_missing_to_ready"
_STARTS = f"{_UNIT}/test_observe.py::test_a_start_that_goes_well_is_a_wait_and_then_nothing"
_REFUSED = (
    f"{_API}/test_api_reasons.py::test_pods_that_the_api_server_refuses_are_told_with_its_words"
)
_UNSERVABLE = (
    f"{_ENGINE}/test_engine_ending.py::test_a_model_that_cannot_be_served_says_what_to_change"
)
_HUB_REFUSES = (
    f"{_ENGINE}/test_engine_download.py::test_what_the_hub_refuses_is_told_with_its_reason"
)
_SCALES = (
    f"{_API}/test_api_scaling.py"
    "::test_where_the_metrics_api_is_somebody_elses_the_operator_itself_scales"
)
_LOAD = f"{_API}/test_api_load_reasons.py"
_HOLDS = f"{_API}/test_api_scaling.py::test_a_recommendation_and_a_pause_change_nothing"
CAUSED_BY: Mapping[Reason, str] = {
    Reason.SERVING: _SERVED,
    Reason.MODEL_LOADED: _SERVED,
    Reason.ROLLOUT_COMPLETE: _SERVED,
    Reason.ROLLOUT_IN_PROGRESS: _SERVED,
    Reason.NO_REPLICA_READY: _SERVED,
    Reason.LOADING_MODEL: _STARTS,
    Reason.SCALED_TO_ZERO: (
        f"{_API}/test_api_kubectl.py::test_scale_works_when_replicas_is_unset_and_down_to_none"
    ),
    Reason.SUSPENDED: (
        f"{_API}/test_api_access.py"
        "::test_a_suspended_service_keeps_everything_but_its_pods_and_comes_back_as_it_was"
    ),
    Reason.QUOTA_EXCEEDED: _REFUSED,
    Reason.POD_REFUSED: _REFUSED,
    Reason.INVALID_SPEC: _REFUSED,
    Reason.ROLLOUT_STUCK: (
        f"{_API}/test_api_reasons.py::test_a_rollout_that_its_controller_gives_up_is_stuck"
    ),
    Reason.ROLLOUT_IN_PLACE: (
        f"{_API}/test_api_rollout.py"
        "::test_an_old_replica_ends_first_once_no_gpu_was_free_for_a_minute"
    ),
    Reason.NAME_CONFLICT: (
        f"{_API}/test_api_children.py"
        "::test_a_foreign_object_of_the_same_name_is_reported_and_left_alone_until_it_goes"
    ),
    Reason.IMMUTABLE_FIELD: (
        f"{_API}/test_api_children.py::test_a_field_that_cannot_change_is_reported_with_the_remedy"
    ),
    Reason.WAITING_FOR_GPU: (
        "e2e/tests/test_e2e_minimal.py"
        "::test_without_a_gpu_the_status_says_so_with_the_schedulers_numbers"
    ),
    Reason.UNSCHEDULABLE: _E2E,
    Reason.VOLUME_PENDING: _E2E,
    Reason.IMAGE_PULL_ERROR: _E2E,
    Reason.SECRET_MISSING: _E2E,
    Reason.CONFIG_MAP_MISSING: _E2E,
    Reason.OUT_OF_MEMORY: _E2E,
    Reason.CRASH_LOOP: _E2E,
    Reason.CONTAINER_START_ERROR: f"{_REASONS}::test_an_image_without_our_server_is_told_as_such",
    Reason.DOWNLOADING_MODEL: f"{_REASONS}::test_a_download_is_told_in_bytes",
    Reason.SERVER_NOT_READY: (
        f"{_REASONS}::test_a_server_that_stands_still_is_not_ready_and_then_serves_on"
    ),
    Reason.INVALID_ENGINE_ARGUMENT: _E2E,
    Reason.STARTUP_TIMEOUT: f"{_REASONS}::test_a_start_that_takes_too_long_is_told_as_such",
    Reason.MODEL_NOT_FOUND: (
        "e2e/tests/test_e2e_model_sources.py::test_an_unknown_model_is_named_in_the_status"
    ),
    Reason.MODEL_ACCESS_DENIED: _HUB_REFUSES,
    Reason.HUB_UNREACHABLE: _HUB_REFUSES,
    Reason.REMOTE_CODE_REFUSED: _UNSERVABLE,
    Reason.UNSUPPORTED_ARCHITECTURE: _UNSERVABLE,
    Reason.CONTEXT_DOES_NOT_FIT: (
        f"{_ENGINE}/test_engine_ending.py::test_a_start_that_cannot_work_says_what_to_change"
    ),
    Reason.GPU_OUT_OF_MEMORY: (
        "server_image/tests/unit/test_server_failures.py"
        "::test_a_gpu_that_is_too_small_is_known_by_what_engines_said_on_real_ones"
    ),
    Reason.FOLLOWING_LOAD: _SCALES,
    Reason.AT_MAXIMUM: _SCALES,
    Reason.METRICS_MISSING: _SCALES,
    Reason.METRICS_AVAILABLE: _SCALES,
    Reason.RECOMMENDING: _HOLDS,
    Reason.PAUSED: _HOLDS,
    Reason.WAITING_FOR_TRAFFIC: f"{_LOAD}::test_a_model_that_nobody_asks_yet_waits_for_traffic",
    Reason.NO_CAPACITY: (
        f"{_LOAD}::test_a_load_that_needs_more_than_a_quota_allows_is_told_with_the_quotas_words"
    ),
    Reason.FOREIGN_METRICS_API: (
        f"{_LOAD}::test_where_the_metrics_api_is_somebody_elses_the_provider_external_cannot_scale"
    ),
    Reason.KEDA_MISSING: (
        f"{_LOAD}::test_without_keda_in_the_cluster_the_provider_keda_cannot_scale"
    ),
    Reason.SLO_MET: (
        f"{_API}/test_api_scaling.py"
        "::test_what_the_requests_achieve_is_told_and_a_missed_objective_is_an_event"
    ),
    Reason.SLO_MISSED: (
        f"{_API}/test_api_scaling.py"
        "::test_what_the_requests_achieve_is_told_and_a_missed_objective_is_an_event"
    ),
}
"""Reason -> the test that brings it about on a real API server or cluster, by the last words of a
real engine, or by what one said or did that was recorded."""


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_brought_about_by_a_test(reason: Reason) -> None:
    assert reason in CAUSED_BY, "write a test that truly causes it and name the test here"
    path, _, name = CAUSED_BY[reason].partition("::")
    text = (REPOSITORY / path).read_text()
    assert f"def {name}(" in text
    assert f'"{reason}"' in text or f"Reason.{reason.name}" in text
