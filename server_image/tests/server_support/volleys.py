"""Sends hurtful bodies to a server, and reports a bystander's waits and the server's memory."""

import os
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from server_support.bystander import PART, PROBE, REFUSED, Question, Wait, watching
from server_support.engine import ModelServer, documented_examples
from server_support.hurtful import MEBIBYTE, Attack, attacks

SEED = int(os.environ.get("LLMSERVICE_TEST_SEED", "1"))
SHARE = float(os.environ.get("LLMSERVICE_TEST_REQUESTS", "20")) / 2000
"""Share of the whole corpus that is sent."""

MAX_SECONDS = {PROBE: 1.0, PART: 2.0}
"""Maximum counted duration in seconds of each kind of wait, beyond the longest wait before the
attacks."""

BODY_LIMIT = 16 * MEBIBYTE
"""Maximum size of one body in bytes, which is the default of the server."""

BODIES_LIMIT = 16 * BODY_LIMIT
"""Maximum size of all bodies in memory, in bytes."""

MAX_GROWTH = 2
"""Maximum growth of the memory of the server and its engine, as a multiple of BODIES_LIMIT."""

COPIES = {"at once": 8, "in a crowd": 20, "unfinished": 20}
BASELINE_SECONDS = 3
_PATIENCE_SECONDS = 60.0
_PIECES = 10
_PACE_SECONDS = 0.05
_HELD_SECONDS = 5.0
"""Time in seconds that a client keeps a connection open on which the end of a body is missing."""
_KEPT_BYTES = 4096
TOO_LATE = b"too late"
"""Stands for the response of a server that has not answered in time."""


@dataclass(frozen=True)
class Volley:
    """A finished attack. Its times are in seconds of the monotonic clock."""

    attack: Attack
    began: float
    ended: float
    answers: tuple[bytes, ...]
    """Beginning of each answer."""

    bytes_before: tuple[int, int]
    """Resident memory in bytes of the server and of its engine before the attack."""

    bytes_peak: tuple[int, int]
    """Maximum resident memory in bytes of the server and of its engine during the attack."""

    @property
    def growth(self) -> int:
        """Number of bytes by which the two peaks exceed the memory before the attack."""
        return sum(self.bytes_peak) - sum(self.bytes_before)


class Attacker:
    """Sends attacks to one server, one after the other."""

    def __init__(self, server: ModelServer) -> None:
        self._server = server
        self._pids = (server.process.pid, server.engine_pid())

    def volley(self, attack: Attack) -> Volley:
        """Send all copies of an attack, and wait for the responses."""
        for pid in self._pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets VmHWM to the present size
        before = self.memory("VmRSS")
        began = time.monotonic()
        copies = COPIES.get(attack.delivery, 1)
        with ThreadPoolExecutor(copies) as pool:
            sent = [pool.submit(self._send, attack) for _ in range(copies)]
            answers = tuple(each.result() for each in sent)
        return Volley(attack, began, time.monotonic(), answers, before, self.memory("VmHWM"))

    def memory(self, name: str) -> tuple[int, int]:
        """Return a value of /proc/PID/status in bytes, for the server and for its engine."""
        texts = [Path(f"/proc/{pid}/status").read_text() for pid in self._pids]
        found = [re.search(rf"{name}:\s+(\d+) kB", text) for text in texts]
        server, engine = (int(each[1]) * 1024 if each else 0 for each in found)
        return server, engine

    def _send(self, attack: Attack) -> bytes:
        """Send one copy of an attack, and return the beginning of the response."""
        address = ("127.0.0.1", self._server.api_port)
        with socket.create_connection(address, timeout=_PATIENCE_SECONDS) as client:
            try:
                for part in _parts(attack, self._head(attack)):
                    client.sendall(part)
            except ConnectionError:
                pass  # the server has refused the body before its end
            except TimeoutError:
                return b"not read"
            if attack.delivery == "unfinished":
                client.settimeout(_HELD_SECONDS)
                answer = _answer(client)
                return b"left" if answer == TOO_LATE else answer
            return b"left" if attack.delivery == "broken off" else _answer(client)

    def _head(self, attack: Attack) -> bytes:
        names = {**self._server.headers, "Content-Type": attack.content_type}
        names["Content-Encoding"] = attack.encoding
        if attack.delivery == "in chunks":
            names["Transfer-Encoding"] = "chunked"
        else:
            names["Content-Length"] = str(len(attack.body))
        lines = [f"{name}: {value}" for name, value in names.items() if value]
        first = f"POST {attack.path} HTTP/1.1"
        return "\r\n".join([first, "Host: x", "Connection: close", *lines, "", ""]).encode()


