"""Tests repeated kills of the operator while services are made, changed and deleted."""

import random
from collections.abc import Callable
from typing import Any

from llmservice_operator import names
from llmservice_operator.kinds import LLMSERVICES
from operator_support.fault_flows import (
    SERVED_KINDS,
    children_in,
    is_observed,
    owners_are_alive,
)
from operator_support.fault_sample import IS_LONG, SEED
from operator_support.processes import (
    Api,
    OperatorProcess,
    free_the_lease,
    make_service,
    until_settled,
)
from shared_support.waiting import eventually, holds_for

KILLS = 200 if IS_LONG else 2
SERVICES = 50 if IS_LONG else 3
CHANGES = 20 if IS_LONG else 4
"""Number of changes of services between two kills."""
LONGEST_LIFE_SECONDS = 2.0
"""Maximum time in seconds between the moment an operator begins to lead and its kill."""
WITHIN_SECONDS = 30.0
"""Time limit in seconds until all objects are as expected after the last kill."""

Start = Callable[..., OperatorProcess]


class Churn:
    """Makes, changes and deletes services at random, and records the children that they had."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.specs: dict[str, dict[str, Any]] = {}
        self._api = api
        self._namespace = namespace
        self._draw = random.Random(SEED)
        self._uids: dict[tuple[str, str, str], str] = {}

    def change(self) -> None:
        name = f"llm-{self._draw.randrange(SERVICES)}"
        spec = {
            "replicas": self._draw.choice((2, 3)),
            "engine": {"maxModelLen": self._draw.choice((128, 256))},
        }
        if name not in self.specs:
            self._api.create(LLMSERVICES, make_service(name, self._namespace, **spec))
        elif self._draw.random() < 0.1:
            self._api.delete(LLMSERVICES, self._namespace, name)
            del self.specs[name]
            return
        else:
            self._api.patch(LLMSERVICES, self._namespace, name, {"spec": spec})
        self.specs[name] = spec

    def check_nothing_was_made_twice(self) -> None:
        """Check that no child was created anew while its service existed."""
        for kind in SERVED_KINDS:
            found = self._api.list_all(kind, self._namespace, labelSelector=names.CHILD_SELECTOR)
            for live in found:
                metadata = live["metadata"]
                for owner in metadata.get("ownerReferences", ()):
                    same = kind.kind, metadata["name"], owner["uid"]
                    assert self._uids.setdefault(same, metadata["uid"]) == metadata["uid"], same


def test_an_operator_killed_again_and_again_makes_no_child_twice_and_the_last_one_completes_all(
    api: Api, start: Start, namespaces: Callable[[], str]
) -> None:
    namespace, other_namespace = namespaces(), namespaces()
    churn, draw = Churn(api, namespace), random.Random(SEED)
    for number in range(KILLS):
        with start(namespace) as operator:
            operator.until_leading()
            for _ in range(CHANGES):
                churn.change()
            holds_for(draw.uniform(0, LONGEST_LIFE_SECONDS), operator.is_running)
            operator.kill()
        churn.check_nothing_was_made_twice()
        free_the_lease(api, namespace)
        print(f"kill {number + 1}: {len(churn.specs)} services")
    with start(other_namespace) as undisturbed:
        undisturbed.until_leading()
        for name, spec in churn.specs.items():
            api.create(LLMSERVICES, make_service(name, other_namespace, **spec))
        eventually(lambda: is_observed(api, other_namespace))
        until_settled(undisturbed)
    expected = children_in(api, other_namespace)
    assert len(expected) >= len(churn.specs)
    with start(namespace) as last:
        last.until_leading()

        # The garbage collector may take some time.
        eventually(lambda: owners_are_alive(api, namespace))

        def as_expected() -> bool:
            assert children_in(api, namespace) == expected
            return is_observed(api, namespace)

        eventually(as_expected, WITHIN_SECONDS)
        until_settled(last)
        churn.check_nothing_was_made_twice()
