"""spec.serving: limits of a single request, and the time after which an engine counts as
hung.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmservice_operator.api.fields import Fields


class Serving(Fields):
    request_timeout_seconds: Annotated[int, Field(ge=0, le=86_400)] | None = None
    """Maximum duration of a request in seconds, including its wait in the queue; 0 sets no limit. A
    longer request ends with status 504, and a stream with an error. Default: 600, or
    termination.drainTimeoutSeconds if that is greater."""
    engine_hang_seconds: Annotated[int, Field(ge=10, le=86_400)] = 120
    """Time in seconds without an engine step, while requests wait for one, after which the replica
    is not ready. After another minute the container restarts. Raise it if a single step can take
    longer, such as the first step of a shape that must be compiled."""
    max_body_mebibytes: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Maximum size of a request body in MiB; a larger one is refused with status 413. A replica may
    keep sixteen bodies of this size in memory. Default: 16, enough for a few images."""
    max_choices: Annotated[int, Field(ge=1, le=16_384)] | None = None
    """Maximum number of answers that one request may set as `n`; a higher number is refused with
    status 400. Default: 128."""
