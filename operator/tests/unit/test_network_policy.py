"""Tests which clients can reach the ports of a model server, and which destinations it can
reach.
"""

from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.children import Context, build_all
from llmservice_operator.desired.router import RouterDecision
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload import resolve_pin
from operator_support.network_policy import Host, may_connect
from operator_support.services import SETTINGS, a_service

MONITORED = OperatorSettings(
    images=SETTINGS.images,
    monitoring_namespace="monitoring",
    monitoring_pod_labels={"app.kubernetes.io/name": "prometheus"},
)
GATEWAY = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "edge"}}}


def policies(
    spec: dict[str, Any],
    settings: OperatorSettings = MONITORED,
    router: RouterDecision | None = None,
) -> list[Manifest]:
    service = a_service(spec)
    pin = resolve_pin(service, None, settings)
    manifests = build_all(Context.of(service, settings, pin, router=router))
    return [each for each in manifests if each["kind"] == "NetworkPolicy"]


def pod(namespace: str, **labels: str) -> Host:
    keys = {key.replace("__", "/").replace("_", "."): value for key, value in labels.items()}
    own = {"kubernetes.io/metadata.name": namespace}
    return Host("10.244.0.9", namespace, keys, own)


def model_server(name: str = "qwen") -> Host:
    labels = names.labels(a_service(metadata={"name": name, "namespace": "team"}))
    return Host("10.244.0.7", "team", labels, {"kubernetes.io/metadata.name": "team"})


def router_pod(name: str = "qwen") -> Host:
    labels = names.router_labels(a_service(metadata={"name": name, "namespace": "team"}))
    return Host("10.244.0.8", "team", labels, {"kubernetes.io/metadata.name": "team"})


SOURCES = {
    "a pod of its own namespace": pod("team"),
    "another model server": model_server("llama"),
    "a pod of another namespace": pod("other"),
    "a gateway": pod("edge"),
    "the metrics server": pod(
        "llmservice-system", **{"app_kubernetes_io__component": "metrics-server"}
    ),
    "the operator": pod("llmservice-system"),
    "a false metrics server": pod("team", **{"app_kubernetes_io__component": "metrics-server"}),
    "Prometheus": pod("monitoring", **{"app_kubernetes_io__name": "prometheus"}),
    "Grafana": pod("monitoring", **{"app_kubernetes_io__name": "grafana"}),
    "a client outside": Host("203.0.113.5"),
    "an office": Host("198.51.100.5"),
    "the guests of the office": Host("198.51.100.200"),
}
OFFICE = {"ipBlock": {"cidr": "198.51.100.0/24", "except": ["198.51.100.128/25"]}}
OPEN = {"networkPolicy": {"from": [GATEWAY, OFFICE]}}
EVERY_POD: dict[str, Any] = {"networkPolicy": {"from": [{"namespaceSelector": {}}]}}
NO_POLICY = {"networkPolicy": {"enabled": False}}

API_BY_DEFAULT = {"a pod of its own namespace", "another model server", "a false metrics server"}
OBSERVERS = {"the metrics server", "Prometheus"}
PODS = {name for name, host in SOURCES.items() if host.namespace is not None}

REACHES = {
    # spec, sources that reach the API, sources that reach the management port
    "by default": ({}, API_BY_DEFAULT, OBSERVERS),
    "with peers": (OPEN, API_BY_DEFAULT | {"a gateway", "an office"}, OBSERVERS),
    "with every pod": (EVERY_POD, PODS, OBSERVERS),
    "without the policy": (NO_POLICY, set(SOURCES), set(SOURCES)),
}


@pytest.mark.parametrize(("spec", "api", "management"), REACHES.values(), ids=REACHES.keys())
def test_the_api_is_open_to_the_namespace_and_its_peers_and_the_management_port_to_observers(
    spec: dict[str, Any], api: set[str], management: set[str]
) -> None:
    found = policies(spec)
    for port, allowed in ((8000, api), (9090, management), (22, set())):
        reached = {
            name
            for name, source in SOURCES.items()
            if may_connect(found, source, model_server(), port)
        }
        if found or port != 22:
            assert reached == allowed, port


