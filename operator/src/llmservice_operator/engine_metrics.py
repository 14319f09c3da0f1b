"""Asks model servers on their management port what they do: the only module that scrapes pods."""

import ipaddress
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import aiohttp
from pydantic import ConfigDict, Field, ValidationError

from llmservice_operator import names
from llmservice_operator.api.fields import Fields
from llmservice_operator.scaling.latency import LATENCY_BUCKETS, Latencies
from llmservice_operator.scaling.signals import (
    LENGTH_BUCKETS,
    STEP_MOMENTS,
    Counters,
    Snapshot,
    StepSums,
)

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 2.0
"""A management port answers in milliseconds; a round of scrapes waits for the slowest."""
CONNECTIONS = 100
LONGEST_ANSWER = 64 * 1024
"""Bytes. The pod is somebody else's program and must not fill our memory."""

Amount = Annotated[float, Field(ge=0)]
Lengths = Annotated[tuple[Amount, ...], Field(min_length=LENGTH_BUCKETS, max_length=LENGTH_BUCKETS)]
Delays = Annotated[
    tuple[Amount, ...], Field(min_length=LATENCY_BUCKETS, max_length=LATENCY_BUCKETS)
]


class _Answer(Fields):
    """Numbers of a pod decide about money: what is no number is no answer."""

    model_config = ConfigDict(allow_inf_nan=False)


class _Steps(_Answer):
    moments: Annotated[tuple[Amount, ...], Field(min_length=STEP_MOMENTS, max_length=STEP_MOMENTS)]


class _Counters(_Answer):
    arrivals: Amount
    prompt_tokens_arrived: Amount
    prompt_tokens_computed: Amount
    prompt_tokens_cached: Amount
    generated_tokens: Amount
    decoded_tokens: Amount = 0.0
    finished: Amount
    judged: Amount
    ttft_met: Amount
    itl_met: Amount
    slo_met: Amount
    prompt_lengths: Lengths
    answer_lengths: Lengths
    answer_tokens: Amount
    steps: _Steps
    ttft_milliseconds: Delays | None = None
    itl_milliseconds: Delays | None = None


class _Report(_Answer):
    """The body of `GET /autoscale`."""

    started: Amount
    counters: _Counters
    running: Annotated[int, Field(ge=0)]
    waiting: Annotated[int, Field(ge=0)]
    kv_tokens: Amount
    kv_capacity_tokens: Amount
    max_sequences: Annotated[int, Field(ge=0)]
    max_step_tokens: Annotated[int, Field(ge=0)]
    engines: Annotated[int, Field(ge=1)] = 1
    phase: Annotated[str, Field(max_length=32)]
    gpu_duty_cycle_percent: Amount | None = None


class _Download(_Answer):
    bytes_done: Annotated[int, Field(ge=0)]
    bytes_total: Annotated[int, Field(ge=0)]


class _Probe(_Answer):
    """The body of every probe."""

    phase: Annotated[str, Field(max_length=32)]
    elapsed_seconds: Amount
    download: _Download | None = None


@dataclass(frozen=True)
class EngineAnswer:
    """What one model server told."""

    phase: str
    elapsed_seconds: float
    snapshot: Snapshot
    latencies: Latencies | None = None
    """Cumulative; None from a server that does not tell them."""
    gpu_duty_cycle_percent: float | None = None
    downloaded_bytes: int | None = None
    total_bytes: int | None = None


class EngineMetrics:
    """One HTTP client for all model servers. Close it at the end."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
        )

    async def close(self) -> None:
        await self._session.close()

    async def ask(self, address: str, *, is_ready: bool) -> EngineAnswer | None:
        """Ask the model server at this address; None when it does not answer, or not as one does.

        One that is not ready is also asked how far it has come.
        """
        try:
            report = _Report.model_validate_json(await self._get(address, "/autoscale"))
            probe = None
            if not is_ready:
                probe = _Probe.model_validate_json(
                    await self._get(address, names.READINESS_PROBE_PATH)
                )
        except (aiohttp.ClientError, TimeoutError, ValidationError) as error:
            logger.debug("%s: %s", address, str(error) or type(error).__name__)
            return None
        now = self._now()
        download = probe.download if probe else None
        counters = report.counters
        return EngineAnswer(
            phase=probe.phase if probe else report.phase,
            elapsed_seconds=probe.elapsed_seconds if probe else max(0.0, now - report.started),
            snapshot=_snapshot(report, now),
            latencies=(
                Latencies(counters.ttft_milliseconds, counters.itl_milliseconds)
                if counters.ttft_milliseconds and counters.itl_milliseconds
                else None
            ),
            gpu_duty_cycle_percent=report.gpu_duty_cycle_percent,
            downloaded_bytes=download.bytes_done if download else None,
            total_bytes=download.bytes_total if download else None,
        )

    async def _get(self, address: str, path: str) -> bytes:
        """Return the body, whatever the status: a probe's 503 has one too."""
        host = f"[{address}]" if ipaddress.ip_address(address).version == 6 else address
        url = f"http://{host}:{names.MANAGEMENT_PORT}{path}"
        body = b""
        async with self._session.get(url, allow_redirects=False) as answer:
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > LONGEST_ANSWER:
                    raise aiohttp.ClientPayloadError(f"{path} is longer than {LONGEST_ANSWER}")
        return body


def parse_snapshot(body: bytes, now: float) -> Snapshot:
    """Return what an answer to `GET /autoscale` says; raises ValidationError where it is none."""
    return _snapshot(_Report.model_validate_json(body), now)


def _snapshot(report: _Report, now: float) -> Snapshot:
    counted = report.counters.model_dump(exclude={"steps", "ttft_milliseconds", "itl_milliseconds"})
    return Snapshot(
        at=now,
        started=report.started,
        counters=Counters(**counted, steps=StepSums(report.counters.steps.moments)),
        running=report.running,
        waiting=report.waiting,
        kv_tokens=report.kv_tokens,
        kv_capacity_tokens=report.kv_capacity_tokens,
        max_sequences=report.max_sequences,
        max_step_tokens=report.max_step_tokens,
        engines=report.engines,
    )
