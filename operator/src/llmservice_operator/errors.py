"""The exceptions that the operator defines.

OperatorError
├── InvalidSpec        the user's LLMService cannot be applied as written
├── InvalidFile        the user's file contains several errors
├── NameTaken          an object with a required name belongs to another owner
├── StillDeleting      an object with a required name is being deleted
├── Unreadable         an object from the cluster has a form that the API does not allow
├── Contested          another client, or a webhook, repeatedly changes an object back
├── InvalidSettings    the operator itself was started with wrong settings
└── ClusterError       a request to the API server failed
    ├── NotFound       404
    │   └── NotServed  the API server does not serve a kind
    ├── Forbidden      403
    ├── Conflict       409
    └── Rejected       400 and 422: the same request will fail again
"""

from __future__ import annotations

from collections.abc import Iterable


class OperatorError(Exception):
    """Base class of the operator's exceptions. The text of an exception may be shown to a user."""


class InvalidSpec(OperatorError):
    """The LLMService cannot be applied. A retry helps only after the user has changed it."""

    def __init__(self, message: str, field: str) -> None:
        """`field` is the path from the object's root, such as spec.model.uri."""
        super().__init__(f"{field}: {message}")
        self.message = message
        self.field = field


class InvalidFile(OperatorError):
    """A file of LLMServices has several errors. The text has one line for each of them."""

    def __init__(self, problems: Iterable[InvalidSpec]) -> None:
        lines = [str(each) for each in problems]
        super().__init__("\n  ".join([f"{len(lines)} problems:", *lines]))


class NameTaken(OperatorError):
    """An object with a required name belongs to another owner and is not changed."""


class StillDeleting(OperatorError):
    """An object with a required name is being deleted and still exists."""


class Unreadable(OperatorError):
    """A part of an object from the cluster has a form that the API does not allow."""


class Contested(OperatorError):
    """Another client or a webhook repeatedly changes an object back, so the operator pauses its
    writes of the object.
    """


class InvalidSettings(OperatorError):
    """A setting of the operator, or the chart value that becomes the setting, cannot be used."""


class ClusterError(OperatorError):
    """A request to the API server failed, or was not sent.

    `status` is the HTTP status. It is 0 without a response, and 429 for a request that the client
    withheld because of an overload.
    """

    def __init__(
        self,
        message: str,
        status: int = 0,
        retry_after_seconds: float | None = None,
        requests: int = 1,
    ) -> None:
        """`retry_after_seconds` is the delay that an overloaded server requested, or None.

        `requests` is the number of requests of the failed operation. A retry sends them again.
        """
        super().__init__(message)
        self.message = message
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        self.requests = requests


class NotFound(ClusterError):
    """The object does not exist."""


class NotServed(NotFound):
    """The API server does not serve a kind that the operator needs."""

    def __init__(self, kind: str, api_version: str) -> None:
        super().__init__(f"the cluster does not know {kind} of {api_version}", 404)
        self.kind = kind


class Forbidden(ClusterError):
    """The operator lacks a right, or a quota or an admission policy refuses the object.

    For a missing right, the message names the verb and the resource.
    """


class Conflict(ClusterError):
    """Another client has created, changed or replaced the object, or owns some of its fields."""


class Rejected(ClusterError):
    """The API server understood the request and will refuse every repetition of it."""