ROUTERS = {
    "its router": router_pod(),
    "another service's router": router_pod("llama"),
    "a false router": Host(
        "10.244.0.9",
        "other",
        router_pod().labels,
        {"kubernetes.io/metadata.name": "other"},
    ),
}
STARTING = RouterDecision(exists=True)
SWITCHED = RouterDecision(exists=True, takes_requests=True)
SERVING = RouterDecision(exists=True, takes_requests=True, is_only_client=True)
IN_THE_NAMESPACE = {"its router", "another service's router"}

PHASES = {
    # the router, sources that reach the API of a replica
    "while it starts": (STARTING, API_BY_DEFAULT | {"a gateway"} | IN_THE_NAMESPACE),
    "while older connections may continue": (
        SWITCHED,
        API_BY_DEFAULT | {"a gateway"} | IN_THE_NAMESPACE,
    ),
    "afterwards": (SERVING, {"its router"}),
}


@pytest.mark.parametrize(("router", "api"), PHASES.values(), ids=PHASES.keys())
def test_clients_reach_the_router_and_in_the_end_only_the_router_reaches_the_replicas(
    router: RouterDecision, api: set[str]
) -> None:
    found = policies({"networkPolicy": {"from": [GATEWAY]}}, MONITORED, router)
    sources = SOURCES | ROUTERS

    def reach(target: Host, port: int) -> set[str]:
        return {name for name, each in sources.items() if may_connect(found, each, target, port)}

    assert reach(model_server(), 8000) == api
    assert reach(model_server(), 9090) == OBSERVERS | {"its router"}
    assert reach(model_server(), 22) == set()
    # The policy of the router itself keeps it from the API of another router.
    assert reach(router_pod(), 8000) == (API_BY_DEFAULT | {"a gateway", "another service's router"})
    assert reach(router_pod(), 9090) == OBSERVERS
    assert reach(router_pod(), 9002) == {"its router"}


@pytest.mark.parametrize("router", [STARTING, SWITCHED, SERVING])
@pytest.mark.parametrize("spec", [{}, {"networkPolicy": {"mesh": "Ambient"}}])
def test_only_the_metrics_server_and_the_monitoring_may_send_a_router_its_replicas(
    spec: dict[str, Any], router: RouterDecision
) -> None:
    found = policies(spec, MONITORED, router)
    sources = SOURCES | ROUTERS | {"a model server": model_server()}
    senders = {
        name
        for name, source in sources.items()
        if may_connect(found, source, router_pod(), names.MANAGEMENT_PORT)
    }
    assert senders == OBSERVERS


def test_a_router_reaches_dns_its_replicas_and_the_other_router_pods_only() -> None:
    found = policies({}, MONITORED, SERVING)
    reached = {
        (name, port)
        for name, target in {
            "a replica": model_server(),
            "another service's replica": model_server("llama"),
            "a router pod": router_pod(),
            "another service's router": router_pod("llama"),
            "a pod": pod("team"),
            "the hub": Host("203.0.113.7"),
            "the metadata service": Host(METADATA),
            "the resolver": pod("kube-system"),
        }.items()
        for port in (53, 80, 443, 8000, 9002, 9090, 15008)
        if may_connect(found, router_pod(), target, port)
    }
    assert reached - {each for each in reached if each[1] == 53} == {
        ("a replica", 8000),
        ("a replica", 9090),
        ("a router pod", 9002),
    }
    assert ("the resolver", 53) in reached


def test_in_a_mesh_without_sidecars_the_router_is_the_only_client_of_the_tunnel_of_a_replica() -> (
    None
):
    found = policies({"networkPolicy": {"mesh": "Ambient"}}, MONITORED, SERVING)
    sources = SOURCES | ROUTERS
    to_replica, to_router = (
        {name for name, each in sources.items() if may_connect(found, each, target, 15008)}
        for target in (model_server(), router_pod())
    )
    assert to_replica == OBSERVERS | {"its router"}
    assert to_router == OBSERVERS | API_BY_DEFAULT | IN_THE_NAMESPACE
    assert may_connect(found, AMBIENT_PROBES[0], router_pod(), 9090)


def test_without_the_policy_a_router_has_none_either() -> None:
    assert policies(NO_POLICY, MONITORED, SERVING) == []


AMBIENT_PROBES = (Host("169.254.7.127"), Host("fd16:9254:7127:1337:ffff:ffff:ffff:ffff"))


