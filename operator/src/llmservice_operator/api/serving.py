"""spec.serving: what a replica allows one request, and when it counts as hung."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmservice_operator.api.fields import Fields


class Serving(Fields):
    request_timeout_seconds: Annotated[int, Field(ge=0, le=86_400)] | None = None
    """Longest time in seconds for one request, its wait in the queue too; 0 sets no limit. What
    takes longer ends with 504, or a stream with an error. Default: 600, or
    termination.drainTimeoutSeconds where that is more."""
    engine_hang_seconds: Annotated[int, Field(ge=10, le=86_400)] = 120
    """Seconds without a step of the engine, while requests wait for one, after which a replica is
    not ready and a minute later is restarted. Raise it where one step may take longer, such as the
    first one of a shape that has to be compiled."""
    max_body_mebibytes: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Longest body of a request, in MiB; a longer one is answered with 413. A replica may hold
    sixteen such bodies in memory. Default: 16, which fits a few pictures."""
    max_choices: Annotated[int, Field(ge=1, le=16_384)] | None = None
    """Most answers that one request may ask for (`n`); more are refused with 400. Default: 128."""
