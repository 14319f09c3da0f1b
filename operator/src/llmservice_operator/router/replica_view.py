"""The replicas of the service and its other pickers, as the supervisor reports them to the picker.

The supervisor writes one line of JSON to the picker's standard input every second, and after each
change of the replicas. Each line is complete and replaces the previous line.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Final

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    with_config,
)

from llmservice_operator.scaling.signals import Snapshot

LONGEST_LINE: Final = 4 * 1024**2
"""Longest line in bytes. A replica takes about 2 KiB, so this is enough for 1,000 replicas. The
adapters and the tokens by key are left out of a line that would be longer."""

ADDRESS_FORM: Final = r"^([0-9.]+|\[[0-9a-f:.]+\]):[0-9]{1,5}$"
"""An IP address and a port. An IPv6 address is in brackets."""

Address = Annotated[str, Field(pattern=ADDRESS_FORM)]


def _unambiguous(replicas: tuple["ReplicaView", ...]) -> tuple["ReplicaView", ...]:
    for key in ("name", "address"):
        if len({getattr(each, key) for each in replicas}) < len(replicas):
            raise ValueError(f"two replicas have the same {key}")
    return replicas


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A replica that has confirmed within the last seconds that it belongs to the service."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the replica's pod."""
    address: Address
    """Address and port of the replica's API."""
    is_draining: bool
    """Whether the replica finishes its requests and must get no further ones."""
    report: Snapshot | None
    """Last report, or None if there is none. Its time is that of the monotonic clock, which all
    processes of a machine share."""
    cache_tokens: Annotated[float, Field(ge=0)]
    """Number of prompt tokens for which the replica's prefix cache has room."""
    adapters: tuple[str, ...] = ()
    """Names of the LoRA adapters that the replica has loaded."""
    key_tokens: Mapping[str, Annotated[float, Field(ge=0)]] | None = None
    """Number of tokens that the replica has counted for each API key, by its name. None if the
    replica does not report them, or if no client has limits."""


@with_config(ConfigDict(allow_inf_nan=False))
@dataclass(frozen=True, slots=True)
class View:
    """The content of a line."""

    replicas: Annotated[tuple[ReplicaView, ...], AfterValidator(_unambiguous)]
    other_pickers: tuple[Address, ...] = ()
    """Addresses and ports of the pickers in the other router pods."""
    refusal: str | None = None
    """Sentence with which requests are refused while there is no replica. None if they wait."""


_VIEW = TypeAdapter(View)


def encode(view: View) -> bytes:
    """Return the line with this content, including its line break."""
    line = _VIEW.dump_json(view)
    if len(line) >= LONGEST_LINE:
        without = tuple(replace(each, adapters=(), key_tokens=None) for each in view.replicas)
        line = _VIEW.dump_json(replace(view, replicas=without))
    return line + b"\n"


def decode(line: bytes) -> View:
    """Return the content of a line of `encode`.

    Raises ValueError for another text. The error does not contain the text.
    """
    try:
        return _VIEW.validate_json(line)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        places = ".".join(map(str, problems[0]["loc"])) or "the line"
        raise ValueError(f"no list of replicas: {places}: {problems[0]['msg']}") from None
