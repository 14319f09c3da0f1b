"""The messages to Envoy's filter ext_proc."""

from collections.abc import Mapping, Sequence
from typing import Final

from envoy.config.core.v3.base_pb2 import HeaderValueOption
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from llmservice_operator.router.admission import Refusal
from llmservice_operator.router.envoy_names import (
    METADATA_ATTEMPT,
    METADATA_HELD,
    METADATA_KEY,
    METADATA_NAMESPACE,
)

LEAST_HELD_SECONDS: Final = 0.001
"""Shortest hold of a request, in seconds, that the replica is told."""

_OVERWRITE: Final = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD

# Messages that never change are serialized once.
CONTINUE_HEADERS: Final[bytes] = pb.ProcessingResponse(
    request_headers=pb.HeadersResponse()
).SerializeToString()
CONTINUE_RESPONSE: Final[bytes] = pb.ProcessingResponse(
    response_headers=pb.HeadersResponse()
).SerializeToString()


def wait(seconds: float) -> bytes:
    """Return the message that gives the picker more time to answer a message of Envoy.

    Envoy accepts it once for each of its own messages.
    """
    message = pb.ProcessingResponse()
    message.override_message_timeout.FromMilliseconds(int(seconds * 1000))
    return bytes(message.SerializeToString())


def choose(
    addresses: Sequence[str], *, has_body: bool, has_second_attempt: bool, held_seconds: float
) -> bytes:
    """Return the message that sends a request to the first address, and a retry to the second.

    With `has_second_attempt`, the first replica learns that another one gets the request after a
    refusal.
    """
    message = pb.ProcessingResponse()
    part = message.request_body if has_body else message.request_headers
    part.response.SetInParent()
    values = {METADATA_KEY: ",".join(addresses)}
    if has_second_attempt:
        values[METADATA_ATTEMPT] = "1"
    if held_seconds >= LEAST_HELD_SECONDS:
        values[METADATA_HELD] = str(round(1000 * held_seconds))
    message.dynamic_metadata[METADATA_NAMESPACE] = values
    return bytes(message.SerializeToString())


def add_headers(headers: Mapping[str, str]) -> bytes:
    """Return the message that adds headers to the response of a replica."""
    message = pb.ProcessingResponse()
    message.response_headers.SetInParent()
    _set(message.response_headers.response.header_mutation, headers)
    return bytes(message.SerializeToString())


def refuse(refusal: Refusal) -> bytes:
    """Return the message that ends a request with a refusal.

    Envoy puts the refusal's text into OpenAI's envelope.
    """
    message = pb.ProcessingResponse()
    response = message.immediate_response
    response.status.code = refusal.status
    response.body = refusal.message.encode()
    response.details = f"picker_{refusal.status}"
    _set(response.headers, refusal.headers)
    return bytes(message.SerializeToString())


def _set(mutation: pb.HeaderMutation, headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        option = mutation.set_headers.add()
        option.header.key, option.header.raw_value = name, value.encode()
        option.append_action = _OVERWRITE
