"""Builds the configuration of Envoy from the settings of the router.

A comment gives the reason of each setting whose default would break a promise of the router.
"""

from typing import Final

from llmservice_operator.router.envoy_clusters import discovery, picker_cluster, replica_cluster
from llmservice_operator.router.envoy_listeners import client_listener, forwarder_listener
from llmservice_operator.router.envoy_names import (
    ADMIN_SOCKET,
    CLUSTER_OR_FORWARDER,
    CLUSTER_REPLICAS,
    HEAP_BYTES,
    MAX_CONNECTIONS,
)
from llmservice_operator.router.envoy_parts import TYPES, Config, pipe, typed
from llmservice_operator.router_settings import RouterSettings

ARGUMENTS: Final = (
    *("--concurrency", "1"),
    # By default, Envoy tells clients to reconnect only gradually, over the time of the drain.
    *("--drain-strategy", "immediate"),
    # At a lower level, these components log the paths of refused requests, including the queries.
    *("--component-log-level", "http:critical,ext_proc:error"),
    *("--log-level", "warning"),
    # Several Envoys may run in one network namespace, as in tests.
    "--disable-hot-restart",
)
"""Arguments of Envoy's command line beside `--config-path` and `--drain-time-s`."""


def build_bootstrap(settings: RouterSettings) -> Config:
    """Return the bootstrap configuration."""
    return {
        "node": {"id": "router", "cluster": settings.service},
        # A TCP port or an abstract socket would be open to every process of the pod.
        "admin": {"address": pipe(settings, ADMIN_SOCKET)},
        # Without this setting, freed memory stays in the process.
        "memory_allocator_manager": {
            "bytes_to_release": 64 * 1024**2,
            "memory_release_interval": "1s",
            "max_unfreed_memory_bytes": 16 * 1024**2,
        },
        "layered_runtime": {
            "layers": [
                {
                    "name": "static",
                    "static_layer": {
                        # Off because of a fault of Envoy: if a body exceeds SEEN_BODY_BYTES only
                        # with its last read, the replica often never gets the end of the body.
                        "envoy.reloadable_features.ext_proc_inject_data_with_state_update": False
                    },
                }
            ]
        },
        "overload_manager": _overload_manager(),
        "static_resources": {
            "listeners": [client_listener(settings), forwarder_listener(settings)],
            "clusters": [
                replica_cluster(settings, CLUSTER_OR_FORWARDER),
                replica_cluster(settings, CLUSTER_REPLICAS),
                picker_cluster(settings),
            ],
        },
    }


def build_tls_secret(settings: RouterSettings) -> Config:
    """Return the content of the file that names the certificate.

    Envoy reads the certificate again after the kubelet has replaced it. It does so only for a
    certificate that such a file names.
    """
    folder = settings.tls_directory
    secret = {
        "@type": f"{TYPES}extensions.transport_sockets.tls.v3.Secret",
        "name": "server",
        "tls_certificate": {
            "certificate_chain": {"filename": f"{folder}/tls.crt"},
            "private_key": {"filename": f"{folder}/tls.key"},
            "watched_directory": {"path": str(folder)},
        },
    }
    return discovery(secret, "1")


def _overload_manager() -> Config:
    # This is the last limit. It refuses new requests, but does not stop uploads, which the picker's
    # grants bound.
    connections = "envoy.resource_monitors.global_downstream_max_connections"
    heap = "envoy.resource_monitors.fixed_heap"
    return {
        "refresh_interval": "0.1s",
        "resource_monitors": [
            typed(
                heap,
                "resource_monitors.fixed_heap.v3.FixedHeapConfig",
                max_heap_size_bytes=HEAP_BYTES,
            ),
            typed(
                connections,
                "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                max_active_downstream_connections=MAX_CONNECTIONS,
            ),
        ],
        "actions": [
            {
                "name": f"envoy.overload_actions.{action}",
                "triggers": [{"name": heap, "threshold": {"value": share}}],
            }
            for action, share in (("shrink_heap", 0.7), ("stop_accepting_requests", 0.95))
        ],
    }
