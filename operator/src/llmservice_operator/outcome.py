"""Notes what a pass wrote, and what kept it from writing the rest."""

import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from llmservice_operator.errors import ClusterError, Contested, OperatorError
from llmservice_operator.kinds import Kind
from llmservice_operator.refusals import Refusal

logger = logging.getLogger(__name__)


class ServiceGone(OperatorError):
    """The service has been deleted, or another one has its name; nothing may be made for it."""


@dataclass
class Outcome:
    """Result of writing the children."""

    deadline: float = math.inf
    """Time after which no further write may begin."""
    wrote: bool = False
    tried: set[Kind] = field(default_factory=set)
    unanswered: list[Kind] = field(default_factory=list)
    """Kinds whose write got no answer, for example because a webhook hangs."""
    refusals: list[Refusal] = field(default_factory=list)
    rewrites: list[str] = field(default_factory=list)
    """Sentences about fields that an admission webhook rewrites. The service runs with them."""
    look_again_seconds: float | None = None
    """When a child that was left alone may be written again."""

    @property
    def refused_requests(self) -> int:
        """Number of requests of the pass that were sent in vain."""
        errors = (each.error for each in self.refusals)
        return sum(each.requests for each in errors if isinstance(each, ClusterError))

    async def attempt(
        self, kind: Kind, what: str, step: Callable[[], Awaitable[bool]], now: float
    ) -> bool:
        """Write or delete one object; return whether the step succeeded.

        A failure is recorded and does not stop the writes of other objects. Raises
        ServiceGone.
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
        """Record an operation that failed, and the error."""
        self.refusals.append(Refusal(what, error))
        if not isinstance(error, OperatorError):
            logger.error("%s was not written", what, exc_info=error)
            return
        # The log would overflow during a contest, because each write of the other client starts a
        # pass.
        level = logging.DEBUG if isinstance(error, Contested) else logging.WARNING
        logger.log(level, "%s was not written: %s", what, error)

    def wait(self, seconds: float) -> None:
        """Record when an object that was left alone may be written again."""
        self.look_again_seconds = min(seconds, self.look_again_seconds or seconds)
