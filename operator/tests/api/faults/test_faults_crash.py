"""Tests that the next operator completes a change if an operator was killed before or after a
write.
"""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from operator_support.crash_flows import FLOWS, Flow, serve, still_served
from operator_support.fault_flows import Crash, children_in, is_observed, owners_are_alive
from operator_support.fault_proxy import FaultProxy, fault_proxy
from operator_support.fault_sample import IS_LONG, sampled
from operator_support.forked import ForkedOperator
from operator_support.processes import Api, OperatorProcess, free_the_lease, until_settled
from shared_support.waiting import eventually

WITHIN_SECONDS = 30.0
COLLECTED_WITHIN_SECONDS = 60.0
"""Time limit in seconds. The garbage collector looks for new kinds every 30 s."""
AT_ONCE = 8 if IS_LONG else 1
"""Number of concurrent kills, each in its own namespace, with its own proxy and operators."""


@dataclass
class Scene:
    """A namespace whose operators reach the API server through their own proxy."""

    api: Api
    namespace: str
    folder: Path
    proxy: FaultProxy
    started: list[OperatorProcess] = field(default_factory=list)
    served: frozenset[str] = frozenset()
    """The pods that were ready when the change began."""
    writes_before: int = 0
    """Number of writes before the change began."""

    def start(self) -> OperatorProcess:
        operator = ForkedOperator(
            self.folder / f"operator-{len(self.started)}.log",
            self.namespace,
            WATCH_NAMESPACES=self.namespace,
            KUBECONFIG=self.proxy.kubeconfig(self.folder),
        )
        self.started.append(operator)
        return operator.until_leading()

    def begin(self, operator: OperatorProcess, flow: Flow) -> None:
        """Do the step before the change, and make the service's pods ready."""
        flow.before(self.api, self.namespace)
        # On a busy machine, two writes of one pass may be a second apart.
        eventually(lambda: is_observed(self.api, self.namespace))
        self.served = serve(self.api, self.namespace)
        until_settled(operator)
        self.writes_before = len(self.proxy.writes())

    def writes(self) -> int:
        """Count the writes since the change began."""
        return len(self.proxy.writes()) - self.writes_before

    def outcome(self) -> dict[str, Any]:
        """Return the children, the deleted objects, and the number of pods that still serve."""
        deleted = [
            each.path.replace(self.namespace, "the-namespace")
            for each in self.proxy.writes()[self.writes_before :]
            if each.method == "DELETE" and each.status == 200
        ]
        return {
            "children": children_in(self.api, self.namespace),
            "deleted": deleted,
            "still served": still_served(self.api, self.namespace, self.served),
        }

    def is_told(self) -> bool:
        return is_observed(self.api, self.namespace) and owners_are_alive(self.api, self.namespace)


@pytest.fixture
def scenes(
    api: Api, namespaces: Callable[[], str], tmp_path: Path
) -> Callable[[], AbstractContextManager[Scene]]:
    """Make a scene at each call."""

    @contextmanager
    def make() -> Iterator[Scene]:
        namespace = namespaces()
        folder = tmp_path / namespace
        folder.mkdir()
        with fault_proxy() as proxy:
            scene = Scene(Api(), namespace, folder, proxy)
            try:
                yield scene
            except BaseException:
                for each in scene.started:
                    print(f"{each.log}:\n{each.log.read_text()[-4000:]}")
                raise
            finally:
                for each in scene.started:
                    if each.is_running():
                        each.kill()

    return make


def undisturbed(scene: Scene, flow: Flow) -> tuple[dict[str, Any], int]:
    """Return the outcome of the flow, and the number of writes that it takes."""
    with scene.start() as operator:
        scene.begin(operator, flow)
        flow.during(scene.api, scene.namespace)
        eventually(scene.is_told, WITHIN_SECONDS)
        until_settled(operator)
        writes = scene.writes()
        if flow.is_deleted:
            flow.end(scene.api, scene.namespace)
            eventually(lambda: not scene.outcome()["children"], COLLECTED_WITHIN_SECONDS)
        return scene.outcome(), writes


def killed(
    scene: Scene, flow: Flow, expected: dict[str, Any], number: int, is_after: bool, told: str
) -> bool:
    """Kill the operator at a write, and check that the next operator completes the change.

    Return whether the write took place. Two writes of a status may have become one.
    """
    with scene.start() as first:
        scene.begin(first, flow)
        crash = Crash(
            scene.proxy,
            first,
            number,
            is_after,
            lambda: flow.end(scene.api, scene.namespace),
        )
        crash.arm()
        flow.during(scene.api, scene.namespace)
        crash.until_killed()
        assert crash.reached <= (number if is_after else number - 1)
    free_the_lease(scene.api, scene.namespace)
    with scene.start() as second:

        def as_expected() -> bool:
            assert scene.outcome() == expected
            return scene.is_told()

        within = COLLECTED_WITHIN_SECONDS if flow.is_deleted else WITHIN_SECONDS
        eventually(as_expected, within, told)
        until_settled(second)
        assert as_expected(), told
    return crash.is_at_its_write


@pytest.mark.parametrize("name", sampled(list(FLOWS), 4))
def test_an_operator_killed_at_any_write_leaves_what_the_next_one_completes(
    scenes: Callable[[], AbstractContextManager[Scene]], name: str
) -> None:
    flow = FLOWS[name]
    with scenes() as scene:
        expected, writes = undisturbed(scene, flow)
    assert writes > 0
    assert bool(expected["children"]) != flow.is_deleted
    points = list(itertools.product(range(1, writes + 1), (False, True)))
    chosen = sampled(points, 1, name)

    def try_at(point: tuple[int, bool]) -> bool:
        number, is_after = point
        told = f"{name}: killed {'after' if is_after else 'before'} write {number} of {writes}"
        with scenes() as scene:
            return killed(scene, flow, expected, number, is_after, told)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        at_a_write = list(pool.map(try_at, chosen))
    # Two writes of the status may become one, so the last write may not take place again.
    others = (point for point in points if point not in chosen)
    while not any(at_a_write) and (another := next(others, None)) is not None:
        at_a_write.append(try_at(another))
    kept = f"{expected['still served']} served pods kept"
    print(
        f"{name}: {writes} writes, {sum(at_a_write)} of {len(at_a_write)} kills at a write, {kept}"
    )
    assert any(at_a_write)
