"""Reserves the places of all texts of an HTTP request in the engine's queue together.

vLLM admits each text of a request separately. Without this module, a request with more texts than
the queue has room for would be computed in part and then refused, at every attempt.
"""

from collections.abc import Callable
from contextvars import ContextVar
from enum import StrEnum


class Refusal(StrEnum):
    """Reason for which this replica's engine refuses a request, as named in metrics."""

    QUEUE_FULL = "queue_full"
    NO_ADAPTER = "no_adapter"


class PromisedPlaces:
    """Number of sequences that are admitted but not yet in the engine."""

    def __init__(self) -> None:
        self.count = 0


class Place:
    """The places of one HTTP request in the engine's queue."""

    def __init__(self, inputs: Callable[[], int], *, asks_for_all: bool = False) -> None:
        """Start without reserved places. `inputs` returns the number of texts.

        With `asks_for_all`, vLLM requests room for all texts together. Otherwise, it requests room
        for the answers to each text separately.
        """
        self._inputs = inputs
        self._asks_for_all = asks_for_all
        self._promised: PromisedPlaces | None = None
        self._rest = 0
        self._wanted = 0
        self._arrived = 0
        self.refusal: Refusal | None = None
        """Reason for which the engine refused the request; None without a refusal."""

    @property
    def is_admitted(self) -> bool:
        """Whether all sequences of the request are admitted."""
        return self._promised is not None

    def choices(self, asked: int) -> int:
        """Return the number of answers to one text. vLLM requests room for `asked` sequences."""
        return 1 if self._asks_for_all else asked

    def wanted(self, asked: int) -> int:
        """Return the request's number of sequences. vLLM requests room for `asked` sequences."""
        return asked if self._asks_for_all else self._inputs() * asked

    def admit(self, sequences: int, promised: PromisedPlaces) -> None:
        """Admit all sequences of the request; `sequences` is their number."""
        self._promised, self._rest, self._wanted = promised, sequences, sequences
        promised.count += sequences

    def enter(self, sequences: int) -> None:
        """Record that sequences are in the engine's queue; ignore those that were not admitted."""
        sequences = min(sequences, self._rest)
        self._rest -= sequences
        if self._promised is not None:
            self._promised.count -= sequences

    def is_demand(self, sequences: int) -> bool:
        """Count arriving sequences, and return whether the client requested them.

        A beam search sends each of its sequences to the engine again for each token.
        """
        self._arrived += sequences
        return not self.is_admitted or self._arrived <= self._wanted

    def leave(self) -> None:
        """Release the places that the request has reserved but not used."""
        self.enter(self._rest)


current_place: ContextVar[Place | None] = ContextVar("current_place", default=None)
"""The places of the current HTTP request; None outside a request, such as in the warm-up."""


def note_refusal(refusal: Refusal) -> None:
    """Record why the engine refuses the current HTTP request, if there is one."""
    if (place := current_place.get()) is not None:
        place.refusal = refusal
