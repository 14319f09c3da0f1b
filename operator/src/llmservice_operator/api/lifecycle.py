"""spec.termination: how a replica ends."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmservice_operator.api.fields import Fields


class Termination(Fields):
    pre_stop_seconds: Annotated[int, Field(ge=0, le=300)] = 5
    """Seconds for which a replica that was told to stop still takes requests, until every proxy has
    learned of it."""
    drain_timeout_seconds: Annotated[int, Field(ge=0, le=86_400)] = 600
    """Longest time in seconds that it may then take to finish the answers under way; what is left
    is cut with an error. A node drain waits as long."""
