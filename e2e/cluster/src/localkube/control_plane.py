"""Configures the control plane: certificates, audit policy, and command lines of its programs."""

from pathlib import Path
from typing import Any

from localkube.cluster import SERVICE_NETWORK, Cluster
from localkube.pki import Certificate

API_SERVICE_ADDRESS = f"{SERVICE_NETWORK}.0.1"
DNS_SERVICE_ADDRESS = f"{SERVICE_NETWORK}.0.10"
SERVICE_SUBNET = f"{SERVICE_NETWORK}.0.0/16"
ETCD = "http://127.0.0.1:2379"

AUTOSCALER_PERIOD = "15s"
"""Period of the HPA controller. It is the default, and it is explicit because tests rely on it."""

PROGRAMS = frozenset({"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"})
"""Daemons of the control plane. None of them stores anything that outlives the cluster."""

COMPONENT_USERS = {
    "controller-manager": "system:kube-controller-manager",
    "scheduler": "system:kube-scheduler",
    "proxy": "system:kube-proxy",
    "coredns": "system:coredns",
}
"""Name of a kubeconfig to write -> user whose certificate the kubeconfig contains."""


def server_url(cluster: Cluster) -> str:
    return f"https://{cluster.node(1).address}:6443"


def certificates(cluster: Cluster, nodes: int) -> list[Certificate]:
    """Return the certificates of a cluster with this many nodes."""
    service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    return [
        Certificate(
            "apiserver",
            "kube-apiserver",
            names=["localhost", *service, "kubernetes.default.svc.cluster.local"],
            addresses=["127.0.0.1", cluster.node(1).address, API_SERVICE_ADDRESS],
        ),
        Certificate("admin", "admin", organization="system:masters"),
        Certificate(
            "kubelet-client", "kube-apiserver-kubelet-client", organization="system:masters"
        ),
        Certificate("front-proxy", "front-proxy-client", authority="front-proxy-ca"),
        *(Certificate(file, user) for file, user in COMPONENT_USERS.items()),
        *(
            Certificate(
                node.name,
                f"system:node:{node.name}",
                organization="system:nodes",
                names=[node.name],
                addresses=[node.address],
            )
            for node in (cluster.node(i + 1) for i in range(nodes))
        ),
    ]


def audit_policy() -> dict[str, Any]:
    """Return the audit policy, by which the API server records the requests for objects.

    It omits the reads of the components of Kubernetes, and all reads of Events and Leases, because
    these would outnumber the rest.
    """
    own_users = ["system:apiserver", *COMPONENT_USERS.values()]
    own_groups = ["system:nodes", "system:serviceaccounts:kube-system"]
    chatter = [
        {"group": "", "resources": ["events"]},
        {"group": "events.k8s.io", "resources": ["events"]},
        {"group": "coordination.k8s.io", "resources": ["leases"]},
    ]
    unread = {"level": "None", "verbs": ["get", "list", "watch"]}
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "nonResourceURLs": ["*"]},
            unread | {"users": own_users},
            unread | {"userGroups": own_groups},
            unread | {"resources": chatter},
            {"level": "Metadata"},
        ],
    }


def etcd(cluster: Cluster) -> list[str]:
    return [
        "etcd",
        f"--data-dir={cluster.state / 'etcd'}",
        f"--listen-client-urls={ETCD}",
        f"--advertise-client-urls={ETCD}",
        "--listen-peer-urls=http://127.0.0.1:2380",
        # The data is deleted with the cluster, so it is useless to wait for the disk.
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def api_server(cluster: Cluster) -> list[str]:
    """Return the API server's command line."""
    pki = cluster.state / "pki"
    return [
        "kube-apiserver",
        f"--etcd-servers={ETCD}",
        f"--advertise-address={cluster.node(1).address}",
        "--secure-port=6443",
        f"--service-cluster-ip-range={SERVICE_SUBNET}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        "--profiling=false",
        *_api_server_certificates(pki),
        *_aggregation(pki),
        # No DNS server here knows the name of a node, so `kubectl logs` needs the address.
        "--kubelet-preferred-address-types=InternalIP",
        f"--audit-policy-file={cluster.state / 'audit-policy.yaml'}",
        f"--audit-log-path={cluster.audit_log}",
        "--audit-log-maxsize=200",
    ]


def _api_server_certificates(pki: Path) -> list[str]:
    return [
        f"--client-ca-file={pki}/ca.crt",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/kubelet-client.crt",
        f"--kubelet-client-key={pki}/kubelet-client.key",
        f"--service-account-key-file={pki}/sa.pub",
        f"--service-account-signing-key-file={pki}/sa.key",
        "--service-account-issuer=https://kubernetes.default.svc",
    ]


def _aggregation(pki: Path) -> list[str]:
    """Return the flags that let the API server identify itself and users to aggregated APIs."""
    return [
        # Connect to the endpoints of an aggregated API, because without nodes no kube-proxy routes
        # a ClusterIP.
        "--enable-aggregator-routing",
        f"--requestheader-client-ca-file={pki}/front-proxy-ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={pki}/front-proxy.crt",
        f"--proxy-client-key-file={pki}/front-proxy.key",
    ]


def controller_manager(cluster: Cluster) -> list[str]:
    pki = cluster.state / "pki"
    return [
        "kube-controller-manager",
        f"--kubeconfig={cluster.state / 'controller-manager.conf'}",
        "--use-service-account-credentials",
        f"--service-account-private-key-file={pki}/sa.key",
        f"--root-ca-file={pki}/ca.crt",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        f"--horizontal-pod-autoscaler-sync-period={AUTOSCALER_PERIOD}",
        "--leader-elect=false",
        "--profiling=false",
        # With the default limit, 20 requests per second, a cluster would take much longer to start.
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        # The node's number determines its pod subnet and the routes between the nodes.
        "--allocate-node-cidrs=false",
        "--configure-cloud-routes=false",
    ]


def scheduler(cluster: Cluster) -> list[str]:
    return [
        "kube-scheduler",
        f"--kubeconfig={cluster.state / 'scheduler.conf'}",
        "--leader-elect=false",
        "--profiling=false",
    ]
