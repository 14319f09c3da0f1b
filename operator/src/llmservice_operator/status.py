"""spec + Observation -> status and the events of what changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from llmservice_operator.api.conditions import Reason
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.pin import EnginePin
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.observe import Observation


@dataclass(frozen=True)
class Failure:
    """Why this pass could not make the cluster as the spec asks; what runs goes on running."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Event:
    """A core Event to record on the LLMService."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class StatusUpdate:
    status: dict[str, Any]
    """The whole status, to apply on the status subresource when it differs from the live one."""
    events: tuple[Event, ...]
    """Empty unless the Ready condition changed its status or reason."""


def build_status(
    service: LLMService,
    pin: EnginePin | None,
    seen: Observation,
    now: datetime,
    failure: Failure | None = None,
) -> StatusUpdate:
    """Return the status that follows the service's present one.

    `pin` is None only when the pass failed before there was one.
    """
    raise NotImplementedError(service, pin, seen, now, failure)


def build_status_of_unreadable(
    body: Mapping[str, Any], error: InvalidSpec, now: datetime
) -> StatusUpdate:
    """Return the status of an LLMService that LLMService.parse refused.

    It keeps what the last readable pass reported about pods and engine: they go on running.
    """
    raise NotImplementedError(body, error, now)
