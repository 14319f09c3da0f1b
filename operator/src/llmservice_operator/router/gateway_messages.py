"""The messages to the Envoy of a Gateway, in the Endpoint Picker Protocol.

Unlike the router's own Envoy, this one expects every part of a request and of its answer back
(FULL_DUPLEX_STREAMED), and puts no refusal into OpenAI's envelope.
"""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from envoy.config.core.v3.base_pb2 import HeaderValueOption
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from llmservice_operator.names import ATTEMPT_HEADER, HELD_HEADER
from llmservice_operator.router.admission import Refusal
from llmservice_operator.router.messages import LEAST_HELD_SECONDS

DESTINATION: Final = "x-gateway-destination-endpoint"
"""Header, and key of the metadata, with the chosen addresses in their order."""
DESTINATION_NAMESPACE: Final = "envoy.lb"
SERVED: Final = "x-gateway-destination-endpoint-served"
"""Key of the metadata with the address that has answered."""
SUBSET: Final = "x-gateway-destination-endpoint-subset"
SUBSET_NAMESPACE: Final = "envoy.lb.subset_hint"
"""Key and namespace of the metadata with the only addresses that may be chosen."""
RETRY_AFTER_SECONDS: Final = 5

CONTINUE_REQUEST_TRAILERS: Final[bytes] = pb.ProcessingResponse(
    request_trailers=pb.TrailersResponse()
).SerializeToString()
CONTINUE_RESPONSE_TRAILERS: Final[bytes] = pb.ProcessingResponse(
    response_trailers=pb.TrailersResponse()
).SerializeToString()
CONTINUE_RESPONSE_BODY: Final[bytes] = pb.ProcessingResponse(
    response_body=pb.BodyResponse()
).SerializeToString()


def choose_destination(addresses: Sequence[str], held_seconds: float) -> bytes:
    """Return the answer to a request's headers. A retry goes to the second address.

    The header and the metadata have the same value, because each Gateway reads one of them.
    """
    message = pb.ProcessingResponse()
    common = message.request_headers.response
    # Only this picker may set these headers, which a client can also send.
    common.header_mutation.remove_headers.extend((HELD_HEADER, ATTEMPT_HEADER))
    headers = {DESTINATION: ",".join(addresses)}
    if held_seconds >= LEAST_HELD_SECONDS:
        headers[HELD_HEADER] = str(round(1000 * held_seconds))
    for name, value in headers.items():
        option = common.header_mutation.set_headers.add()
        option.append_action = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        option.header.key, option.header.raw_value = name, value.encode()
    common.clear_route_cache = True
    message.dynamic_metadata[DESTINATION_NAMESPACE] = {DESTINATION: headers[DESTINATION]}
    return bytes(message.SerializeToString())


def pass_request_body(content: bytes, *, is_last: bool) -> bytes:
    """Return the message that passes a part of a request's body on."""
    message = pb.ProcessingResponse()
    streamed = message.request_body.response.body_mutation.streamed_response
    streamed.body, streamed.end_of_stream = content, is_last
    return bytes(message.SerializeToString())


def pass_response_body(content: bytes, *, is_last: bool) -> bytes:
    """Return the message that passes a part of an answer on."""
    message = pb.ProcessingResponse()
    streamed = message.response_body.response.body_mutation.streamed_response
    streamed.body, streamed.end_of_stream = content, is_last
    return bytes(message.SerializeToString())


def refuse_in_full(refusal: Refusal) -> bytes:
    """Return the message that ends a request with a refusal in OpenAI's envelope."""
    kind = HTTPStatus(refusal.status).phrase.replace(" ", "")
    error = {
        "message": refusal.message,
        "type": kind if refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR else f"{kind}Error",
        "param": None,
        "code": refusal.status,
    }
    headers: dict[str, str] = {"content-type": "application/json", **refusal.headers}
    if refusal.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    message = pb.ProcessingResponse()
    response = message.immediate_response
    response.status.code = refusal.status
    response.body = json.dumps({"error": error}).encode()
    response.details = f"picker_{refusal.status}"
    for name, value in headers.items():
        header = response.headers.set_headers.add().header
        header.key, header.raw_value = name, value.encode()
    return bytes(message.SerializeToString())


def refusal_of(message: pb.ProcessingResponse) -> Refusal:
    """Return the refusal in a message of `refuse_in_full`."""
    response = message.immediate_response
    headers = {each.header.key: each.header.raw_value for each in response.headers.set_headers}
    return Refusal(
        response.status.code,
        json.loads(response.body)["error"]["message"],
        "refused_by_first",
        {name: value.decode() for name, value in headers.items()},
    )


def subset_of(message: pb.ProcessingRequest) -> frozenset[str] | None:
    """Return the only addresses that may be chosen; None if the Gateway names none."""
    fields = _metadata(message, SUBSET_NAMESPACE)
    if SUBSET not in fields:
        return None
    value = fields[SUBSET]
    if value.WhichOneof("kind") == "list_value":
        return frozenset(each.string_value for each in value.list_value.values)
    return frozenset(filter(None, (each.strip() for each in value.string_value.split(","))))


def served_of(message: pb.ProcessingRequest) -> str:
    """Return the address that has answered; empty if the Gateway does not tell it."""
    fields = _metadata(message, DESTINATION_NAMESPACE)
    return fields[SERVED].string_value if SERVED in fields else ""


def _metadata(message: pb.ProcessingRequest, namespace: str) -> Mapping[str, Any]:
    known = message.metadata_context.filter_metadata
    return known[namespace].fields if namespace in known else {}
