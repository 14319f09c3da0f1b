"""Tests two replicas whose adapters change under load. One replica is killed and restarted.

The test writes the list of each replica as the operator and the kubelet do. The operator's own
function selects the adapters for clients, and the second replica gets every change later.
LLMSERVICE_TEST_REQUESTS is the minimum number of responses. `make test-serving-long PART=adapters`
sets a larger number.
"""

import os
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from llmservice_operator.desired.adapters import AdapterList, ListedAdapter
from server_support.adapter_replicas import Answer, Replicas, known_answers
from server_support.adapters import write_adapter
from server_support.engine import SERVED_NAME
from server_support.preloaded import Preloaded

ANSWERS = int(os.environ.get("LLMSERVICE_TEST_REQUESTS", "150"))
CLIENTS = 4
FOLLOWED_SECONDS = 3.0
"""Time in seconds after which a replica has applied a changed list. The replica reads the list once
a second."""


def test_no_client_gets_another_adapter_while_one_changes_and_a_replica_is_killed(
    preloaded: Preloaded, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # The path of the fixture `tmp_path` is too long here, because the path of a Unix socket has a
    # maximum length.
    tmp_path = tmp_path_factory.mktemp("pair")
    sources = [str(write_adapter(tmp_path / f"v{n}", tiny_model, n)) for n in range(3)]
    one, two = ListedAdapter("one", sources[0]), ListedAdapter("two", sources[1])
    changed = ListedAdapter("one", sources[2])
    replicas = Replicas(preloaded, tiny_model, tmp_path, served=(one, two))
    replicas.write(AdapterList((one, two), (one, two)))
    clients = [threading.Thread(target=replicas.client, args=(seed,)) for seed in range(CLIENTS)]
    try:
        for name in ("a", "b"):
            replicas.start(name)
        first = replicas.ready["a"]
        before = {
            key: text
            for model in (SERVED_NAME, "one", "two")
            for key, text in known_answers(first, model).items()
        }
        for client in clients:
            client.start()

        replicas.wait_for_answers(ANSWERS // 4)
        replicas.kill("b")
        replicas.start("b")
        replicas.wait_for_answers(len(replicas.answers) + ANSWERS // 4)
        changed_from = time.monotonic()
        replicas.change(changed, two)
        changed_until = time.monotonic() + FOLLOWED_SECONDS
        replicas.wait_for_answers(max(ANSWERS, len(replicas.answers) + ANSWERS // 4))
        replicas.stopping.set()
        for client in clients:
            client.join()

        assert replicas.failures == []
        after = known_answers(replicas.ready["b"], "one")
        assert all(before[key] != text for key, text in after.items())
        change = (changed_from, changed_until)
        wrong = [it for it in replicas.answers if it.text not in allowed(it, before, after, change)]
        counted = Counter(it.model for it in replicas.answers)
        print(f"{len(replicas.answers)} answers {dict(counted)}, {len(wrong)} of another adapter")
        assert wrong == []
        assert len(replicas.answers) >= ANSWERS
        assert first is replicas.ready["a"]
        assert all(server.process.poll() is None for server in replicas.ready.values())
    finally:
        replicas.close()


def allowed(
    it: Answer,
    before: dict[tuple[str, str], str],
    after: dict[tuple[str, str], str],
    change: tuple[float, float],
) -> set[str]:
    """Return the correct answers to a request.

    While one adapter replaces the other, the answers of both are correct.
    """
    key = (it.model, it.prompt)
    right = set()
    if it.model != "one" or it.asked_at < change[1]:
        right.add(before[key])
    if it.model == "one" and it.answered_at > change[0]:
        right.add(after[key])
    return right
