"""Builds the filters for requests, of which one asks the picker for a replica."""

from typing import Final

from llmservice_operator.names import HELD_HEADER, STORED_HEADER
from llmservice_operator.router.envoy_names import (
    CLUSTER_PICKERS,
    FORWARDED_METADATA,
    METADATA_NAMESPACE,
    SILENCE_SECONDS,
    SMALL_BODY_BYTES,
)
from llmservice_operator.router.envoy_parts import TYPES, Config, typed
from llmservice_operator.router_settings import RouterSettings

PICKER_FILTER: Final = "envoy.filters.http.ext_proc"
_RECEIVED_METADATA: Final = {"receiving_namespaces": {"untyped": [METADATA_NAMESPACE]}}
"""Namespaces of the metadata that Envoy accepts from the picker. It drops others silently."""


def filters(settings: RouterSettings, *, forwarded: bool = False) -> list[Config]:
    buffer = typed(
        "envoy.filters.http.buffer",
        "filters.http.buffer.v3.Buffer",
        max_request_bytes=SMALL_BODY_BYTES + 1,
    )
    router = typed(
        "envoy.filters.http.router", "filters.http.router.v3.Router", suppress_envoy_headers=True
    )
    # The route of small bodies enables the buffer.
    return [
        _picker_filter(settings, forwarded=forwarded),
        {**buffer, "disabled": True},
        router,
    ]


def _picker_filter(settings: RouterSettings, *, forwarded: bool) -> Config:
    service: Config = {
        "envoy_grpc": {"cluster_name": CLUSTER_PICKERS},
        "timeout": "0s",
        # If a picker has ended, the call goes to another one.
        "retry_policy": {
            "num_retries": 2,
            "retry_on": "connect-failure,refused-stream,reset,unavailable",
            "retry_back_off": {"base_interval": "0.02s", "max_interval": "0.1s"},
        },
    }
    if forwarded:
        service["initial_metadata"] = [{"key": FORWARDED_METADATA, "value": "1"}]
    needed = (
        *(":method", ":path", ":status", "authorization", "x-api-key", HELD_HEADER),
        *("content-length", "origin", "access-control-request-method", STORED_HEADER),
    )
    return typed(
        PICKER_FILTER,
        "filters.http.ext_proc.v3.ExternalProcessor",
        grpc_service=service,
        processing_mode=_processing_mode(),
        # These attributes give the picker the headers of a request with a small body. The only
        # message about such a request is the one with its body.
        request_attributes=[
            f"request.headers['{name}']"
            for name in (":path", "authorization", "x-api-key", HELD_HEADER)
        ],
        response_attributes=[
            "response.flags",
            "upstream.address",
            "upstream.request_attempt_count",
        ],
        forward_rules={"allowed_headers": {"patterns": [{"exact": name} for name in needed]}},
        # A picker that hangs delays a request by 1 s. A picker that holds a request extends this
        # time.
        message_timeout="1s",
        max_message_timeout=f"{settings.hold_timeout_seconds + SILENCE_SECONDS}s",
        failure_mode_allow=True,
        metadata_options=_RECEIVED_METADATA,
    )


def picker_options(*, request_header_mode: str) -> Config:
    # Only the options of routes ask for the response's headers. If the filter asked for them, a
    # client whose request is not valid HTTP would get no response: Envoy would close the connection
    # before the picker has answered.
    return {
        "@type": f"{TYPES}extensions.filters.http.ext_proc.v3.ExtProcPerRoute",
        "overrides": {
            "processing_mode": _processing_mode(
                request_header_mode=request_header_mode,
                # The response's headers tell the picker that the replica has computed the prompt.
                response_header_mode="SEND",
                # Otherwise, Envoy would end the call after the response's headers. The end of the
                # call tells the picker that the request has ended.
                response_trailer_mode="SEND",
            ),
            # Overrides without this option drop the metadata, even if the filter itself has the
            # option.
            "metadata_options": _RECEIVED_METADATA,
        },
    }


def _processing_mode(**modes: str) -> Config:
    return {
        "request_header_mode": "SEND",
        "response_header_mode": "SKIP",
        "request_body_mode": "BUFFERED_PARTIAL",
        "response_body_mode": "NONE",
        "request_trailer_mode": "SKIP",
        "response_trailer_mode": "SKIP",
        **modes,
    }


def body_limit(settings: RouterSettings) -> Config:
    # This filter refuses a body by its announced length before a byte is read, even if no picker
    # runs.
    return typed(
        "envoy.filters.http.body_size_limit",
        "filters.http.body_size_limit.v3.BodySizeLimit",
        max_request_bytes=settings.max_body_bytes,
    )
