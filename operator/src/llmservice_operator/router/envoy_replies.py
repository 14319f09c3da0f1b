"""Builds the responses that Envoy itself sends."""

from http import HTTPStatus

from llmservice_operator.router.envoy_names import BODY_SECONDS
from llmservice_operator.router.envoy_parts import Config
from llmservice_operator.router_settings import RouterSettings


def local_replies(settings: RouterSettings) -> Config:
    """Return the form of the responses that Envoy itself sends, including the picker's refusals."""
    status, size = _status, settings.max_body_bytes
    return {
        "mappers": [
            reply(flags("UC", "UF", "URX"), 502, "no replica could answer; send it again"),
            reply(flags("UH"), 503, "no replica is available; send the request again later"),
            reply(flags("OM", "UO"), 503, "the router has too many requests; send it again later"),
            reply(status(413), 413, f"the body is larger than {size} bytes; send a shorter one"),
            reply(
                status(408), 408, f"the body did not arrive within {BODY_SECONDS} s; send it faster"
            ),
            reply(status(431), 431, "the headers are too long; send fewer or shorter ones"),
            reply(status(403), 403, "the router serves no other protocol; send no header Upgrade"),
            *(reply(status(code), code, None) for code in (400, 401, 404, 429, 502, 503)),
        ]
    }


def reply(
    when: Config, code: int, message: str | None, *, headers: dict[str, str] | None = None
) -> Config:
    """Return a rule that puts a reply into OpenAI's envelope, as the model server does.

    If `message` is None, the text that the picker or Envoy has written is the message.
    """
    kind = HTTPStatus(code).phrase.replace(" ", "") + ("" if code >= 500 else "Error")
    added = {"x-request-id": "%REQ(X-REQUEST-ID)%", **(headers or {})}
    if code == HTTPStatus.SERVICE_UNAVAILABLE:
        added["retry-after"] = "5"
    error = {"message": message or "%LOCAL_REPLY_BODY%", "type": kind, "param": None, "code": code}
    return {
        "filter": when,
        "status_code": code,
        "headers_to_add": [
            {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for key, value in added.items()
        ],
        "body_format_override": {"json_format": {"error": error}},
    }


def flags(*names: str) -> Config:
    return {"response_flag_filter": {"flags": list(names)}}


def _status(code: int) -> Config:
    value = {"default_value": code, "runtime_key": "router.unused"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}
