"""Tests how a metrics server finds the others, from the EndpointSlices of their Service object."""

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from llmservice_operator.api import Manifest
from llmservice_operator.cluster import Cluster
from llmservice_operator.errors import ClusterError, Forbidden
from llmservice_operator.kinds import ENDPOINT_SLICES, Kind
from llmservice_operator.metrics_server.members import Members

ME = "10.0.0.1:8081"


class Slices:
    """A cluster with these EndpointSlices."""

    def __init__(self, *slices: Manifest) -> None:
        self.slices = list(slices)
        self.error: ClusterError | None = None
        self.asked: list[tuple[Kind, str | None, str]] = []

    async def list_all(
        self, kind: Kind, namespace: str | None, *, selector: str
    ) -> AsyncIterator[Manifest]:
        self.asked.append((kind, namespace, selector))
        if self.error is not None:
            raise self.error
        for each in self.slices:
            yield each

    def members(self) -> tuple[Members, list[str | None]]:
        hindrances: list[str | None] = []
        made = Members(cast(Cluster, self), "system", "metrics", ME, hindrances.append)
        return made, hindrances


def endpoint(address: str, **conditions: bool) -> Manifest:
    return {"addresses": [address], "conditions": conditions}


def slice_of(*endpoints: Any, port: int = 8081) -> Manifest:
    ports = [{"name": "health", "port": 8080}, {"name": "scaling", "port": port}]
    return {"endpoints": list(endpoints), "ports": ports}


async def test_the_ready_endpoints_of_all_slices_are_members() -> None:
    cluster = Slices(
        slice_of(endpoint("10.0.0.1", ready=True), endpoint("10.0.0.2", ready=False)),
        slice_of(endpoint("fd00::3"), port=9000),
    )
    members, hindrances = cluster.members()
    assert members.shares.ready == frozenset()
    await members.search()

    assert members.found.is_set()
    assert members.shares.ready == {ME, "[fd00::3]:9000"}
    assert hindrances == [None]
    assert cluster.asked == [(ENDPOINT_SLICES, "system", "kubernetes.io/service-name=metrics")]


async def test_one_that_is_about_to_end_is_no_member_and_one_that_is_not_ready_joins_later() -> (
    None
):
    cluster = Slices(
        slice_of(
            endpoint("10.0.0.1", ready=False, serving=True),
            endpoint("10.0.0.2", ready=True),
            endpoint("10.0.0.3", ready=False, serving=True, terminating=True),
        )
    )
    members, _ = cluster.members()
    await members.search()
    assert members.shares.ready == {"10.0.0.2:8081"}
    assert not members.shares.leads(("team", "qwen"))
    assert members.shares.keeps(("team", "qwen"))


async def test_at_the_first_start_all_share_the_work_before_one_is_ready() -> None:
    cluster = Slices(slice_of(endpoint("10.0.0.2", ready=False)))
    members, _ = cluster.members()
    await members.search()
    assert members.shares.ready == {ME, "10.0.0.2:8081"}


async def test_the_members_stay_while_the_api_server_does_not_answer() -> None:
    cluster = Slices(slice_of(endpoint("10.0.0.1"), endpoint("10.0.0.2")))
    members, hindrances = cluster.members()
    cluster.error = ClusterError("no answer")
    await members.search()
    assert not members.found.is_set()

    cluster.error = None
    await members.search()
    before = members.shares
    cluster.error = ClusterError("no answer")
    await members.search()
    assert members.shares == before
    assert members.changes == 1
    assert hindrances == [None]


async def test_without_the_right_it_measures_all_services_and_says_what_to_grant() -> None:
    cluster = Slices(slice_of(endpoint("10.0.0.2")))
    members, hindrances = cluster.members()
    cluster.error = Forbidden("endpointslices is forbidden")
    await members.search()

    assert members.found.is_set()
    assert members.shares.leads(("team", "qwen"))
    (hindrance,) = hindrances
    assert hindrance is not None
    assert "grant the right" in hindrance
    assert "endpointslices is forbidden" in hindrance


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"endpoints": None, "ports": None},
        {"endpoints": [{"addresses": []}, "x", {}], "ports": [{"name": "scaling", "port": 1}]},
        {"endpoints": [endpoint("10.0.0.9")], "ports": [{"name": "other", "port": 1}]},
    ],
)
async def test_a_slice_that_makes_no_sense_has_no_member(odd: Manifest) -> None:
    members, _ = Slices(odd, slice_of(endpoint("10.0.0.1"))).members()
    await members.search()
    assert members.shares.ready == {ME}
