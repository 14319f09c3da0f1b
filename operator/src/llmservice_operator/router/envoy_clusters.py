"""Builds the clusters, and the files with their endpoints."""

from collections.abc import Sequence

from llmservice_operator.names import ATTEMPT_HEADER, IDENTITY_PATH, MANAGEMENT_PORT
from llmservice_operator.router.envoy_names import (
    CLUSTER_PICKERS,
    MAX_CONNECTIONS,
    METADATA_KEY,
    METADATA_NAMESPACE,
)
from llmservice_operator.router.envoy_parts import (
    BUFFER_BYTES,
    TYPES,
    Config,
    file,
    protocol,
    typed,
)
from llmservice_operator.router_settings import RouterSettings


def replica_cluster(settings: RouterSettings, name: str) -> Config:
    least_request = typed("least_request", "load_balancing_policies.least_request.v3.LeastRequest")
    override = typed(
        "override_host",
        "load_balancing_policies.override_host.v3.OverrideHost",
        # The source must not be a header: a client could set it, and so choose its replica, while
        # the picker is away. The first attempt goes to the first address and the retry to the
        # second one, whatever the health of these endpoints.
        override_host_sources=[
            {"metadata": {"key": METADATA_NAMESPACE, "path": [{"key": METADATA_KEY}]}}
        ],
        fallback_policy={"policies": [{"typed_extension_config": least_request}]},
    )
    attempt = {"key": ATTEMPT_HEADER, "value": "%REQ(X-ENVOY-ATTEMPT-COUNT)%"}
    identity = f"{settings.namespace}/{settings.service}"
    return {
        **_cluster(settings, name),
        "connect_timeout": "1s",
        "load_balancing_policy": {"policies": [{"typed_extension_config": override}]},
        # Otherwise, a removed replica keeps getting requests while its health check passes.
        "ignore_health_on_host_removal": True,
        "typed_extension_protocol_options": protocol(
            # Shorter than the 120 s after which a model server closes an idle connection.
            common_http_protocol_options={"idle_timeout": "60s"},
            explicit_http_config={"http_protocol_options": {}},
            # Only a filter of the cluster runs again for the second attempt.
            http_filters=[
                typed(
                    "envoy.filters.http.header_mutation",
                    "filters.http.header_mutation.v3.HeaderMutation",
                    mutations={
                        "request_mutations": [
                            {
                                "append": {
                                    "header": attempt,
                                    # The header stays absent from a request that gets no second
                                    # attempt.
                                    "append_action": "OVERWRITE_IF_EXISTS",
                                }
                            },
                            {"remove": "x-envoy-attempt-count"},
                        ]
                    },
                ),
                typed(
                    "envoy.filters.http.upstream_codec",
                    "filters.http.upstream_codec.v3.UpstreamCodec",
                ),
            ],
        ),
        # Another pod may reuse the address of a deleted replica.
        "health_checks": [
            {
                "timeout": "0.5s",
                "interval": "1s",
                "no_traffic_interval": "1s",
                "unhealthy_threshold": 1,
                "healthy_threshold": 1,
                "http_health_check": {
                    "path": IDENTITY_PATH,
                    "service_name_matcher": {"exact": identity},
                },
            }
        ],
    }


def picker_cluster(settings: RouterSettings) -> Config:
    return {
        **_cluster(settings, CLUSTER_PICKERS),
        "connect_timeout": "0.5s",
        "typed_extension_protocol_options": protocol(
            explicit_http_config={
                "http2_protocol_options": {
                    "connection_keepalive": {"interval": "1s", "timeout": "1s"}
                }
            }
        ),
        "health_checks": [
            {
                "timeout": "0.25s",
                "interval": "0.25s",
                "no_traffic_interval": "0.25s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "grpc_health_check": {},
            }
        ],
        # The first failed call moves all calls to the other picker, before the next health check.
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 1,
            "consecutive_gateway_failure": 1,
            "enforcing_consecutive_gateway_failure": 100,
            "interval": "0.1s",
            "base_ejection_time": "1s",
            "max_ejection_percent": 100,
            "enforcing_success_rate": 0,
        },
    }


def _cluster(settings: RouterSettings, name: str) -> Config:
    return {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {
            "service_name": name,
            "eds_config": file(settings, f"{name}.json"),
        },
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "common_lb_config": {
            # With the default of 50 %, requests also go to endpoints that are not healthy.
            "healthy_panic_threshold": {"value": 0},
            # The default delays each change of the health by 1 s.
            "update_merge_window": "0s",
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 10 * MAX_CONNECTIONS,
                    "max_pending_requests": 10 * MAX_CONNECTIONS,
                    "max_requests": 10 * MAX_CONNECTIONS,
                    # Not a percentage of the requests, because half of them need a retry when one
                    # of two replicas ends.
                    "max_retries": 1000,
                }
            ]
        },
    }


def build_endpoints(
    cluster: str,
    addresses: Sequence[tuple[str, int]],
    *,
    last: tuple[str, int] | None = None,
    identity_port: int | None = MANAGEMENT_PORT,
    version: str,
) -> Config:
    """Return the content of the file with a cluster's endpoints.

    The endpoint `last` gets a request only if no other endpoint is healthy. The health of `last` is
    not checked. Replicas confirm their identity at `identity_port`. Envoy reads the file again when
    another file replaces it.
    """
    check = {} if identity_port is None else {"health_check_config": {"port_value": identity_port}}
    endpoints = [_endpoint(each, check) for each in addresses]
    levels = [{"priority": 0, "lb_endpoints": endpoints}]
    if last is not None:
        unchecked = {"health_check_config": {"disable_active_health_check": True}}
        levels.append({"priority": 1, "lb_endpoints": [_endpoint(last, unchecked)]})
    return discovery(_assignment(cluster, levels), version)


def build_picker_endpoints(addresses: Sequence[tuple[str, int]], *, version: str) -> Config:
    """Return the content of the file with the pickers.

    The first healthy picker gets all calls. The order must be the same in all router pods. If two
    pickers chose at the same time, each one would know only half of the prompts.
    """
    levels = [
        {"priority": number, "lb_endpoints": [_endpoint(each, {})]}
        for number, each in enumerate(addresses)
    ]
    return discovery(_assignment(CLUSTER_PICKERS, levels), version)


def _assignment(cluster: str, levels: list[Config]) -> Config:
    return {
        "@type": f"{TYPES}config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": cluster,
        # With the default of 140, a level passes requests on to the next level even while some of
        # its endpoints are healthy.
        "policy": {"overprovisioning_factor": 100_000},
        "endpoints": levels,
    }


def _endpoint(address: tuple[str, int], health_check: Config) -> Config:
    host, port = address
    socket_address = {"address": host, "port_value": port}
    return {"endpoint": {"address": {"socket_address": socket_address}, **health_check}}


def discovery(resource: Config, version: str) -> Config:
    return {"version_info": version, "resources": [resource]}  # a file must have only one resource
