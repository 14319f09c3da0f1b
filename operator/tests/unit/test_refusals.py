"""Tests that the status quotes a refusal of the API server and gives the right reason."""

import pytest

from llmservice_operator.api.conditions import MESSAGE_LIMIT
from llmservice_operator.api.reasons import Reason
from llmservice_operator.errors import (
    ClusterError,
    Conflict,
    Contested,
    Forbidden,
    InvalidSpec,
    NameTaken,
    OperatorError,
    Rejected,
    StillDeleting,
    Unreadable,
)
from llmservice_operator.refusals import Refusal, failure_of, failure_of_all

QUOTA = 'persistentvolumeclaims "models" is forbidden: exceeded quota: storage'


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Rejected("spec.selector: Invalid value: field is immutable"), Reason.IMMUTABLE_FIELD),
        (
            Rejected('spec.loadBalancerClass: Invalid value: "b": may not change once set'),
            Reason.IMMUTABLE_FIELD,
        ),
        (
            Rejected("spec.resources.requests.storage: field can not be less than status.capacity"),
            Reason.IMMUTABLE_FIELD,
        ),
        (
            Forbidden("only dynamically provisioned pvc can be resized"),
            Reason.IMMUTABLE_FIELD,
        ),
        (Forbidden(QUOTA), Reason.STORAGE_QUOTA_EXCEEDED),
        (
            Forbidden('services "llm" is forbidden: exceeded quota: services'),
            Reason.QUOTA_EXCEEDED,
        ),
        (
            Forbidden(
                'persistentvolumeclaims "llm-cache" is forbidden: maximum storage usage per '
                "PersistentVolumeClaim is 5Gi, but request is 10Gi"
            ),
            Reason.LIMIT_RANGE_EXCEEDED,
        ),
        (NameTaken("Service llm belongs to Team other and is left alone."), Reason.NAME_CONFLICT),
    ],
    ids=[
        "immutable",
        "load balancer of another class",
        "smaller claim",
        "claim that cannot grow",
        "quota of storage",
        "quota",
        "limit range",
        "name",
    ],
)
def test_a_refusal_keeps_its_message_and_ends_with_what_to_change(
    error: OperatorError, reason: Reason
) -> None:
    failure = failure_of(error)
    assert failure.reason is reason
    assert failure.message == f"{str(error).rstrip('.')}. {reason.hint}"


def test_a_long_refusal_leaves_room_for_what_to_change() -> None:
    failure = failure_of(Forbidden(f"denied the request: {'x' * 2 * MESSAGE_LIMIT}"))
    assert len(failure.message) == MESSAGE_LIMIT
    assert failure.message.endswith(f". {Reason.OBJECT_REFUSED.hint}")


@pytest.mark.parametrize(
    "error",
    [InvalidSpec("must not be empty", "spec.model.uri"), Rejected("spec.x: Invalid value: 1")],
    ids=["found by the operator", "found by the API server"],
)
def test_a_wrong_spec_says_itself_what_to_correct(error: OperatorError) -> None:
    failure = failure_of(error)
    assert (failure.reason, failure.message) == (Reason.INVALID_SPEC, str(error))


@pytest.mark.parametrize(
    ("error", "reason", "is_tried_soon"),
    [
        (
            Forbidden('User "operator" cannot patch resource "services"'),
            Reason.RIGHT_MISSING,
            False,
        ),
        (Forbidden("maximum cpu usage per Pod is 1"), Reason.OBJECT_REFUSED, False),
        (Rejected("the policy denied the request"), Reason.OBJECT_REFUSED, False),
        (ClusterError("admission webhook x denied the request"), Reason.OBJECT_REFUSED, True),
        (Conflict("the object has been modified"), Reason.CLUSTER_ERROR, True),
        (ClusterError("field is immutable", 500), Reason.CLUSTER_ERROR, True),
        (ClusterError("no answer"), Reason.CLUSTER_ERROR, True),
        (StillDeleting("Service llama is being deleted."), Reason.OBJECT_TERMINATING, False),
        (Unreadable("metadata.uid: Field required"), Reason.UNREADABLE_OBJECT, False),
        (Contested("spec.replicas is 3"), Reason.FIELD_CONFLICT, False),
        (KeyError("manager"), Reason.OPERATOR_FAULT, True),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else str(each),
)
def test_every_error_has_a_reason_and_what_a_retry_may_repair_is_tried_soon(
    error: Exception, reason: Reason, is_tried_soon: bool
) -> None:
    failure = failure_of(error)
    assert failure.reason is reason
    assert failure.message == f"{str(error).rstrip('.')}. {reason.hint}"
    assert Refusal("Service llama", error).may_end_soon is is_tried_soon


def test_an_error_without_a_message_is_named_by_its_class() -> None:
    assert failure_of(TimeoutError()).message.startswith("TimeoutError. ")


def test_without_a_refusal_there_is_no_failure() -> None:
    assert failure_of_all([]) is None


def test_several_refusals_are_quoted_as_sentences() -> None:
    refused = [
        Refusal("Service llm", Rejected("The port is taken.")),
        Refusal("Deployment llm", Rejected("The image is unknown")),
    ]
    failure = failure_of_all(refused)
    assert failure is not None
    assert failure.message.startswith(
        "Service llm: The port is taken. Deployment llm: The image is unknown."
    )
