"""Tests that the cache recovers from lost, repeated and late events, and when a list replaces them.

The reflector, the cache and the audit are real. The API server is in memory, because a real one
would only take more time.
"""

import asyncio
import random
from typing import Any

import pytest

from llmservice_operator.cluster import Cache, Key, reflector
from llmservice_operator.cluster.watching import DELETED, LISTED
from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES, Kind
from operator_support.fault_sample import IS_LONG, SEED
from operator_support.reflecting import REQUIRED, World, service
from shared_support.waiting import eventually_in_loop

RUNS = 1000 if IS_LONG else 100
AT_ONCE = 50
CHANGES = 30
RELISTS = 100
AUDIT_SECONDS = 0.05
SERVICES = ("one", "other")

View = dict[tuple[str, str], tuple[str, int]]
"""Uid and version of each object, by kind and name."""


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "RESTART_BACKOFF_SECONDS", (0.01,))
    monkeypatch.setattr(reflector, "AUDIT_GRACE_SECONDS", 0.01)


class Run:
    """Random changes of services and their children, whose events may be lost, repeated or late."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.world = World()
        self.version = 0
        self.made = 0
        self.passed = 0
        """Number of the enqueued services that a worker has taken."""
        self.acted: dict[Key, View] = {}
        """The cache as the last pass over each service saw it."""
        self.late: list[tuple[str, dict[str, Any]]] = []

    def change(self) -> tuple[str, dict[str, Any]]:
        """Make, change or delete an object; return its event."""
        kind, name = self.draw.choice(REQUIRED), self.draw.choice(SERVICES)
        objects = self.world.objects.setdefault(kind, [])
        live = next((each for each in objects if each["metadata"]["name"] == name), None)
        self.version += 1
        if live is None:
            self.made += 1
            made = an_object(kind, name, self.made, self.version)
            objects.append(made)
            return "ADDED", made
        metadata = {**live["metadata"], "resourceVersion": str(self.version)}
        objects.remove(live)
        if self.draw.random() < 0.3:
            return DELETED, {**live, "metadata": metadata}
        objects.append({**live, "metadata": metadata})
        return "MODIFIED", objects[-1]

    def deliver(self, type_: str, manifest: dict[str, Any]) -> None:
        """Deliver an event. A tenth of all events is lost, another tenth is repeated, and another
        tenth is withheld.
        """
        match self.draw.choices(("lost", "twice", "late", "as it is"), (1, 1, 1, 7))[0]:
            case "lost":
                pass
            case "late":
                self.late.append((type_, manifest))
            case how:
                for _ in range(2 if how == "twice" else 1):
                    self.world.tell(type_, manifest)
        if self.late and self.draw.random() < 0.3:
            self.world.tell(*self.late.pop(self.draw.randrange(len(self.late))))

    def work(self) -> None:
        """Do a pass over every service that was enqueued since the last call."""
        for key in self.world.enqueued[self.passed :]:
            self.acted[key] = view(self.world.cache, key)
        self.passed = len(self.world.enqueued)

    def truth(self) -> Cache:
        cache = Cache()
        for kind in REQUIRED:
            for manifest in self.world.objects.get(kind, []):
                cache.observe(manifest)
        return cache

    async def until_right(self) -> None:
        truth = self.truth()

        def is_right() -> bool:
            self.work()
            seen = {name: view(self.world.cache, ("team", name)) for name in SERVICES}
            return seen == {name: view(truth, ("team", name)) for name in SERVICES}

        await eventually_in_loop(is_right)
        self.work()
        for key, seen in self.acted.items():
            assert seen == view(truth, key), "the last pass saw another state than the last"


def an_object(kind: Kind, name: str, uid: int, version: int) -> dict[str, Any]:
    owner = {"apiVersion": LLMSERVICES.api_version, "kind": LLMSERVICES.kind, "name": name}
    references = [] if kind is LLMSERVICES else [{**owner, "uid": "any", "controller": True}]
    manifest = service(name, version, uid=str(uid), ownerReferences=references)
    return {**manifest, "apiVersion": kind.api_version, "kind": kind.kind}


def view(cache: Cache, key: Key) -> View:
    found = (*cache.owned(key, LLMSERVICES), *cache.owned(key, DEPLOYMENTS))
    return {
        (each["kind"], each["metadata"]["name"]): (
            each["metadata"]["uid"],
            int(each["metadata"]["resourceVersion"]),
        )
        for each in found
    }


async def test_whatever_is_lost_repeated_or_late_the_last_pass_sees_the_last_state() -> None:
    async def run(seed: int) -> None:
        run = Run(seed)
        async with run.world.reflecting(audit_seconds=AUDIT_SECONDS):
            await run.world.until_watching()
            for _ in range(CHANGES):
                run.deliver(*run.change())
                if run.draw.random() < 0.3:
                    run.work()
            await run.until_right()
            # These withheld events are outdated now.
            for each in run.late:
                run.world.tell(*each)
            await run.until_right()

    for first in range(SEED, SEED + RUNS, AT_ONCE):
        done = (run(seed) for seed in range(first, first + AT_ONCE))
        for seed, error in enumerate(await asyncio.gather(*done, return_exceptions=True), first):
            assert error is None, f"seed {seed}: {error!r}"


async def test_after_each_of_a_hundred_lists_in_place_of_events_the_cache_is_right_again() -> None:
    run = Run(SEED)
    async with run.world.reflecting(audit_seconds=AUDIT_SECONDS):
        await run.world.until_watching()
        for _ in range(RELISTS):
            for _ in range(run.draw.randrange(1, 4)):
                run.change()  # without an event; the list below replaces the events
            for kind in REQUIRED:
                for manifest in run.world.objects.get(kind, []):
                    run.world.tell(LISTED, manifest)
            await run.until_right()
            known = [run.world.cache.count(kind) for kind in REQUIRED]
            assert known == [len(run.world.objects.get(kind, [])) for kind in REQUIRED]
