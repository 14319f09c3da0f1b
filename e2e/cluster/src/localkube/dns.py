"""Configures the cluster's DNS. CoreDNS is a process on the first node, behind the usual Service
object.
"""

import json
from typing import Any, Final

from localkube.cluster import Cluster
from localkube.control_plane import COMPONENT_USERS, DNS_SERVICE_ADDRESS

_COREFILE = """.:53 {{
    bind {address}
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        ttl {seconds}
    }}
    cache {seconds} cluster.local
}}
"""

CACHE_SECONDS: Final = 5
"""Time in seconds for which CoreDNS and its clients keep an answer, even that a name is absent. It
is short, because tests look up names of Service objects before they create them."""


def corefile(cluster: Cluster, cache_seconds: int = CACHE_SECONDS) -> str:
    return _COREFILE.format(
        address=cluster.node(1).address,
        kubeconfig=cluster.state / "coredns.conf",
        seconds=cache_seconds,
    )


def manifests(cluster: Cluster) -> list[dict[str, Any]]:
    """Return the Service object of the DNS, its only endpoint, and the permission of CoreDNS to
    read Service objects and endpoints.
    """
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    ]
    metadata = {"name": "kube-dns", "namespace": "kube-system"}
    role = "localkube:coredns"
    readable = [
        {"apiGroups": [""], "resources": ["services", "namespaces", "pods"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"]},
    ]
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata | {"labels": {"k8s-app": "kube-dns"}},
            "spec": {"clusterIP": DNS_SERVICE_ADDRESS, "ports": ports},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata | {"labels": {"kubernetes.io/service-name": "kube-dns"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [cluster.node(1).address], "conditions": {"ready": True}}],
            "ports": ports,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": role},
            "rules": [rule | {"verbs": ["list", "watch"]} for rule in readable],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": role},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": role,
            },
            "subjects": [
                {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "User",
                    "name": COMPONENT_USERS["coredns"],
                }
            ],
        },
    ]


def start(cluster: Cluster, cache_seconds: int = CACHE_SECONDS) -> None:
    """Start CoreDNS. It caches its answers for this time in seconds."""
    objects = {"apiVersion": "v1", "kind": "List", "items": manifests(cluster)}
    cluster.kubectl("apply", "--filename=-", stdin=json.dumps(objects))
    configuration = cluster.state / "Corefile"
    configuration.write_text(corefile(cluster, cache_seconds))
    cluster.start_daemon("coredns", ["coredns", "-conf", str(configuration), "-quiet"])


def resolver(cluster: Cluster) -> str:
    """Return a resolv.conf for a process outside of pods, to resolve names of Service objects."""
    return (
        f"nameserver {cluster.node(1).address}\n"
        "search default.svc.cluster.local svc.cluster.local cluster.local\n"
        "options ndots:5\n"
    )
