"""Client of the model servers' management port. No other module scrapes pods."""

import dataclasses
import ipaddress
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import aiohttp
from pydantic import ConfigDict, Field, PlainValidator, create_model
from yarl import URL

from llmservice_operator import names
from llmservice_operator.api.fields import Fields
from llmservice_operator.api.load_report import ReplicaAdapter
from llmservice_operator.scaling.latency import LATENCY_BUCKETS, Latencies
from llmservice_operator.scaling.signals import Counters, Snapshot, StepSums
from llmservice_operator.scaling.sums import Sums

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 2.0
"""Longest time in seconds that one request may take. A management port responds in milliseconds. A
round over all pods waits for its slowest scrape, and a scrape sends up to two requests."""
URLS = 16 * 1024
"""Number of URLs that are remembered, because to parse one takes a fifth of the time of a request.
"""
LONGEST_ANSWER = 64 * 1024
"""Longest response body that is read, in bytes. A pod may run any program, and its response must
not fill the memory of the metrics server."""

Amount = Annotated[float, Field(ge=0)]
Delays = Annotated[
    tuple[Amount, ...], Field(min_length=LATENCY_BUCKETS, max_length=LATENCY_BUCKETS)
]


class _Answer(Fields):
    """Base class of the responses of a pod.

    The numbers decide how many GPUs a service uses, so NaN and infinity are rejected.
    """

    model_config = ConfigDict(allow_inf_nan=False)


_AnswerT = TypeVar("_AnswerT", bound=_Answer)


class _Delays(_Answer):
    """Latency histograms, sent in addition to the counters. Older servers send none."""

    ttft_milliseconds: Delays | None = None
    itl_milliseconds: Delays | None = None


def _model(declared: type[Sums], base: type[_AnswerT]) -> type[_AnswerT]:
    """Return a Pydantic model with the fields of `base` and the fields of a dataclass of sums."""
    fields: dict[str, Any] = {
        each.name: (_json_type(each), each.default if each.metadata.get("is_optional") else ...)
        for each in dataclasses.fields(declared)  # type: ignore[arg-type]
    }
    return create_model(f"_{declared.__name__}", __base__=base, **fields)


def _json_type(field: dataclasses.Field[Any]) -> Any:
    """Return the JSON type of a field: a number, a list of fixed length, or an object."""
    if field.type is StepSums:
        return _model(StepSums, _Answer)
    if isinstance(field.default, tuple):
        length = len(field.default)
        return Annotated[tuple[Amount, ...], Field(min_length=length, max_length=length)]
    return Amount


_COUNTERS = _model(Counters, _Delays)


class _Adapter(_Answer):
    """A LoRA adapter in the body of `GET /autoscale`."""

    name: Annotated[str, Field(max_length=512)]
    source: Annotated[str, Field(max_length=1024)]
    revision: Annotated[str, Field(max_length=512)] | None = None
    state: Annotated[str, Field(max_length=32)]
    message: Annotated[str, Field(max_length=512)] = ""


Name = Annotated[str, Field(min_length=1, max_length=253)]


class ReplicaIdentity(_Answer):
    """The pod that answered a scrape. An address can belong to another pod a moment later."""

    namespace: Name
    service: Name
    """Name of the LLMService."""
    pod: Name
    uid: Name


class _KeyTokens(_Answer):
    """Tokens of an API key in the body of `GET /autoscale`."""

    key: Name
    prompt: Amount
    generated: Amount


class UsageReport(_Answer):
    """The body of `GET /autoscale`."""

    started: Amount
    counters: Annotated[_Delays, PlainValidator(_COUNTERS.model_validate)]
    running: Annotated[int, Field(ge=0)]
    waiting: Annotated[int, Field(ge=0)]
    queued_prompt_tokens: Amount | None = None
    left_prompt_tokens: Amount | None = None
    kv_tokens: Amount
    kv_capacity_tokens: Amount
    max_sequences: Annotated[int, Field(ge=0)]
    max_step_tokens: Annotated[int, Field(ge=0)]
    engines: Annotated[int, Field(ge=1)] = 1
    pipeline_stages: Annotated[int, Field(ge=1)] = 1
    phase: Annotated[str, Field(max_length=32)]
    draining: bool = False
    replica: ReplicaIdentity | None = None
    gpu_duty_cycle_percent: Amount | None = None
    adapters: tuple[_Adapter, ...] | None = None
    keys: tuple[_KeyTokens, ...] | None = None

    @property
    def tokens_by_key(self) -> Mapping[str, float] | None:
        """Return the tokens of each API key; None if the server does not report them."""
        if self.keys is None:
            return None
        return {each.key: each.prompt + each.generated for each in self.keys}

    def snapshot(self, now: float) -> Snapshot:
        """Return the snapshot for the scaling core, as of the Unix time `now` in seconds."""
        counted = self.counters.model_dump(exclude=set(_Delays.model_fields))
        return Snapshot(
            at=now,
            started=self.started,
            counters=Counters(**{**counted, "steps": StepSums(**counted["steps"])}),
            running=self.running,
            waiting=self.waiting,
            kv_tokens=self.kv_tokens,
            kv_capacity_tokens=self.kv_capacity_tokens,
            max_sequences=self.max_sequences,
            max_step_tokens=self.max_step_tokens,
            engines=self.engines,
            pipeline_stages=self.pipeline_stages,
            queued_prompt_tokens=self.queued_prompt_tokens,
            left_prompt_tokens=self.left_prompt_tokens,
        )

    @property
    def latencies(self) -> Latencies | None:
        """Both histograms; None if the server does not report both."""
        ttft, itl = self.counters.ttft_milliseconds, self.counters.itl_milliseconds
        if not ttft or not itl:
            return None
        # The report of every replica is kept, and most of its numbers are zeros. `or` makes them
        # one object.
        return Latencies(
            tuple([each or 0.0 for each in ttft]), tuple([each or 0.0 for each in itl])
        )