def _parts(attack: Attack, head: bytes) -> Iterator[bytes]:
    """Yield the pieces of the request, cut and paced as its delivery requires."""
    yield head
    body, size = attack.body, len(attack.body)
    if attack.delivery == "broken off":
        yield body[: random.Random(size).randrange(size)]
    elif attack.delivery == "unfinished":
        yield body[:-1]
    elif attack.delivery == "slow":
        pace = threading.Event()
        for start in range(0, size, size // _PIECES + 1):
            yield body[start : start + size // _PIECES + 1]
            pace.wait(_PACE_SECONDS)
    elif attack.delivery == "in chunks":
        length = random.Random(size).choice((200, 4096, 65_536))
        yield b"".join(
            b"%x\r\n%s\r\n" % (len(part), part)
            for part in (body[at : at + length] for at in range(0, size, length))
        )
        yield b"0\r\n\r\n"
    else:
        yield body


def _answer(client: socket.socket) -> bytes:
    received = b""
    try:
        while more := client.recv(65_536):
            received = received or more[:_KEPT_BYTES]
    except ConnectionError:
        return received or b"closed"
    except TimeoutError:
        return TOO_LATE
    return received or b"closed"


def hurtful_bodies_delay_nobody(
    server: ModelServer,
    question: Question,
    folder: Path,
    *,
    bodies: int,
    forms: Sequence[str] = (),
) -> None:
    """Send bodies for every route to the server. Fail if a probe or the other client waits too
    long, or if the server's memory grows too much.

    `bodies` is the number of bodies in the whole corpus.
    """
    documented = documented_examples(server.get("/openapi.json").json()["paths"])
    attacker = Attacker(server)
    number = max(1, round(bodies * SHARE))
    pause = threading.Event()
    with watching(server, question, folder) as waits:
        pause.wait(BASELINE_SECONDS)
        resting = attacker.memory("VmRSS")
        began = time.monotonic()
        volleys = [attacker.volley(each) for each in attacks(SEED, documented, forms, number)]
    server.eventually(lambda: server.metric("llm_requests_in_flight") == 0, seconds=120)
    problems = _report(volleys, waits, began, resting)
    print(f"  memory afterwards: {_sizes(attacker.memory('VmRSS'))}")
    assert not problems, "\n".join(problems)


def _report(
    volleys: Sequence[Volley], waits: Sequence[Wait], began: float, resting: tuple[int, int]
) -> list[str]:
    """Print the figures; return the wrong responses and the figures that exceed their limits."""
    answers = Counter(_status(answer) for each in volleys for answer in each.answers)
    seconds = volleys[-1].ended - began
    print(
        f"\nseed {SEED}: {len(volleys)} bodies in {seconds:.0f} s: {dict(sorted(answers.items()))}"
    )
    refused = sum(wait.kind == REFUSED for wait in waits)
    print(f"  refused questions of the other client: {refused}")
    problems = [
        f"{each.attack} -> {answer[:600]!r}"
        for each in volleys
        for answer in each.answers
        if _status(answer)[0] in "n5tc" and not answer.startswith(b"HTTP/1.1 503")
    ]
    for kind, limit in MAX_SECONDS.items():
        of_kind = [wait for wait in waits if wait.kind == kind]
        # On a busy machine, the first wait may last longer than the time before the attacks.
        before = (wait.counted_seconds for wait in of_kind if wait.ended < began)
        base = max(before, default=BASELINE_SECONDS)
        limit += base
        slow = sorted(
            (wait for wait in of_kind if wait.ended >= began), key=lambda w: -w.counted_seconds
        )
        print(f"  {kind}: worst wait {slow[0].seconds:.2f} s, without attack {base:.2f} s")
        named: set[Attack] = set()
        for wait in slow[:200]:
            attack = _during(volleys, wait)
            if attack is not None and attack not in named and len(named) < 8:
                named.add(attack)
                print(f"    {wait.counted_seconds:.2f} s: {attack}")
            if wait.counted_seconds > limit:
                problems.append(
                    f"{kind} waited {wait.counted_seconds:.2f} s, above {limit:.2f}: {attack}"
                )
    return problems + _report_memory(volleys, resting)


def _report_memory(volleys: Sequence[Volley], resting: tuple[int, int]) -> list[str]:
    """Print the growth of the memory; return the attacks that made it grow too much."""
    print(f"  memory without attack: {_sizes(resting)}")
    one = [each for each in volleys if each.attack.delivery not in COPIES]
    many = [each for each in volleys if each.attack.delivery in COPIES]
    for what, some, limit in (
        ("one body at a time", one, BODY_LIMIT),
        ("several at once", many, BODIES_LIMIT),
    ):
        for each in sorted(some, key=lambda each: -each.growth)[:4]:
            grown = f"+{each.growth / MEBIBYTE:.0f} MiB, {each.growth / limit:.1f} x the limit"
            print(f"  {what}: {grown}: {each.attack}")
    return [
        f"memory: {_sizes(each.bytes_before)}, then {_sizes(each.bytes_peak)}: {each.attack}"
        for each in volleys
        if each.growth > MAX_GROWTH * BODIES_LIMIT
    ]


def _sizes(memory: tuple[int, int]) -> str:
    return f"{memory[0] / MEBIBYTE:.0f} MiB server, {memory[1] / MEBIBYTE:.0f} MiB engine"


def _status(answer: bytes) -> str:
    return answer[9:12].decode() if answer.startswith(b"HTTP/1.1 ") else answer.decode()[:20]


def _during(volleys: Sequence[Volley], wait: Wait) -> Attack | None:
    """Return the first attack that overlaps with a wait; None if there is none."""
    began = wait.ended - wait.seconds
    found = [each.attack for each in volleys if each.began <= wait.ended and each.ended >= began]
    return found[0] if found else None
