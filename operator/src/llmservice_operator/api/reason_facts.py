"""The properties of a condition's reason, as reasons.py declares them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum, auto
from typing import Final


class Source(StrEnum):
    """Origin of a reason; the value is a heading in docs/conditions.md."""

    COUNTS = "From the Deployment's counts"
    ROLLOUT = "From the Deployment's conditions"
    POD = "From the pods, as the scheduler and the kubelet see them"
    MODEL_SERVER = "From the model server when it exits, or from the kubelet on its behalf"
    METRICS_SERVER = "From the model server, through the metrics server"
    ROUTER = "From the Deployment of the router"
    ROUTE = "From the HTTPRoute, as the controllers of its Gateways see it"
    OPERATOR = "From the operator's own pass"
    LOAD = "From the metrics server and the autoscaler"


class Rank(IntEnum):
    """Order in which the problems of replicas are reported: the lowest rank wins.

    The message of a container that ran is the most useful, so it comes first. Problems that keep
    containers from running come next, in the reverse order of the steps of a pod's startup.
    Problems that are solved by waiting are last. If two problems have the same rank, the
    alphabetical order of their reasons decides.
    """

    LAST_WORDS = auto()
    CRASH = auto()
    CONFIGURATION = auto()
    CONTAINER = auto()
    IMAGE = auto()
    VOLUME = auto()
    ACCELERATOR = auto()
    NODE = auto()
    QUOTA = auto()
    ADMISSION = auto()
    READINESS = auto()
    DEADLINE = auto()
    DOWNLOAD = auto()
    LOAD = auto()
    NONE = auto()
    """The reason is not a problem of a replica."""


class Subject(StrEnum):
    """Subject of a reason. Conditions other than Ready also depend on the subject."""

    MODEL = "model"
    """A container loads the model, or has failed to load or serve it. The condition ModelReady is
    then False."""
    ROOM = "room"
    """The cluster has no room for a replica."""


_SOURCES_OF_PROBLEMS: Final = frozenset(
    {Source.ROLLOUT, Source.POD, Source.MODEL_SERVER, Source.METRICS_SERVER}
)


@dataclass(frozen=True)
class Facts:
    """All properties of one reason. Raises TypeError if the rank does not suit the source."""

    word: str
    """The reason itself, in CamelCase; part of the API."""
    source: Source
    meaning: str
    """Description of the situation that the reason names, in sentences."""
    hint: str
    """Advice on what to change, in sentences. Messages about a problem end with it."""
    rank: Rank = Rank.NONE
    is_normal: bool = False
    """Whether an Event about the reason has the type Normal, instead of Warning."""
    is_transient: bool = False
    """Whether a restart may solve the problem. Such a problem is not reported while the container
    runs again after its first exit."""
    about: Subject | None = None

    def __post_init__(self) -> None:
        is_problem = self.source in _SOURCES_OF_PROBLEMS
        if is_problem and self.rank is Rank.NONE:
            raise TypeError(
                f"The reason {self.word} can be a problem of a replica and has no rank: "
                "give it one of api.reason_facts.Rank."
            )
        if not is_problem and self.rank is not Rank.NONE:
            raise TypeError(
                f"The reason {self.word} has a rank, but its source {self.source.name} reports no "
                "problem of a replica: remove the rank."
            )


def from_model_server(
    word: str,
    meaning: str,
    hint: str,
    *,
    is_transient: bool = False,
    about: Subject | None = Subject.MODEL,
) -> Facts:
    """Return the facts of a reason that a model server reports when it exits."""
    return Facts(
        word,
        Source.MODEL_SERVER,
        meaning,
        hint,
        rank=Rank.LAST_WORDS,
        is_transient=is_transient,
        about=about,
    )


def in_commands(name: str, text: str) -> str:
    """Return the text with NAME in its commands replaced by the name of the service."""
    for before in ("deploy/", "httproute/", "llmservice.dev/name=", "llmservice.dev/router-of="):
        text = text.replace(f"{before}NAME", f"{before}{name}")
    return text
