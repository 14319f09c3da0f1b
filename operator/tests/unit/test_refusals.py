"""What the API server refuses, in its own words, and the reason that the status gives for it."""

import pytest

from llmservice_operator.api.reasons import Reason
from llmservice_operator.errors import (
    ClusterError,
    Conflict,
    Forbidden,
    InvalidSpec,
    NameTaken,
    OperatorError,
    Rejected,
)
from llmservice_operator.refusals import failure_of

QUOTA = 'persistentvolumeclaims "models" is forbidden: exceeded quota: storage'


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Rejected("spec.selector: Invalid value: field is immutable"), Reason.IMMUTABLE_FIELD),
        (
            Rejected("spec.resources.requests.storage: field can not be less than status.capacity"),
            Reason.IMMUTABLE_FIELD,
        ),
        (
            Forbidden("only dynamically provisioned pvc can be resized"),
            Reason.IMMUTABLE_FIELD,
        ),
        (Forbidden(QUOTA), Reason.QUOTA_EXCEEDED),
        (NameTaken("Service llm belongs to Team other and is left alone."), Reason.NAME_CONFLICT),
    ],
    ids=["immutable", "smaller claim", "claim that cannot grow", "quota", "name"],
)
def test_a_refusal_keeps_its_words_and_ends_with_what_to_change(
    error: OperatorError, reason: Reason
) -> None:
    failure = failure_of(error)
    assert failure.reason is reason
    assert failure.message == f"{str(error).rstrip('.')}. {reason.hint}"


@pytest.mark.parametrize(
    "error",
    [InvalidSpec("must not be empty", "spec.model.uri"), Rejected("spec.x: Invalid value: 1")],
    ids=["found by the operator", "found by the API server"],
)
def test_a_wrong_spec_says_itself_what_to_correct(error: OperatorError) -> None:
    failure = failure_of(error)
    assert (failure.reason, failure.message) == (Reason.INVALID_SPEC, str(error))


@pytest.mark.parametrize(
    "error",
    [
        Forbidden("services is forbidden: cannot patch resource"),
        Conflict("the object has been modified"),
        ClusterError("field is immutable", 500),
    ],
    ids=["a right that is missing", "a conflict", "the words in another error"],
)
def test_what_a_retry_may_repair_is_raised(error: ClusterError) -> None:
    with pytest.raises(type(error)) as raised:
        failure_of(error)
    assert raised.value is error
