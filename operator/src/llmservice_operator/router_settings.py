"""The settings of the processes of a router pod.

This module imports little, because each of these processes keeps what it imports in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmservice_operator.process_settings import (
    Host,
    LogLevel,
    Namespace,
    ObjectName,
    Port,
    ProcessSettings,
    from_text,
)

ROUTER_PREFIX = "LLMSERVICE_ROUTER_"
"""Prefix of the environment variables of the router."""


class StepPrior(BaseModel):
    """Assumed duration of an engine step, until steps have been measured.

    The fields are those of `scaling.step_model.StepModel`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    fixed: float = Field(ge=0)
    prefill: float = Field(ge=0)
    sequence: float = Field(ge=0)
    kv: float = Field(ge=0)


class ClientLimits(BaseModel):
    """Limits of a client. None is no limit.

    The fields are those of `routing.limits.Limits`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    concurrent: int | None = Field(None, ge=1)


class LimitsOfClients(BaseModel):
    """The limits of all clients, by the names of their API keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    default: ClientLimits = ClientLimits()
    keys: Mapping[str, ClientLimits] = Field(default_factory=dict)


class RouterSettings(ProcessSettings):
    """Settings of all processes of a router pod."""

    prefix = ROUTER_PREFIX

    namespace: Namespace
    """Namespace of the service."""
    service: ObjectName
    """Name of the LLMService."""
    replicas_host: Host
    """DNS name of a headless Service object with the addresses of all replicas, also of those that
    are not ready; or the address of the only replica."""
    step_prior: Annotated[StepPrior, from_text(StepPrior.model_validate_json)] = Field(
        description='JSON such as {"fixed": 0.01, "prefill": 1e-4, "sequence": 1e-5, "kv": 1e-8}'
    )
    """Step model of a replica before any step was measured, in seconds."""
    pickers_host: Host | None = Field(None, description="a DNS name or an address")
    """DNS name of a headless Service object with the addresses of all router pods. None if this
    pod is the only one."""
    metrics_servers_host: Host | None = Field(None, description="a DNS name or an address")
    """DNS name of a headless Service object with the addresses of the metrics servers. Only these
    addresses may send lists of replicas. With None, no address may."""
    pod_address: Host = "127.0.0.1"
    """Address of this pod."""
    client_port: Port = 8000
    """Port of the API."""
    management_port: Port = 9090
    """Port of /livez, /readyz and /metrics."""
    picker_port: Port = 9002
    """Port at which the picker serves the proxies of all router pods."""
    gateway_port: Port | None = Field(None, description="a number from 1 to 65535")
    """Port at which the picker serves the Envoys of Gateways, by TLS. With None, it serves only
    those of the router pods."""
    forwarder_port: Port = 9003
    """Port of the forwarder on the loopback address."""
    run_directory: Path = Path("/run/llmservice")
    """Writable folder for configuration files and sockets. It must not contain other files."""
    api_keys_directory: Path | None = None
    """Folder of a mounted Secret; the content of every file is a key. With None, requests need no
    key."""
    client_limits: Annotated[
        LimitsOfClients | None, from_text(LimitsOfClients.model_validate_json)
    ] = Field(None, description='JSON such as {"default": {"requests": 60}, "keys": {}}')
    """Limits of the owners of API keys. None if they have none."""
    tls_directory: Path | None = None
    """Folder of a mounted Secret with tls.crt and tls.key. With None, clients speak plain HTTP."""
    max_body_bytes: int = Field(
        16 * 1024**2, ge=1, le=2**40, description="a whole number from 1 to 2^40"
    )
    """Maximum size of a request body in bytes."""
    max_held_requests: int = Field(
        1000, ge=1, le=1_000_000, description="a whole number from 1 to 1000000"
    )
    """Maximum number of requests that wait for a replica at the same time."""
    max_held_bytes: int = Field(
        64 * 1024**2, ge=1, le=2**40, description="a whole number from 1 to 2^40"
    )
    """Maximum total size in bytes of the bodies that the forwarder holds."""
    hold_timeout_seconds: int = Field(
        300, ge=0, le=3600, description="a whole number from 0 to 3600"
    )
    """Longest time in seconds for which a request waits for a replica."""
    scales_to_zero: bool = Field(False, description="true or false")
    """Whether the service has no replicas while nobody uses it."""
    heartbeat_seconds: int = Field(10, ge=1, le=3600, description="a whole number from 1 to 3600")
    """Time in seconds between two comments that a streaming client gets before its answer."""
    policy: Literal["LeastWork", "LeastRequest"] = Field(
        "LeastWork", description="one of LeastWork, LeastRequest"
    )
    """Choice of the replica: by seconds of work, or by the number of requests."""
    ttft_limit_seconds: float | None = Field(
        None, gt=0, le=3600, allow_inf_nan=False, description="a number above 0 and up to 3600"
    )
    """Limit of the time to first token in seconds. None if the service has no such SLO."""
    drain_seconds: int = Field(5, ge=0, le=3600, description="a whole number from 0 to 3600")
    """Time in seconds that the router keeps accepting connections after SIGTERM, until the cluster
    has stopped sending clients to it."""
    drain_timeout_seconds: int = Field(
        300, ge=0, le=86_400, description="a whole number from 0 to 86400"
    )
    """Longest time in seconds, after `drain_seconds`, for which the router waits until all answers
    have ended."""
    log_level: LogLevel = "INFO"

    def environment(self) -> dict[str, str]:
        """Return the environment variables from which `from_environment` reads these settings.

        A setting with its default value has no variable.
        """
        told = self.model_dump(mode="json", exclude_defaults=True)
        told["step_prior"] = self.step_prior.model_dump_json()
        if self.client_limits is not None:
            told["client_limits"] = self.client_limits.model_dump_json(exclude_defaults=True)
        return {f"{ROUTER_PREFIX}{name.upper()}": str(it) for name, it in told.items()}
