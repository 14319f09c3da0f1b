"""Records the writes of a pass, and the errors that prevented other writes."""

import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from llmservice_operator.errors import ClusterError, Contested, OperatorError
from llmservice_operator.kinds import Kind
from llmservice_operator.refusals import Refusal

logger = logging.getLogger(__name__)


class ServiceGone(OperatorError):
    """The service was deleted, or its deletion has begun. No object may be created for it.

    A new service of the same name may exist.
    """


@dataclass
class Outcome:
    """Result of writing the children."""

    deadline: float = math.inf
    """Time on the event loop's clock, in seconds, after which no further write may begin."""
    wrote: bool = False
    tried: set[Kind] = field(default_factory=set)
    unanswered: list[Kind] = field(default_factory=list)
    """Kinds whose write got no response, for example because a webhook hangs."""
    refusals: list[Refusal] = field(default_factory=list)
    rewrites: list[str] = field(default_factory=list)
    """Sentences about fields that an admission webhook rewrites. The service runs with the
    rewritten fields."""
    look_again_seconds: float | None = None
    """Time in seconds until the first of the children with paused writes may be written again; None
    if no writes are paused."""

    @property
    def refused_requests(self) -> int:
        """Number of requests of the operations that failed in the pass."""
        errors = (each.error for each in self.refusals)
        return sum(each.requests for each in errors if isinstance(each, ClusterError))

    async def attempt(
        self, kind: Kind, what: str, step: Callable[[], Awaitable[bool]], now: float
    ) -> bool:
        """Run a step that writes or deletes one object; return whether it succeeded.

        A failure is recorded and does not prevent the writes of other objects. After the deadline,
        the step is not run and counts as failed. Raises ServiceGone if the step does.
        """
        if now > self.deadline:
            said = "not tried yet: other objects took too long"
            self.refuse(what, ClusterError(said, requests=0))
            return False
        self.tried.add(kind)
        try:
            self.wrote |= await step()
        except ServiceGone:
            raise
        except Exception as error:
            if isinstance(error, ClusterError) and not error.status:
                self.unanswered.append(kind)
            self.refuse(what, error)
            return False
        return True

    def refuse(self, what: str, error: Exception) -> None:
        """Record a failed operation and its error."""
        self.refusals.append(Refusal(what, error))
        if not isinstance(error, OperatorError):
            logger.error("%s was not written", what, exc_info=error)
            return
        # A contest is not logged as a warning, because each write of the other client starts a
        # pass, and the log would overflow.
        level = logging.DEBUG if isinstance(error, Contested) else logging.WARNING
        logger.log(level, "%s was not written: %s", what, error)

    def wait(self, seconds: float) -> None:
        """Record the time in seconds until an object whose writes are paused may be written."""
        self.look_again_seconds = min(seconds, self.look_again_seconds or seconds)
