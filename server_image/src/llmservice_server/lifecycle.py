"""Keeps the phase of a server from start to exit, and builds the bodies of its probes."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Phase of the server. The phases occur in this order, but the wait for the cache may recur."""

    IMPORTING = "importing"
    WAITING_FOR_CACHE = "waiting_for_cache"
    """Another server fills the shared cache."""
    DOWNLOADING = "downloading"
    LOADING = "loading"
    WARMING_UP = "warming_up"
    SMOKE_TESTING = "smoke_testing"
    """The server waits for the answer to its own test request."""
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class DownloadProgress:
    """Progress of the download: bytes of the weights on disk."""

    bytes_done: int
    bytes_total: int


class Lifecycle:
    """The current phase and its age.

    The event loop of the API changes them. The event loop of the management port only reads them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started_at = clock()
        self._entered_at = self._started_at
        self.phase = Phase.IMPORTING
        self.download: DownloadProgress | None = None
        self.cache_writer: str | None = None
        """Host name of the server that fills the shared cache while this server waits."""
        self._failure: dict[str, str] = {}
        self.accepts_requests = False
        """Whether the API port serves requests: true from readiness until a failure, or until a
        drain refuses new requests."""
        self.load_seconds: dict[Phase, float] = {}
        """Duration of each finished phase before ready, in seconds."""
        self.engine_has_died: Callable[[], bool] = lambda: False
        """Whether the engine is dead. It becomes true a moment before the phase changes."""
        self.is_stalled = False
        """Whether requests wait while the engine makes no step."""
        self._api_beat_at = self._started_at
        self.api_hang_seconds = math.inf
        """Maximum age in seconds of the last heartbeat of the API's event loop. An event loop with
        an older heartbeat is considered hung."""

    def beat(self) -> None:
        """Record a heartbeat of the API's event loop."""
        self._api_beat_at = self._clock()

    @property
    def api_hangs(self) -> bool:
        """Whether the API's event loop has not run for too long."""
        return self._clock() - self._api_beat_at > self.api_hang_seconds

    @property
    def is_ready(self) -> bool:
        return self.phase is Phase.READY and not (self.is_stalled or self.api_hangs)

    @property
    def has_started(self) -> bool:
        """Whether loading has succeeded; stays true while draining."""
        return self.phase in (Phase.READY, Phase.DRAINING)

    @property
    def is_alive(self) -> bool:
        return self.phase is not Phase.FAILED and not (self.is_stalled or self.api_hangs)

    @property
    def phase_seconds(self) -> float:
        """Age of the current phase, in seconds."""
        return self._clock() - self._entered_at

    @property
    def elapsed_seconds(self) -> float:
        """Age of the server, in seconds."""
        return self._clock() - self._started_at

    def enter(self, phase: Phase) -> None:
        """Enter a phase. Until the server is ready, record the duration of the previous phase."""
        now = self._clock()
        if not self.has_started:
            before = self.load_seconds.get(self.phase, 0.0)
            self.load_seconds[self.phase] = before + now - self._entered_at
        self.phase = phase
        self._entered_at = now
        if phase is Phase.READY:
            self.accepts_requests = True

    def wait_for_cache(self, writer: str) -> None:
        """Enter or continue the wait for the server `writer`, which fills the shared cache."""
        self.cache_writer = writer
        if self.phase is not Phase.WAITING_FOR_CACHE:
            self.enter(Phase.WAITING_FOR_CACHE)

    def fail(self, reason: str, message: str) -> None:
        """Enter the failed phase, which is final, with its reason and message."""
        self._failure = {"reason": reason, "message": message}
        self.accepts_requests = False
        self.enter(Phase.FAILED)

    def report(self) -> dict[str, object]:
        """Return the body of every probe: phase, ages in seconds, progress and any failure."""
        body: dict[str, object] = {
            "phase": self.phase.value,
            "phaseSeconds": round(self.phase_seconds, 1),
            "elapsedSeconds": round(self.elapsed_seconds, 1),
        }
        if self.phase is Phase.WAITING_FOR_CACHE:
            body["message"] = f"{self.cache_writer} fills the shared cache"
        if self.phase in (Phase.DOWNLOADING, Phase.WAITING_FOR_CACHE) and self.download is not None:
            body["download"] = {
                "bytesDone": self.download.bytes_done,
                "bytesTotal": self.download.bytes_total,
            }
        if self.api_hangs:
            silent = self._clock() - self._api_beat_at
            body["message"] = f"the API has answered nothing for {silent:.0f} seconds"
        elif self.is_stalled:
            body["message"] = "the engine makes no step although requests are waiting"
        return body | self._failure
