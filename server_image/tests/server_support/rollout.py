"""Runs clients that reuse their connections correctly while a server is being replaced."""

import http.client
import json
import random
import re
import threading
from collections import Counter
from dataclasses import dataclass, field

from server_support.engine import SERVED_NAME, ModelServer

PROMPT = "The sea is"


@dataclass
class Tally:
    """Results of all clients."""

    complete: int = 0
    moved: int = 0
    """Number of clients whose connection ended correctly, so that they can use another replica."""
    wrong: list[str] = field(default_factory=list)
    """Lost answers, at most one per client. They were cut off, or have a status that does not let
    the client retry."""

    def add(self, other: "Tally") -> None:
        self.complete += other.complete
        self.moved += other.moved
        self.wrong += other.wrong

    def __str__(self) -> str:
        """Return the number of clients that lost an answer, and the number for each problem."""
        ways = Counter(re.sub(r"[0-9]+", "N", problem) for problem in self.wrong)
        return "\n".join(
            [
                f"{self.complete} complete; of {self.moved + len(self.wrong)} clients "
                f"{self.moved} moved, {len(self.wrong)} lost an answer",
                *(f"  {count} x {way}" for way, count in ways.most_common()),
            ]
        )


class AnswerLost(Exception):
    """An answer is not complete. The message names the difference."""


class KeepAliveClient(threading.Thread):
    """Sends requests on one connection until the server closes it or refuses a request."""

    def __init__(
        self,
        server: ModelServer,
        tally: Tally,
        stream: bool,
        seed: int,
        path: str,
        patience_seconds: float = 120,
    ) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._tally = tally
        self._stream = stream
        self._random = random.Random(seed)
        self._path = path
        self._patience_seconds = patience_seconds
        self.start()

    def run(self) -> None:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self._server.api_port, timeout=self._patience_seconds
        )
        try:
            while self._ask(connection, tokens=self._random.randint(5, 120)):
                pass
            self._tally.moved += 1
        except Exception as error:
            # A client stops after its first lost answer, so each client counts once.
            kind = "stream" if self._stream else "plain request"
            how = "" if isinstance(error, AnswerLost) else f"{type(error).__name__}: "
            self._tally.wrong.append(f"{kind}: {how}{error}")
        finally:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection, tokens: int) -> bool:
        """Send one request, and return whether the connection may be used again.

        Raises AnswerLost for an answer that is not complete.
        """
        wanted = {
            "model": SERVED_NAME,
            "prompt": PROMPT,
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": self._stream,
        }
        if self._path == "/generate":
            del wanted["model"]
        elif self._stream:
            wanted["stream_options"] = {"include_usage": True}
        try:
            connection.request("POST", self._path, json.dumps(wanted), self._server.headers)
            response = connection.getresponse()
        except ConnectionRefusedError:
            return False
        closes = response.getheader("connection", "").lower() == "close"
        body = response.read().decode()
        if response.status == 503 and closes and response.getheader("retry-after"):
            return False
        problem = self._problem(response.status, body, tokens)
        if problem is not None:
            raise AnswerLost(problem)
        self._tally.complete += 1
        # http.client itself closes a connection after a response with "Connection: close".
        return not closes and connection.sock is not None and not _is_closed(connection)

    def _problem(self, status: int, body: str, tokens: int) -> str | None:
        """Return the difference between an answer and a complete one; None if it is complete."""
        if status != 200:
            return f"status {status}: {body[:200]}"
        if not self._stream:
            answer = json.loads(body)
            reason = (answer if self._path == "/generate" else answer["choices"][0])[
                "finish_reason"
            ]
            counted = answer["usage"]["completion_tokens"]
        else:
            events = [line[6:] for line in body.splitlines() if line.startswith("data: ")]
            if not events or events[-1] != "[DONE]":
                return f"a stream without its end: {events[-1:]}"
            pieces = [json.loads(event) for event in events[:-1]]
            reason = next(
                (
                    found
                    for piece in reversed(pieces)
                    for found in [_finish_reason(piece)]
                    if found is not None
                ),
                None,
            )
            counted = (pieces[-1].get("usage") or {}).get("completion_tokens")
        if (reason, counted) != ("length", tokens):
            return f"{counted} of {tokens} tokens, finish_reason {reason}"
        return None


def _finish_reason(piece: dict[str, object]) -> object:
    choices = piece.get("choices")
    if isinstance(choices, list):
        return choices[0]["finish_reason"] if choices else None
    return piece.get("finish_reason")


def _is_closed(connection: http.client.HTTPConnection) -> bool:
    """Return whether the server has closed the connection. Connection pools check this too."""
    import select

    readable, _, _ = select.select([connection.sock], [], [], 0)
    return bool(readable)
