"""The termination message that a model server writes when it exits.

The image of a server may be older or newer than this operator, so the messages of every released
server must always be readable.
"""

from __future__ import annotations

from typing import Self

from pydantic import ValidationError

from llmservice_operator.api.fields import Fields
from llmservice_operator.api.reason_facts import Source
from llmservice_operator.api.reasons import Reason


class TerminationMessage(Fields):
    format: int = 1
    """Version of the format. In version 1, which leaves this field out, `message` says what to
    change. From version 2 on, `message` contains only the finding, and the operator adds the
    hint."""
    reason: str
    """Cause of the server's exit, as one CamelCase word."""
    message: str
    """The server's finding and the engine's error, in sentences."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the message; None when the text is not such a message, for example when it is the
        end of a log.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None

    @property
    def known_reason(self) -> Reason | None:
        """The reason, if this operator knows it as one that a model server reports."""
        reason = Reason.named(self.reason)
        return reason if reason and reason.source is Source.MODEL_SERVER else None

    @property
    def has_advice(self) -> bool:
        """Whether the message itself says what to change."""
        return self.format < 2
