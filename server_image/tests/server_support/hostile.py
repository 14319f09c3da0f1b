"""Sends requests that no honest client sends, and checks the server's responses.

The requests come from three sources: schemathesis with the server's own OpenAPI document, the
examples of the documentation with some poisoned values, and raw bytes that violate HTTP. A seed
determines their mix.
"""

import copy
import http.client
import json
import random
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode

from server_support.engine import ModelServer, documented_examples
from server_support.hostile_bytes import RAW, SECRET

PATIENCE_SECONDS = 8.0
"""Time in seconds after which a hostile client disconnects, because some of the requests are valid
and take long."""

Request = tuple[str, str, bytes, Mapping[str, str]]
"""Method, path, body and headers."""

POISON: tuple[Any, ...] = (
    None,
    True,
    "",
    SECRET,
    "\ud800",
    "\x00",
    "a\r\nX-Injected: 1",
    "٣" * 3,
    "x" * 5000,
    -1,
    0,
    1,
    2**31,
    2**63,
    -(2**63) - 1,
    2**80,
    10**400,
    0.5,
    -0.0,
    1e30,
    1e308,
    float("nan"),
    float("inf"),
    [],
    {},
    [None],
    [[]],
    [""],
    [SECRET] * 300,
    [-1],
    [2**40],
    {"": None},
    {"a": {"b": {"c": []}}},
    {"type": "nothing"},
    {"regex": "(a{1,300}){1,300}"},
    {"regex": "(["},
    {"grammar": "root ::= root root | root"},
    {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
    {"json": {"type": "object", "properties": {"a": {"pattern": "(?<=a)b"}}}},
    {"choice": []},
    {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}},
    {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": []}}},
)

FIELDS = [
    "prompt",
    "messages",
    "input",
    "model",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n",
    "best_of",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "stream",
    "stream_options",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "echo",
    "suffix",
    "user",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "length_penalty",
    "min_tokens",
    "ignore_eos",
    "skip_special_tokens",
    "bad_words",
    "allowed_token_ids",
    "response_format",
    "structured_outputs",
    "guided_json",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "chat_template",
    "chat_template_kwargs",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "truncate_prompt_tokens",
    "priority",
    "request_id",
    "cache_salt",
    "kv_transfer_params",
    "vllm_xargs",
    "prompt_embeds",
    "return_token_ids",
    "metadata",
    "previous_response_id",
    "background",
    "store",
    "include",
    "text",
    "reasoning",
    "service_tier",
    "truncation",
    "instructions",
    "system",
    "thinking",
    "output_config",
    "use_beam_search",
    "mm_processor_kwargs",
    "tokens",
    "add_special_tokens",
    "return_token_strs",
    "typo",
]
"""Names of body fields, each accepted by some routes. Every other route should ignore or refuse the
field."""


@dataclass
class Findings:
    """Results of all requests."""

    sent: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def count(self, outcome: str) -> None:
        self.sent += 1
        self.statuses[outcome] = self.statuses.get(outcome, 0) + 1


class Attacker:
    """Sends hostile requests. The same number always gives the same requests."""

    def __init__(
        self, server: ModelServer, document: Any, number: int, from_schema: Sequence[Request]
    ) -> None:
        """Create an attacker. `document` is the server's OpenAPI document. The attacker sends the
        requests of `from_schema` first."""
        self._server = server
        self._random = random.Random(number)
        self._examples = documented_examples(document["paths"])
        self._from_schema = from_schema
        self.findings = Findings()

    def attack(self, requests: int) -> None:
        """Send the given number of requests."""
        for request in self._from_schema[:requests]:
            self._send(*request)
        while self.findings.sent < requests:
            if self._random.random() < 0.2:
                self._send_raw(self._random.choice(RAW)(self._random, self._key))
            else:
                self._send(*self._poisoned())

    @property
    def _key(self) -> bytes:
        return self._server.headers["Authorization"].encode()

    def _poisoned(self) -> Request:
        chance = self._random
        path = chance.choice(list(self._examples))
        body = copy.deepcopy(self._examples[path])
        for text in ("prompt", "input"):
            if text in body:
                body[text] = f"{SECRET} {chance.random()}"
        if chance.random() < 0.3:
            body["stream"] = True
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            name = chance.choice(FIELDS if chance.random() < 0.6 else list(body) or FIELDS)
            body[name] = chance.choice(POISON)
        sent = json.dumps(body).encode()
        kind = chance.random()
        if kind < 0.05:
            sent = sent[: chance.randrange(len(sent) + 1)]
        elif kind < 0.08:
            sent = sent.replace(SECRET.encode(), SECRET.encode() + b"\xff\xc0\xaf", 1)
        elif kind < 0.10:
            depth = chance.choice((50, 500, 5000, 200_000))
            sent = sent[:-1] + b', "x": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
        elif kind < 0.11:
            sent = sent.replace(SECRET.encode(), b"%s " % SECRET.encode() * 100_000)
        headers = {}
        if chance.random() < 0.3:
            headers = {chance.choice(HEADERS): chance.choice(VALUES)}
        return "POST", path, sent, headers

    def _send(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> None:
        server = self._server
        connection = http.client.HTTPConnection(
            "127.0.0.1", server.api_port, timeout=PATIENCE_SECONDS
        )
        told = f"{method} {path[:100]} {dict(headers)} {body[:400]!r}"
        try:
            connection.request(method, path, body, {**server.headers, **headers})
            response = connection.getresponse()
            received = response.read()
        except TimeoutError:
            self.findings.count("left")
            return
        except ConnectionError:
            # The server refused the request and closed the connection before the whole body was
            # sent.
            self.findings.count("closed")
            if len(body) < 1_000_000:
                self.findings.wrong.append(f"closed without an answer: {told}")
            return
        except (http.client.HTTPException, ValueError) as error:
            # A ValueError or InvalidURL means that the client cannot send the request.
            if isinstance(error, http.client.HTTPException) and not isinstance(
                error, http.client.InvalidURL
            ):
                self.findings.wrong.append(f"no HTTP: {error!r}: {told}")
            self.findings.count("unsendable")
            return
        finally:
            connection.close()
        self.findings.count(str(response.status))
        problem = _problem(response, received)
        if problem:
            self.findings.wrong.append(f"{problem}: {told} -> {received[:300]!r}")

    def _send_raw(self, parts: list[bytes]) -> None:
        """Send the parts. No response may be an internal error or have an injected header."""
        received = b""
        with socket.create_connection(("127.0.0.1", self._server.api_port), timeout=1) as client:
            try:
                for part in parts:
                    client.sendall(part)
                if self._random.random() < 0.3:
                    client.shutdown(socket.SHUT_WR)
                if self._random.random() < 0.7:
                    while len(received) < 100_000 and (more := client.recv(65536)):
                        received += more
            # A server that has refused the request may have closed the connection already; then
            # `shutdown` raises an OSError that is no ConnectionError.
            except OSError:
                pass
        self.findings.count("raw")
        for line in received.split(b"\r\n"):
            if line.startswith(b"HTTP/1.1 5") and not line.startswith(b"HTTP/1.1 503"):
                self.findings.wrong.append(f"{line!r} to {parts!r:.400}")
        if b"X-Injected" in received.split(b"\r\n\r\n")[0]:
            self.findings.wrong.append(f"a header was injected by {parts!r:.400}")


def requests_from_schema(document: Any, wanted: int) -> list[Request]:
    """Return about `wanted` requests, valid and invalid ones, spread over all operations of an
    OpenAPI document. The same arguments always give the same requests.
    """
    schema = schemathesis.openapi.from_dict(document)
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    strategies = [
        operation.as_strategy(generation_mode=mode)
        for operation in operations
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    ]
    each = max(1, wanted // len(strategies))
    return [
        _as_request(case)
        for number, strategy in enumerate(strategies)
        for case in _drawn(strategy, each, number)
    ]


def _drawn(strategy: Any, wanted: int, number: int) -> list[Any]:
    """Return up to `wanted` examples of a strategy. The seed is `number`."""
    cases: list[Any] = []

    @seed(number)
    @settings(
        max_examples=wanted,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(case: Any) -> None:
        cases.append(case)

    # A route without parameters has no invalid examples.
    with suppress(Unsatisfiable):
        collect()
    return cases


def _as_request(case: Any) -> Request:
    sent = case.as_transport_kwargs(base_url="http://server")
    path = sent["url"].removeprefix("http://server")
    body = sent.get("data")
    if body is None:
        body = json.dumps(sent.get("json")).encode() if sent.get("json") else b""
    raw = body if isinstance(body, bytes) else str(body).encode(errors="replace")
    return case.method, path.encode("ascii", "replace").decode(), raw, {}


def _problem(response: http.client.HTTPResponse, body: bytes) -> str | None:
    """Return the problem of a response, or None. No request may cause such a problem."""
    if not response.getheader("x-request-id"):
        return "no request id"
    if response.getheader("x-injected"):
        return "a header was injected"
    if response.status >= 500 and response.status != 503:
        return f"unexpected status {response.status}"
    if response.status == 503 and not response.getheader("retry-after"):
        return "no Retry-After"
    if response.status < 400:
        if b'data: {"error"' in body and b'"code":5' in body.replace(b" ", b""):
            return "a stream broke"
        return None
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return "not the one envelope"
    if not isinstance(error.get("message"), str) or not error["message"]:
        return "an error without a message"
    if "/site-packages/" in error["message"] or "Traceback" in error["message"]:
        return "an error that shows the server's inside"
    return None


HEADERS = [
    "X-Request-Id",
    "Host",
    "Content-Type",
    "Content-Encoding",
    "Accept",
    "Accept-Encoding",
    "Range",
    "Expect",
    "X-Data-Parallel-Rank",
    "X-Forwarded-For",
    "X-Forwarded-Prefix",
    "X-HTTP-Method-Override",
    "Cookie",
    "Origin",
    "Upgrade",
    "Connection",
    "TE",
    "Authorization-Info",
    "traceparent",
    "X-Session-Id",
    "Referer",
]
VALUES = (
    "",
    "a",
    "-1",
    "999999999999999999999",
    "text/plain",
    "multipart/form-data; boundary=x",
    "application/json; charset=utf-16",
    "application/x-www-form-urlencoded",
    "gzip",
    "close",
    "websocket",
    "http://other/",
    "\xe9" * 50,
    "x" * 7000,
    "%0d%0aX-Injected: 1",
    "00-ffffffffffffffffffffffffffffffff-ffffffffffffffff-01",
)


def resident_bytes(server: ModelServer) -> int:
    """Return the size in bytes of the memory that the server and its engine have written.

    A page that both share counts once.
    """
    total = 0
    for pid in (server.process.pid, server.engine_pid()):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                total += int(line.split()[1]) * 1024
    return total
