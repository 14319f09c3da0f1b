"""The operator is killed before and after its writes, and another one takes over."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from llmservice_operator.kinds import LLMSERVICES
from operator_support.fault_flows import (
    Crash,
    State,
    children_in,
    is_observed,
    owners_are_alive,
    service_of,
    specs_with_every_child,
)
from operator_support.fault_proxy import FaultProxy
from operator_support.fault_sample import sampled
from operator_support.processes import (
    Api,
    OperatorProcess,
    free_the_lease,
    make_service,
    until_settled,
)
from shared_support.waiting import eventually

NAME = "llm"
WITHIN_SECONDS = 30.0
Step = Callable[[Api, str], object]


def nothing(_: Api, __: str) -> None:
    """There is nothing before the first service."""


def change(spec: dict[str, Any]) -> Step:
    return lambda api, namespace: api.patch(LLMSERVICES, namespace, NAME, {"spec": spec})


def create(**spec: Any) -> Step:
    return lambda api, namespace: api.create(LLMSERVICES, make_service(NAME, namespace, **spec))


def create_example(spec: dict[str, Any]) -> Step:
    return lambda api, namespace: api.create(LLMSERVICES, service_of(NAME, namespace, spec))


def delete(api: Api, namespace: str) -> None:
    api.delete(LLMSERVICES, namespace, NAME)


AUTOSCALED = {"autoscaling": {"maxReplicas": 3}}


@dataclass(frozen=True)
class Flow:
    before: Step
    during: Step
    """The change whose writes are cut short."""
    also: Step = nothing
    """Done at the moment of the kill."""


FLOWS = {
    **{
        f"create {example}": Flow(nothing, create_example(spec))
        for example, spec in specs_with_every_child().items()
    },
    "engine": Flow(create(), change({"engine": {"maxModelLen": 256}})),
    "autoscaling on": Flow(create(), change(AUTOSCALED)),
    "autoscaling off": Flow(create(**AUTOSCALED), change({"autoscaling": None})),
    "suspend": Flow(create(), change({"replicas": 0})),
    "delete": Flow(nothing, create(**AUTOSCALED), delete),
}


def begin(api: Api, operator: OperatorProcess, namespace: str, flow: Flow) -> None:
    flow.before(api, namespace)
    # On a busy machine, a second may pass between two writes of one pass.
    eventually(lambda: is_observed(api, namespace))
    until_settled(operator)


def undisturbed(
    api: Api, proxy: FaultProxy, operator: OperatorProcess, namespace: str, flow: Flow
) -> tuple[State, int]:
    """Return the children after the flow, and the number of writes that it takes."""
    with operator:
        operator.until_leading()
        begin(api, operator, namespace, flow)
        before = len(proxy.writes())
        flow.during(api, namespace)
        eventually(lambda: is_observed(api, namespace), WITHIN_SECONDS)
        until_settled(operator)
        writes = len(proxy.writes()) - before
        if flow.also is not nothing:
            flow.also(api, namespace)
            # The garbage collector looks for new kinds every half minute.
            eventually(lambda: not children_in(api, namespace), 60)
        return children_in(api, namespace), writes


@pytest.mark.parametrize("name", sampled(list(FLOWS), 4))
def test_an_operator_killed_at_any_write_leaves_what_the_next_one_completes(
    api: Api,
    proxy: FaultProxy,
    start: Callable[..., OperatorProcess],
    namespaces: Callable[[], str],
    name: str,
) -> None:
    flow, reference = FLOWS[name], namespaces()
    expected, writes = undisturbed(api, proxy, start(reference), reference, flow)
    assert writes > 0
    assert bool(expected) == (flow.also is nothing)
    points = list(itertools.product(range(1, writes + 1), (False, True)))
    for number, is_after in sampled(points, 1, name):
        namespace = namespaces()
        with start(namespace) as first:
            first.until_leading()
            begin(api, first, namespace, flow)
            crash = Crash(
                proxy, first, number, is_after, functools.partial(flow.also, api, namespace)
            )
            crash.arm()
            flow.during(api, namespace)
            crash.until_killed()
            assert crash.reached <= (number if is_after else number - 1)
        free_the_lease(api, namespace)
        with start(namespace) as second:
            second.until_leading()
            told = f"{name}: killed {'after' if is_after else 'before'} write {number} of {writes}"

            def as_expected(where: str = namespace) -> bool:
                assert children_in(api, where) == expected
                return is_observed(api, where) and owners_are_alive(api, where)

            eventually(as_expected, 60 if flow.also is not nothing else WITHIN_SECONDS, told)
            until_settled(second)
            assert as_expected(), told
