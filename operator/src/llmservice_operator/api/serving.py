"""spec.serving: limits of a single request, and the time limit of an engine step."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmservice_operator.api.fields import Fields


class Serving(Fields):
    request_timeout_seconds: Annotated[int, Field(ge=0, le=86_400)] | None = None
    """Maximum duration of a request in seconds, including its wait in the queue; 0 sets no limit. A
    longer request ends with status 504, or with an error event if its stream has begun. Default:
    600, or termination.drainTimeoutSeconds if that is greater."""
    engine_hang_seconds: Annotated[int, Field(ge=10, le=86_400)] = 120
    """Time limit of an engine step, in seconds. If the engine completes no step for this time while
    requests wait for a step, the replica is no longer ready; after another minute, the container
    restarts. Raise the limit if a single step can take longer, for example because a kernel must be
    compiled first."""
    max_body_mebibytes: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Maximum size of a request body in MiB; a larger body is refused with status 413. A replica
    keeps at most sixteen bodies of this size in memory. Default: 16, enough for a few images."""
    max_choices: Annotated[int, Field(ge=1, le=16_384)] | None = None
    """Maximum number of answers that one request may set as `n`; a higher number is refused with
    status 400. Default: 128."""