def test_a_mesh_without_sidecars_opens_its_tunnel_to_the_same_peers_and_the_probes() -> None:
    clients = API_BY_DEFAULT | {"a gateway"}
    for mesh, tunnel in (({}, set()), ({"mesh": "Ambient"}, clients | OBSERVERS)):
        found = policies({"networkPolicy": {"from": [GATEWAY], **mesh}})
        reached = {
            port: {
                n for n, each in SOURCES.items() if may_connect(found, each, model_server(), port)
            }
            for port in (8000, 9090, 15008)
        }
        assert reached == {8000: clients, 9090: OBSERVERS, 15008: tunnel}
        for probe in AMBIENT_PROBES:
            assert may_connect(found, probe, model_server(), 9090) == bool(mesh)
            assert not may_connect(found, probe, model_server(), 8000)


def test_a_replica_reaches_only_the_pods_that_it_may_reach_through_the_tunnel_of_the_mesh() -> None:
    collector = {"podSelector": {"matchLabels": {"app": "collector"}}, "ports": [{"port": 4317}]}
    outside = {"ipBlock": {"cidr": "192.0.2.0/24"}, "ports": [{"port": 9000}]}
    found = policies({"networkPolicy": {"mesh": "Ambient", "to": [collector, outside]}})

    def reaches(target: Host, port: int) -> bool:
        return may_connect(found, model_server(), target, port)

    assert reaches(pod("team", app="collector"), 4317)
    assert reaches(pod("team", app="collector"), 15008)
    assert not reaches(pod("team", app="database"), 15008)
    assert not reaches(Host("192.0.2.7"), 15008)


@pytest.mark.parametrize(
    ("settings", "observers"),
    [
        (OperatorSettings(), {"the metrics server"}),
        (OperatorSettings(namespace="ops"), set()),
        (
            OperatorSettings(monitoring_namespace="monitoring"),
            {"the metrics server", "Prometheus", "Grafana"},
        ),
        (
            OperatorSettings(metrics_server_cidrs=("198.51.100.0/25",)),
            {"the metrics server", "an office"},
        ),
    ],
    ids=[
        "no monitoring",
        "an operator elsewhere",
        "a whole namespace that monitors",
        "a metrics server on the network of its node",
    ],
)
def test_the_management_port_is_open_to_the_observers_of_the_settings(
    settings: OperatorSettings, observers: set[str]
) -> None:
    found = policies({}, settings)
    reached = {n for n, each in SOURCES.items() if may_connect(found, each, model_server(), 9090)}
    assert reached == observers


PROXY = pod("proxies", app="proxy")
METADATA, LINK_LOCAL = "169.254.169.254", "169.254.20.10"
TARGETS = {
    "the resolver": (pod("kube-system"), 53, "UDP"),
    "the resolver over TCP": (pod("kube-system"), 53, "TCP"),
    "the resolver of OpenShift": (pod("openshift-dns"), 5353, "UDP"),
    "the node's resolver": (Host(LINK_LOCAL), 53, "UDP"),
    "the hub": (Host("203.0.113.7"), 443, "TCP"),
    "the hub over IPv6": (Host("2001:db8::7"), 443, "TCP"),
    "a mirror in the cluster": (pod("mirror"), 8090, "TCP"),
    "an own service over TLS": (pod("internal"), 443, "TCP"),
    "an own host over TLS": (Host("192.168.7.7"), 443, "TCP"),
    "an own host with an address that few use": (Host("198.19.7.7"), 443, "TCP"),
    "an own host over TLS and IPv6": (Host("fd12::7"), 443, "TCP"),
    "a mirror outside": (Host("203.0.113.8"), 8090, "TCP"),
    "plain HTTP": (Host("203.0.113.7"), 80, "TCP"),
    "a database": (pod("team"), 5432, "TCP"),
    "SSH": (Host("203.0.113.7"), 22, "TCP"),
    "cloud metadata": (Host(METADATA), 80, "TCP"),
    "cloud metadata over TLS": (Host(METADATA), 443, "TCP"),
    "cloud metadata at the mirror's port": (Host(METADATA), 8090, "TCP"),
    "the resolver of Google Cloud": (Host(METADATA), 53, "UDP"),
    "the resolver of Google Cloud over TCP": (Host(METADATA), 53, "TCP"),
    "cloud metadata over IPv6": (Host("fd00:ec2::254"), 443, "TCP"),
    "another cloud's metadata": (Host("100.100.100.200"), 443, "TCP"),
    "another cloud's metadata as a resolver": (Host("100.100.100.200"), 53, "UDP"),
    "another cloud's metadata over IPv6": (Host("fd20:ce::254"), 53, "TCP"),
    "container credentials": (Host("169.254.170.2"), 80, "TCP"),
    "a proxy": (PROXY, 3128, "TCP"),
    "another port of the proxy": (PROXY, 22, "TCP"),
    "a neighbour of the proxy": (pod("proxies", app="other"), 3128, "TCP"),
    "a proxy of the own namespace": (pod("team", app="proxy"), 3128, "TCP"),
    "an object store": (Host("192.0.2.7"), 9000, "TCP"),
    "its neighbour": (Host("192.0.2.200"), 9000, "TCP"),
    "a collector": (pod("tracing"), 4317, "TCP"),
    "a collector over UDP": (pod("tracing"), 6831, "UDP"),
}
METADATA_SERVICES = {name for name in TARGETS if "metadata" in name}
RESOLVERS = {
    "the resolver",
    "the resolver over TCP",
    "the resolver of OpenShift",
    "the node's resolver",
    "the resolver of Google Cloud",
    "the resolver of Google Cloud over TCP",
}
PUBLIC_HUB = {"the hub", "the hub over IPv6"}
OWN = {
    "an own service over TLS",
    "an own host over TLS",
    "an own host with an address that few use",
    "an own host over TLS and IPv6",
}
MIRROR = {"a mirror in the cluster", "a mirror outside"}
OFFLINE = {
    "model": {
        "uri": "hf://org/model",
        "offline": True,
        "cache": {"type": "PersistentVolumeClaim", "claimName": "weights"},
    }
}
CLAIM = {"model": {"uri": "pvc://models/llama"}}
STORE_WITH_KEY = {
    "endpoint": "http://s3.example.com:9000",
    "credentialsSecretRef": {"name": "reader"},
}
DRAFT = {
    "method": "DraftModel",
    "numSpeculativeTokens": 3,
    "draftModel": {"uri": "hf://org/draft"},
}


