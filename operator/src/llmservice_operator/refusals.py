"""Maps errors that a retry cannot repair to the reason and message in the status.

The API server has no codes for these causes, so its words identify them.
"""

from __future__ import annotations

from typing import Final

from llmservice_operator.api.reasons import Reason
from llmservice_operator.errors import Forbidden, InvalidSpec, NameTaken, OperatorError, Rejected
from llmservice_operator.status import Failure

_BY_WORDS: Final[tuple[tuple[type[OperatorError], str, Reason], ...]] = (
    (Rejected, "immutable", Reason.IMMUTABLE_FIELD),
    # Message when the spec makes a claim smaller.
    (Rejected, "can not be less than", Reason.IMMUTABLE_FIELD),
    # Message when the spec makes a claim larger, and its storage class does not allow that.
    (Forbidden, "can be resized", Reason.IMMUTABLE_FIELD),
    (Forbidden, "exceeded quota", Reason.QUOTA_EXCEEDED),
)


def failure_of(error: OperatorError) -> Failure:
    """Return the failure for the status; raise an error again that a retry may repair."""
    said = str(error)
    for kind, words, reason in _BY_WORDS:
        if isinstance(error, kind) and words in said:
            return _advised(reason, said)
    match error:
        case InvalidSpec() | Rejected():
            # The messages of both errors name the field and the problem.
            return Failure(Reason.INVALID_SPEC, said)
        case NameTaken():
            return _advised(Reason.NAME_CONFLICT, said)
        case _:
            raise error


def _advised(reason: Reason, said: str) -> Failure:
    return Failure(reason, f"{said.rstrip('.')}. {reason.hint}")
