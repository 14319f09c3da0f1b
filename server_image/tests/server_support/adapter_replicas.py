"""Runs replicas and their clients, and changes adapters as the operator and the kubelet do."""

import itertools
import random
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from llmservice_operator.desired.adapters import AdapterList, ListedAdapter, next_list
from llmservice_operator.engine_metrics import UsageReport
from server_support.adapters import ADAPTER_FLAGS, answer
from server_support.engine import SERVED_NAME, ModelServer, flags_for, running_server
from server_support.preloaded import Preloaded
from shared_support.waiting import eventually

TOKENS = 4
PROMPTS = ("The sea is", "Once upon a time", "In the morning", "My favourite dish is")
LATER_SECONDS = 0.5
"""Delay in seconds between writing a list for the first replica and writing it for the second."""
PAUSE_SECONDS = 0.05
"""Time in seconds between two requests of a client. Without this pause, the clients would take the
CPU from a replica that starts."""


@dataclass(frozen=True)
class Answer:
    model: str
    prompt: str
    text: str
    asked_at: float
    answered_at: float


@dataclass
class Replicas:
    """Two replicas, with the answers of all requests and the adapters that clients can use."""

    python: Preloaded
    model: Path
    folder: Path
    ready: dict[str, ModelServer] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    served: tuple[ListedAdapter, ...] = ()
    stopping: threading.Event = field(default_factory=threading.Event)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    _asking: Counter[str] = field(default_factory=Counter)
    _starts: dict[str, ExitStack] = field(default_factory=dict)

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def start(self, name: str) -> None:
        stack = self._starts[name] = ExitStack()
        server = stack.enter_context(
            running_server(
                self.python,
                self.folder / f"{name}{next(self._numbers)}",
                *flags_for(self.model),
                *ADAPTER_FLAGS,
                LLMSERVICE_ADAPTERS_FILE=str(self.file(name)),
                HF_HOME=str(self.folder / f"{name}-hf"),
            )
        )
        server.wait_until_ready()
        self.ready[name] = server

    def kill(self, name: str) -> None:
        """Kill a replica after its last request has ended, so that no client loses an answer."""
        del self.ready[name]
        eventually(lambda: not self._asking[name], 60)
        self._starts.pop(name).close()

    def close(self) -> None:
        self.stopping.set()
        for stack in self._starts.values():
            stack.close()

    def write(self, listed: AdapterList) -> None:
        """Write the list of each replica, one after the other."""
        for name in ("a", "b"):
            new = self.file(name).with_suffix(".new")
            new.write_text(listed.render())
            new.replace(self.file(name))
            time.sleep(LATER_SECONDS)

    def change(self, *wanted: ListedAdapter) -> None:
        """Change the lists as the operator does, until clients can use all the wanted adapters."""
        self.write(AdapterList(wanted, self.served))
        while self.served != wanted:
            listed = next_list(wanted, self.served, map(holdings, self.ready.values()))
            assert listed.served is not None
            if listed.served != self.served:
                self.served = listed.served
                self.write(listed)
            time.sleep(0.1)

    def ask(self, chance: random.Random) -> None:
        model = chance.choice((SERVED_NAME, "one", "two"))
        name = chance.choice(list(self.ready))
        self._asking[name] += 1
        try:
            server = self.ready.get(name)
            if server is None:
                return
            began = time.monotonic()
            prompt = chance.choice(PROMPTS)
            text = answer(server, model, prompt, TOKENS)
            self.answers.append(Answer(model, prompt, text, began, time.monotonic()))
        except Exception as error:
            self.failures.append(f"{model} on {name}: {error}")
        finally:
            self._asking[name] -= 1

    def client(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.stopping.wait(PAUSE_SECONDS):
            self.ask(chance)

    def wait_for_answers(self, count: int) -> None:
        eventually(lambda: len(self.answers) >= count or bool(self.failures), 600)


def holdings(server: ModelServer) -> frozenset[ListedAdapter]:
    """Return the adapters that a replica reports as loaded, as the operator reads them."""
    report = UsageReport.model_validate_json(server.probe("/autoscale").body)
    return frozenset(
        ListedAdapter(it.name, it.source, it.revision)
        for it in report.adapters or ()
        if it.state == "loaded"
    )


def known_answers(server: ModelServer, model: str) -> dict[tuple[str, str], str]:
    return {(model, prompt): answer(server, model, prompt, TOKENS) for prompt in PROMPTS}
