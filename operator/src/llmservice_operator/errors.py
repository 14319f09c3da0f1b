"""The exceptions that the operator raises on purpose.

OperatorError
├── InvalidSpec        the user's LLMService cannot be carried out as written
├── InvalidFile        the user's file contains several errors
├── NameTaken          an object of a needed name belongs to another owner
├── StillDeleting      an object of a needed name is being deleted
├── Unreadable         an object from the cluster has a form that the API does not allow
├── Contested          another client, or a webhook, changes an object back again and again
├── InvalidSettings    the operator itself was started with wrong settings
└── ClusterError       the API server answered with an error
    ├── NotFound       404
    │   └── NotServed  the cluster does not know a kind
    ├── Forbidden      403
    ├── Conflict       409
    └── Rejected       400 and 422: the same request will fail again
"""

from __future__ import annotations

from collections.abc import Iterable


class OperatorError(Exception):
    """Root of the tree; its text can be shown to a user."""


class InvalidSpec(OperatorError):
    """The LLMService cannot be carried out; a retry helps only after the user has changed it."""

    def __init__(self, message: str, field: str) -> None:
        """`field` is the path from the object's root, such as spec.model.uri."""
        super().__init__(f"{field}: {message}")
        self.message = message
        self.field = field


class InvalidFile(OperatorError):
    """Several things in a file of LLMServices are wrong; the text has a line for each."""

    def __init__(self, problems: Iterable[InvalidSpec]) -> None:
        lines = [str(each) for each in problems]
        super().__init__("\n  ".join([f"{len(lines)} problems:", *lines]))


class NameTaken(OperatorError):
    """An object of the needed name belongs to another owner and is left alone."""


class StillDeleting(OperatorError):
    """An object of the needed name is being deleted, and takes its time."""


class Unreadable(OperatorError):
    """An object from the cluster has a part of a form that the API does not allow."""


class Contested(OperatorError):
    """The operator's write of an object does not last, so the object is left alone for a time."""


class InvalidSettings(OperatorError):
    """An environment variable of the operator is missing or malformed."""


class ClusterError(OperatorError):
    """The API server refused or failed; `status` is the HTTP status, 0 when none arrived."""

    def __init__(
        self,
        message: str,
        status: int = 0,
        retry_after_seconds: float | None = None,
        requests: int = 1,
    ) -> None:
        """`retry_after_seconds` is the delay that an overloaded server asked for, or None.

        `requests` is the number of requests that were sent in vain. A retry sends them again.
        """
        super().__init__(message)
        self.message = message
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        self.requests = requests


class NotFound(ClusterError):
    """The object does not exist."""


class NotServed(NotFound):
    """The cluster does not know a kind that the operator needs."""

    def __init__(self, kind: str, api_version: str) -> None:
        super().__init__(f"the cluster does not know {kind} of {api_version}", 404)
        self.kind = kind


class Forbidden(ClusterError):
    """The operator lacks a right; the server's message names the verb and the resource."""


class Conflict(ClusterError):
    """Another client has changed the object, or owns it or some of its fields."""


class Rejected(ClusterError):
    """The API server understood the request and will refuse every repetition of it."""
