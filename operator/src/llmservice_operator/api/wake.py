"""A service that must be woken, as the metrics server names it at `GET /v1/wakes?wait=SECONDS`."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from llmservice_operator.api.fields import Fields


class Wake(Fields):
    """A service without replicas whose router holds requests."""

    model_config = ConfigDict(allow_inf_nan=False)

    held_requests: Annotated[int, Field(ge=1)]
    """Requests that wait in the router pods."""
    held_percent: Annotated[float, Field(ge=0)]
    """Demand of these requests, in percent of one replica."""