class _Download(_Answer):
    bytes_done: Annotated[int, Field(ge=0)]
    bytes_total: Annotated[int, Field(ge=0)]


class _Probe(_Answer):
    """The body of the response to a probe."""

    phase: Annotated[str, Field(max_length=32)]
    elapsed_seconds: Amount
    download: _Download | None = None


@dataclass(frozen=True)
class EngineAnswer:
    """The combined responses of one model server to a scrape."""

    phase: str
    elapsed_seconds: float
    snapshot: Snapshot
    is_draining: bool = False
    """Whether the server refuses new requests now, or will soon refuse them."""
    replica: ReplicaIdentity | None = None
    """Identity of the server; None if an older server does not report it."""
    latencies: Latencies | None = None
    """Cumulative histograms; None if the server does not report them."""
    gpu_duty_cycle_percent: float | None = None
    downloaded_bytes: int | None = None
    total_bytes: int | None = None
    adapters: tuple[ReplicaAdapter, ...] | None = None
    """LoRA adapters of the server; None if it takes no adapters."""


class NoReport(Exception):
    """No model server responds at an address: another program does, or connections fail."""


class Silent(NoReport):
    """The model server does not respond in time, or is too busy to report."""


class EngineMetrics:
    """HTTP client for all model servers. The caller must close it."""

    def __init__(
        self, now: Callable[[], float] = time.time, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self._now = now
        self._session = aiohttp.ClientSession(
            # A wait for a connection would count as the server's silence. The callers bound the
            # number of requests.
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=timeout_seconds),
        )

    async def close(self) -> None:
        await self._session.close()

    async def ask(self, address: str, *, is_ready: bool) -> EngineAnswer | None:
        """Query the model server at this address; return None without a valid response.

        A server that is not ready is also queried for the progress of its start.
        """
        try:
            report = await self.report(address)
            probe = None
            if not is_ready:
                probe = await self._read(address, names.READINESS_PROBE_PATH, _Probe)
        except NoReport as error:
            logger.debug("%s: %s", address, error)
            return None
        now = self._now()
        download = probe.download if probe else None
        return EngineAnswer(
            phase=probe.phase if probe else report.phase,
            elapsed_seconds=probe.elapsed_seconds if probe else max(0.0, now - report.started),
            snapshot=report.snapshot(now),
            is_draining=report.draining or report.phase == "draining",
            replica=report.replica,
            latencies=report.latencies,
            gpu_duty_cycle_percent=report.gpu_duty_cycle_percent,
            downloaded_bytes=download.bytes_done if download else None,
            total_bytes=download.bytes_total if download else None,
            adapters=None
            if report.adapters is None
            else tuple(ReplicaAdapter(**each.model_dump()) for each in report.adapters),
        )

    async def report(self, address: str, port: int = names.MANAGEMENT_PORT) -> UsageReport:
        """Return the report of the model server at this address. Raises NoReport without one."""
        return await self._read(address, "/autoscale", UsageReport, port)

    async def _read(
        self, address: str, path: str, model: type[_AnswerT], port: int = names.MANAGEMENT_PORT
    ) -> _AnswerT:
        """Return the content of a response with any HTTP status, because the body of a probe with
        status 503 is also needed. Raises NoReport without a valid response.
        """
        try:
            status, body = await self._get(address, port, path)
        except TimeoutError as error:
            raise Silent("no response in time") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise NoReport(str(error) or type(error).__name__) from error
        try:
            return model.model_validate_json(body)
        except ValueError as error:
            kind = Silent if status == HTTPStatus.SERVICE_UNAVAILABLE else NoReport
            raise kind(str(error)) from error

    async def _get(self, address: str, port: int, path: str) -> tuple[int, bytes]:
        """Return the status and the body of a response.

        Raises ValueError if the address is not valid, ClientError if the request fails or the body
        is too long, and TimeoutError if the response takes too long.
        """
        body = b""
        async with self._session.get(_url(address, port, path), allow_redirects=False) as answer:
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > LONGEST_ANSWER:
                    raise aiohttp.ClientPayloadError(f"{path} is longer than {LONGEST_ANSWER}")
        return answer.status, body


@lru_cache(URLS)
def _url(address: str, port: int, path: str) -> URL:
    host = f"[{address}]" if ipaddress.ip_address(address).version == 6 else address
    return URL(f"http://{host}:{port}{path}")