def to(*destinations: dict[str, Any]) -> dict[str, Any]:
    return {**CLAIM, "networkPolicy": {"to": [*destinations]}}


PROXIES = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "proxies"}},
    "podSelector": {"matchLabels": {"app": "proxy"}},
}
STORE = {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}
COLLECTOR = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "tracing"}}}
UDP = {"port": 6831, "protocol": "UDP"}
EVERYWHERE = ({"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}})

REACHED = {
    "the public hub": ({}, None, RESOLVERS | PUBLIC_HUB),
    "a mirror at a port": ({}, "http://mirror.example:8090", RESOLVERS | MIRROR),
    "a mirror of the service alone": (
        {"model": {"uri": "hf://org/model", "hubEndpoint": "http://mirror.example:8090"}},
        None,
        RESOLVERS | MIRROR,
    ),
    "a mirror of the service instead of everybody's": (
        {"model": {"uri": "hf://org/model", "hubEndpoint": "http://mirror.example:8090"}},
        "https://other.example",
        RESOLVERS | MIRROR,
    ),
    "a mirror over HTTP": ({}, "http://mirror.example/hub", RESOLVERS | {"plain HTTP"}),
    "a mirror over HTTPS": ({}, "https://mirror.example", RESOLVERS | PUBLIC_HUB | OWN),
    "a claim": (CLAIM, None, RESOLVERS),
    "a model that was downloaded before": (OFFLINE, None, RESOLVERS),
    "a claim beside a draft model of the hub": (
        {**CLAIM, "engine": {"speculativeDecoding": DRAFT}},
        None,
        RESOLVERS | PUBLIC_HUB,
    ),
    "Amazon S3, whose tokens come from a public address": (
        {"model": {"uri": "s3://weights/llama"}},
        "http://mirror.example:8090",
        RESOLVERS | PUBLIC_HUB,
    ),
    "an object store alone, with an access key": (
        {"model": {"uri": "s3://weights/llama", "objectStore": STORE_WITH_KEY}},
        None,
        RESOLVERS | {"an object store", "its neighbour"},
    ),
    "an object store and the token service of a role": (
        {"model": {"uri": "s3://weights/llama", "objectStore": {"endpoint": "http://s3:9000"}}},
        None,
        RESOLVERS | PUBLIC_HUB | {"an object store", "its neighbour"},
    ),
    "no policy": (NO_POLICY, None, set(TARGETS)),
    "a proxy at its port": (
        to({**PROXIES, "ports": [{"port": 3128}]}),
        None,
        RESOLVERS | {"a proxy"},
    ),
    "a proxy at every port": (
        to(PROXIES),
        None,
        RESOLVERS | {"a proxy", "another port of the proxy"},
    ),
    "pods of its own namespace": (
        to({"podSelector": {}}),
        None,
        RESOLVERS | {"a database", "a proxy of the own namespace"},
    ),
    "a range of addresses but for a part": (
        to({"ipBlock": STORE, "ports": [{"port": 9000}]}),
        None,
        RESOLVERS | {"an object store"},
    ),
    "ports of two kinds": (
        to({**COLLECTOR, "ports": [{"port": 4317}, UDP]}),
        None,
        RESOLVERS | {"a collector", "a collector over UDP"},
    ),
    "the public hub and two others": (
        {"networkPolicy": to(PROXIES, {"ipBlock": STORE})["networkPolicy"]},
        None,
        RESOLVERS | PUBLIC_HUB | {"a proxy", "another port of the proxy", "an object store"},
    ),
    "every address": (
        to(*EVERYWHERE),
        None,
        set(TARGETS) - METADATA_SERVICES - {"container credentials"},
    ),
    "addresses around metadata services": (
        to(
            {"ipBlock": {"cidr": "169.254.169.254/31"}},
            {"ipBlock": {"cidr": "100.64.0.0/10", "except": ["100.100.0.0/16"]}},
            {"ipBlock": {"cidr": "fd00::/8"}},
        ),
        None,
        RESOLVERS | {"an own host over TLS and IPv6"},
    ),
    "link-local addresses by a part of their range": (
        to({"ipBlock": {"cidr": "169.254.128.0/17"}}),
        None,
        RESOLVERS | {"container credentials"},
    ),
}


@pytest.mark.parametrize(("spec", "endpoint", "allowed"), REACHED.values(), ids=REACHED.keys())
def test_a_model_server_reaches_only_dns_its_model_and_destinations_of_the_spec(
    spec: dict[str, Any], endpoint: str | None, allowed: set[str]
) -> None:
    found = policies(spec, OperatorSettings(images=SETTINGS.images, hub_endpoint=endpoint))
    reached = {
        name
        for name, (target, port, protocol) in TARGETS.items()
        if may_connect(found, model_server(), target, port, protocol)
    }
    assert reached == allowed


def test_the_policy_is_made_before_the_pods_it_protects() -> None:
    service = a_service()
    manifests = build_all(Context.of(service, SETTINGS, resolve_pin(service, None, SETTINGS)))
    kinds = [each["kind"] for each in manifests]
    assert kinds.index("NetworkPolicy") < kinds.index("Deployment")


def test_an_empty_selector_of_a_peer_is_kept_because_it_means_all() -> None:
    (policy,) = policies({"networkPolicy": {"from": [{"namespaceSelector": {}}]}})
    assert policy["spec"]["ingress"][0]["from"] == [{"podSelector": {}}, {"namespaceSelector": {}}]


def test_an_exception_that_holds_a_metadata_service_is_not_made_twice() -> None:
    block = {"cidr": "100.64.0.0/10", "except": ["100.100.0.0/16"]}
    (policy,) = policies(to({"ipBlock": block}))
    assert policy["spec"]["egress"][1] == {"to": [{"ipBlock": block}]}


def test_address_ranges_are_written_as_every_api_server_takes_them() -> None:
    block = {"cidr": "10.1.2.3/8", "except": ["10.1.2.3/16", "10.2.0.0/16"]}
    spec = {
        "service": {"type": "LoadBalancer", "loadBalancerSourceRanges": ["198.51.100.7/8"]},
        "networkPolicy": {"from": [{"ipBlock": block}], "to": [{"ipBlock": block}]},
    }

    context = Context.of(a_service(spec), SETTINGS, resolve_pin(a_service(spec), None, SETTINGS))
    children = {manifest["kind"]: manifest["spec"] for manifest in build_all(context)}

    written = {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.2.0.0/16"]}
    assert children["Service"]["loadBalancerSourceRanges"] == ["198.0.0.0/8"]
    assert {"ipBlock": written} in children["NetworkPolicy"]["ingress"][0]["from"]
    assert {"to": [{"ipBlock": written}]} in children["NetworkPolicy"]["egress"]
