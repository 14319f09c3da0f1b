"""Maps the failures of a pass to the reason and message in the status.

The API server has no code for most causes of a refusal, such as a quota, so the text of its message
identifies the cause. Every error has a reason, so that the status reports every failed pass.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llmservice_operator.api.conditions import MESSAGE_LIMIT
from llmservice_operator.api.reasons import Reason
from llmservice_operator.errors import (
    ClusterError,
    Contested,
    Forbidden,
    InvalidSpec,
    NameTaken,
    OperatorError,
    Rejected,
    StillDeleting,
    Unreadable,
)
from llmservice_operator.status import Failure
from llmservice_operator.workload import LIMIT_RANGE_WORDS

_CLAIM_OVER_QUOTA: Final = re.compile("persistentvolumeclaims .*exceeded quota")
_CLAIM_OUT_OF_RANGE: Final = re.compile(f"persistentvolumeclaims .*{LIMIT_RANGE_WORDS.pattern}")
_BY_WORDS: Final[tuple[tuple[type[Exception], re.Pattern[str], Reason], ...]] = (
    (Rejected, re.compile("immutable"), Reason.IMMUTABLE_FIELD),
    # The API server sends this message when the spec changes the class of a load balancer.
    (Rejected, re.compile("may not change once set"), Reason.IMMUTABLE_FIELD),
    # The API server sends this message when the spec makes a claim smaller.
    (Rejected, re.compile("can not be less than"), Reason.IMMUTABLE_FIELD),
    # The API server sends this message when the storage class does not allow a larger claim.
    (Forbidden, re.compile("can be resized"), Reason.IMMUTABLE_FIELD),
    (Forbidden, _CLAIM_OVER_QUOTA, Reason.STORAGE_QUOTA_EXCEEDED),
    (Forbidden, re.compile("exceeded quota"), Reason.QUOTA_EXCEEDED),
    (Forbidden, _CLAIM_OUT_OF_RANGE, Reason.LIMIT_RANGE_EXCEEDED),
    # Admission webhooks and policies use these words with any HTTP status.
    (ClusterError, re.compile("denied (the )?request"), Reason.OBJECT_REFUSED),
    # The message of the authorizer names the user, the verb and the resource. A message from
    # admission control does not.
    (Forbidden, re.compile(r"cannot \w+ resource"), Reason.RIGHT_MISSING),
)
_BY_CLASS: Final[tuple[tuple[type[Exception], Reason], ...]] = (
    (NameTaken, Reason.NAME_CONFLICT),
    (StillDeleting, Reason.OBJECT_TERMINATING),
    (Unreadable, Reason.UNREADABLE_OBJECT),
    (Contested, Reason.FIELD_CONFLICT),
    (Forbidden, Reason.OBJECT_REFUSED),
    (ClusterError, Reason.CLUSTER_ERROR),
)
_QUOTED_LIMIT: Final = 1000
"""Maximum length, in characters, of each refusal's text in a message about several refusals."""


@dataclass(frozen=True)
class Refusal:
    """One operation of a pass that failed."""

    what: str
    """Subject of the operation, such as Deployment llama."""
    error: Exception

    @property
    def may_end_soon(self) -> bool:
        """Whether a retry within seconds may succeed without a change by the user."""
        if not isinstance(self.error, OperatorError):
            return True
        return isinstance(self.error, ClusterError) and not isinstance(
            self.error, Forbidden | Rejected
        )


def failure_of(error: Exception) -> Failure:
    """Return the failure that the status reports for an error."""
    said, reason = str(error) or type(error).__name__, _reason(error)
    if reason is Reason.INVALID_SPEC:
        # The message names the field and the problem.
        return Failure(reason, said)
    return Failure(
        reason, f"{said.rstrip('.')[: MESSAGE_LIMIT - len(reason.hint) - 2]}. {reason.hint}"
    )


def failure_of_all(refusals: Sequence[Refusal]) -> Failure | None:
    """Return the failure that the status reports for all refusals of a pass; None without one.

    The reason is that of the first refusal. The message quotes as much of the refusals as its
    maximum length allows, and ends with their hints.
    """
    if not refusals:
        return None
    if len(refusals) == 1:
        return failure_of(refusals[0].error)
    reasons = [_reason(each.error) for each in refusals]
    quotes = (f"{each.what}: {_shortened(str(each.error)).rstrip('.')}." for each in refusals)
    hints = dict.fromkeys(each.hint for each in reasons if each is not Reason.INVALID_SPEC)
    advice = " ".join(hints)
    said = " ".join(quotes)[: MESSAGE_LIMIT - len(advice) - 1]
    return Failure(reasons[0], f"{said} {advice}".rstrip())


def _reason(error: Exception) -> Reason:
    said = str(error)
    for kind, words, reason in _BY_WORDS:
        if isinstance(error, kind) and words.search(said):
            return reason
    if isinstance(error, InvalidSpec | Rejected):
        return Reason.INVALID_SPEC
    found = (reason for kind, reason in _BY_CLASS if isinstance(error, kind))
    return next(found, Reason.OPERATOR_FAULT)


def _shortened(text: str) -> str:
    return text if len(text) <= _QUOTED_LIMIT else f"{text[:_QUOTED_LIMIT]} ..."
