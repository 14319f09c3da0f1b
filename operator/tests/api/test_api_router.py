"""Tests that clients are switched to a router and back, with the cluster's own controllers."""

from typing import Any

from llmservice_operator import names
from llmservice_operator.kinds import (
    DEPLOYMENTS,
    LLMSERVICES,
    NETWORK_POLICIES,
    POD_DISRUPTION_BUDGETS,
    SERVICES,
)
from operator_support.processes import (
    Api,
    OperatorProcess,
    condition,
    free_the_lease,
    make_pods_ready,
    make_service,
    until_settled,
    writes_nothing,
)
from shared_support.waiting import eventually, holds_for

REQUEST_SECONDS = 4
OF_A_ROUTER = (
    (NETWORK_POLICIES, "-router"),
    (SERVICES, "-replicas"),
    (SERVICES, "-router"),
    (DEPLOYMENTS, "-router"),
    (POD_DISRUPTION_BUDGETS, "-router"),
)


class Routed:
    """A service with two replicas, whose requests take a few seconds at most."""

    def __init__(self, api: Api, namespace: str, name: str, **spec: Any) -> None:
        self._api, self._namespace, self._name = api, namespace, name
        self.uids: set[str] = set()
        short = {
            "serving": {"requestTimeoutSeconds": REQUEST_SECONDS},
            "termination": {"preStopSeconds": 0, "drainTimeoutSeconds": 0},
        }
        api.create(LLMSERVICES, make_service(name, namespace, replicas=2, **short, **spec))
        eventually(lambda: api.get(SERVICES, namespace, name))

    def route(self, *, enabled: bool) -> None:
        change = {"spec": {"router": {"enabled": enabled, "holdTimeoutSeconds": 0}}}
        self._api.patch(LLMSERVICES, self._namespace, self._name, change)

    @property
    def clients_reach(self) -> str:
        """The label by which the Service object selects its pods."""
        service = self._api.get(SERVICES, self._namespace, self._name)
        self.uids.add(service["metadata"]["uid"])
        (label,) = service["spec"]["selector"]
        return str(label)

    @property
    def is_narrow(self) -> bool:
        """Whether only the router may reach the API of the replicas."""
        policy = self._api.get(NETWORK_POLICIES, self._namespace, self._name)
        (client, *others) = policy["spec"]["ingress"][0]["from"]
        return not others and names.ROUTER_LABEL in client["podSelector"].get("matchLabels", {})

    @property
    def pods(self) -> int:
        """The number of router pods that should run."""
        live = self._api.get(DEPLOYMENTS, self._namespace, f"{self._name}-router")
        return int(live["spec"]["replicas"])

    @property
    def objects(self) -> int:
        """The number of the router's objects that exist."""
        return sum(
            self._api.read(kind, self._namespace, f"{self._name}{suffix}") is not None
            for kind, suffix in OF_A_ROUTER
        )

    def make_router_ready(self) -> None:
        make_pods_ready(self._api, self._namespace, self._name, names.ROUTER_LABEL)

    def told(self) -> tuple[str, str]:
        found = condition(self._api.get(LLMSERVICES, self._namespace, self._name), "RouterReady")
        return found["status"], found["reason"]


def test_clients_are_switched_to_a_router_when_it_is_ready_and_back_before_it_ends(
    api: Api, own_operator: OperatorProcess, namespace: str, name: str
) -> None:
    service = Routed(api, namespace, name)
    service.route(enabled=True)
    eventually(lambda: service.objects == len(OF_A_ROUTER))
    holds_for(2, lambda: service.clients_reach == names.SERVICE_LABEL)
    assert service.told() == ("False", "RouterStarting")

    def switched() -> bool:
        service.make_router_ready()
        return service.clients_reach == names.ROUTER_LABEL

    eventually(switched)
    eventually(lambda: service.told() == ("True", "RouterServing"))
    eventually(lambda: service.is_narrow, 30)
    until_settled(own_operator)
    with writes_nothing(own_operator):
        holds_for(2, lambda: service.clients_reach == names.ROUTER_LABEL)

    service.route(enabled=False)
    seen: list[tuple[bool, str, int]] = []

    def ended() -> bool:
        pods = service.pods
        seen.append((service.is_narrow, service.clients_reach, pods))
        return not pods

    eventually(ended, every=0.2)
    # Clients never reach replicas that refuse them, or a router that is gone.
    assert list(dict.fromkeys(seen))[-3:] == [
        (False, names.ROUTER_LABEL, 2),
        (False, names.SERVICE_LABEL, 2),
        (False, names.SERVICE_LABEL, 0),
    ]
    # The pods keep their policy and their addresses while they complete their requests.
    assert service.objects == len(OF_A_ROUTER)
    eventually(lambda: service.objects == 0)
    assert len(service.uids) == 1, "the Service object keeps its address"
    api.get(DEPLOYMENTS, namespace, name)
    until_settled(own_operator)
    with writes_nothing(own_operator):
        holds_for(2, lambda: service.objects == 0)


def test_a_restart_of_the_operator_continues_a_switch(
    api: Api, own_operator: OperatorProcess, namespace: str, name: str
) -> None:
    service = Routed(api, namespace, name, router={"enabled": True})
    eventually(lambda: service.objects == len(OF_A_ROUTER))

    def switched() -> bool:
        service.make_router_ready()
        return service.told() == ("True", "RouterServing")

    eventually(switched)
    live = api.get(LLMSERVICES, namespace, name)["status"]["router"]
    assert live["phase"] == "Serving"
    own_operator.kill()
    free_the_lease(api, namespace)
    with OperatorProcess(own_operator.log, namespace, WATCH_NAMESPACES=namespace) as operator:
        operator.until_leading()
        eventually(lambda: service.is_narrow, 30)
        assert api.get(LLMSERVICES, namespace, name)["status"]["router"]["since"] == live["since"]
