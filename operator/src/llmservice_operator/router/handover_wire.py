"""The form in which pickers send each other the messages of `routing.handover`: lists of JSON."""

from collections.abc import Iterable
from typing import Annotated, Final

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from llmservice_operator.routing.handover import Message

LONGEST_LIST: Final = 1024**2
"""Longest list in bytes. One message takes at most about 100 KB."""

_CONFIG = ConfigDict(allow_inf_nan=False, ser_json_bytes="base64", val_json_bytes="base64")
_MESSAGE: TypeAdapter[Message] = TypeAdapter(
    Annotated[Message, Field(discriminator="kind")], config=_CONFIG
)
_MESSAGES: TypeAdapter[list[Message]] = TypeAdapter(
    list[Annotated[Message, Field(discriminator="kind")]], config=_CONFIG
)


def encode(message: Message) -> bytes:
    return _MESSAGE.dump_json(message)


def join(messages: Iterable[bytes]) -> bytes:
    """Return the list of encoded messages."""
    return b"[" + b",".join(messages) + b"]"


def decode(content: bytes) -> list[Message]:
    """Return the messages in a list.

    Raises ValueError for another content. The error does not contain the content.
    """
    try:
        return _MESSAGES.validate_json(content)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        places = ".".join(map(str, problem["loc"])) or "the list"
        raise ValueError(f"no list of messages: {places}: {problem['msg']}") from None
