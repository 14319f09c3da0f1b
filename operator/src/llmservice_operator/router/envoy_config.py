"""Builds the configuration of Envoy from the settings of the router.

A comment gives the reason of each setting whose default would break a promise of the router.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from llmservice_operator.names import (
    ATTEMPT_HEADER,
    HELD_HEADER,
    IDENTITY_PATH,
    MANAGEMENT_PORT,
    OTHER_REPLICA,
    RETRY_HEADER,
    STORED_HEADER,
)
from llmservice_operator.router_settings import RouterSettings

Config = dict[str, Any]

CLUSTER_OR_FORWARDER: Final = "replicas_or_forwarder"
CLUSTER_REPLICAS: Final = "replicas"
CLUSTER_PICKERS: Final = "pickers"
"""Names of the clusters. The endpoints of a cluster are in the file NAME.json."""

TLS_FILE: Final = "tls.json"
ADMIN_SOCKET: Final = "admin.sock"
FORWARDED_SOCKET: Final = "forwarded.sock"
"""Socket at which the forwarder sends its requests to the replicas."""

METADATA_NAMESPACE: Final = "llmservice.router"
METADATA_KEY: Final = "endpoints"
"""Place of the picker's choice in a request's metadata: addresses, separated by commas."""

METADATA_ATTEMPT: Final = "attempt"
"""Place of the number of the first attempt in a request's metadata. The place is empty if no other
replica gets the request after a refusal."""

METADATA_HELD: Final = "held_ms"
"""Place, in a request's metadata, of the time in milliseconds for which the request was held."""

FORWARDED_METADATA: Final = "x-llm-router-forwarded"
"""gRPC metadata of a call to the picker about a request from the forwarder. No client can set
it."""

OWN_HEADERS: Final = "x-llm-router-"
NO_REPLICA_HEADER: Final = "x-llm-router-no-replica"
"""Header of a response to the forwarder, which must then send the request again later."""

SMALL_BODY_BYTES: Final = 64 * 1024
"""Size up to which a body is sent to the picker together with the headers. A separate message takes
about 1 ms of CPU time."""

SEEN_BODY_BYTES: Final = 1024**2
"""Bytes of a body that Envoy buffers. The picker sees no more, a longer body cannot be sent to a
second replica, and an upload without a valid key is stopped at this size."""

STORED_PATH: Final = "/v1/responses/"
"""Beginning of the paths that name a stored response. The path decides which replica is chosen, so
the picker gets it even if the body is small."""

HEAP_BYTES: Final = 256 * 1024**2
MAX_CONNECTIONS: Final = 4000
BODY_SECONDS: Final = 60
HEADERS_SECONDS: Final = 10
SILENCE_SECONDS: Final = 600
"""Longest time in seconds that a replica may take until the next byte of its answer."""

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

_PICKER_FILTER: Final = "envoy.filters.http.ext_proc"
_TYPES: Final = "type.googleapis.com/envoy."
_RECEIVED_METADATA: Final = {"receiving_namespaces": {"untyped": [METADATA_NAMESPACE]}}
"""Namespaces of the metadata that Envoy accepts from the picker. It drops others silently."""
_BUFFER_BYTES: Final = 32 * 1024  # a slow client slows its replica down after 32 KiB, not 1 MiB


def build_bootstrap(settings: RouterSettings) -> Config:
    """Return the bootstrap configuration."""
    return {
        "node": {"id": "router", "cluster": settings.service},
        # A TCP port or an abstract socket would be open to every process of the pod.
        "admin": {"address": _pipe(settings, ADMIN_SOCKET)},
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
            "listeners": [_client_listener(settings), _forwarder_listener(settings)],
            "clusters": [
                _replica_cluster(settings, CLUSTER_OR_FORWARDER),
                _replica_cluster(settings, CLUSTER_REPLICAS),
                _picker_cluster(settings),
            ],
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
    return _discovery(_assignment(cluster, levels), version)


def build_picker_endpoints(addresses: Sequence[tuple[str, int]], *, version: str) -> Config:
    """Return the content of the file with the pickers.

    The first healthy picker gets all calls. The order must be the same in all router pods. If two
    pickers chose at the same time, each one would know only half of the prompts.
    """
    levels = [
        {"priority": number, "lb_endpoints": [_endpoint(each, {})]}
        for number, each in enumerate(addresses)
    ]
    return _discovery(_assignment(CLUSTER_PICKERS, levels), version)


def build_tls_secret(settings: RouterSettings) -> Config:
    """Return the content of the file that names the certificate.

    Envoy reads the certificate again after the kubelet has replaced it. It does so only for a
    certificate that such a file names.
    """
    folder = settings.tls_directory
    secret = {
        "@type": f"{_TYPES}extensions.transport_sockets.tls.v3.Secret",
        "name": "server",
        "tls_certificate": {
            "certificate_chain": {"filename": f"{folder}/tls.crt"},
            "private_key": {"filename": f"{folder}/tls.key"},
            "watched_directory": {"path": str(folder)},
        },
    }
    return _discovery(secret, "1")


def _discovery(resource: Config, version: str) -> Config:
    return {"version_info": version, "resources": [resource]}  # a file must have only one resource


def _assignment(cluster: str, levels: list[Config]) -> Config:
    return {
        "@type": f"{_TYPES}config.endpoint.v3.ClusterLoadAssignment",
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


def _overload_manager() -> Config:
    # This is the last limit. It refuses new requests, but does not stop uploads, which the picker's
    # grants bound.
    connections = "envoy.resource_monitors.global_downstream_max_connections"
    heap = "envoy.resource_monitors.fixed_heap"
    return {
        "refresh_interval": "0.1s",
        "resource_monitors": [
            _typed(
                heap,
                "resource_monitors.fixed_heap.v3.FixedHeapConfig",
                max_heap_size_bytes=HEAP_BYTES,
            ),
            _typed(
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


def _client_listener(settings: RouterSettings) -> Config:
    manager = {
        "stat_prefix": "clients",
        "early_header_mutation_extensions": _removal("x-envoy-", "x-gateway-", OWN_HEADERS),
        "use_remote_address": True,
        # An empty list would trust the private ranges, and with them every pod. This address is
        # one of a range for documentation.
        "internal_address_config": {
            "cidr_ranges": [{"address_prefix": "192.0.2.255", "prefix_len": 32}]
        },
        "normalize_path": True,
        "merge_slashes": True,
        "request_headers_timeout": f"{HEADERS_SECONDS}s",
        # This limit ends slow uploads. It does not include the time for which the picker holds a
        # request whose body has arrived.
        "request_timeout": f"{BODY_SECONDS}s",
        "local_reply_config": _local_replies(settings),
        "route_config": _routes(
            settings,
            CLUSTER_OR_FORWARDER,
            retry_on="connect-failure,refused-stream,reset-before-request,reset,retriable-headers",
        ),
        "http_filters": [_body_limit(settings), *_filters(settings)],
    }
    listener = _listener("clients", _manager(settings, manager))
    # An IPv6 socket that also accepts IPv4 would fail on a node without IPv6.
    listener["address"] = {
        "socket_address": {"address": "0.0.0.0", "port_value": settings.client_port}
    }
    if settings.tls_directory is not None:
        listener["filter_chains"][0]["transport_socket"] = _tls(settings)
    return listener


def _forwarder_listener(settings: RouterSettings) -> Config:
    # The forwarder's requests go only to replicas. The listener for clients would send them back to
    # the forwarder while there is no replica.
    retry = [
        _reply(_flags("UC"), 502, "the replica ended while it held the request"),
        _reply(
            _flags("UH", "UF"),
            503,
            "no replica is available",
            headers={NO_REPLICA_HEADER: "1"},
        ),
    ]
    manager = {
        "stat_prefix": "forwarded",
        # OWN_HEADERS stay. In one of them, the forwarder says how long it held the request.
        "early_header_mutation_extensions": _removal("x-envoy-", "x-gateway-"),
        "local_reply_config": {"mappers": [*retry, *_local_replies(settings)["mappers"]]},
        # `reset` is left out: this request may have ended one replica before the forwarder got it,
        # so a retry could end a third replica.
        "route_config": _routes(
            settings,
            CLUSTER_REPLICAS,
            retry_on="connect-failure,refused-stream,reset-before-request",
        ),
        "http_filters": _filters(settings, forwarded=True),
    }
    listener = _listener("forwarded", _manager(settings, manager))
    listener["address"] = _pipe(settings, FORWARDED_SOCKET)
    return listener


def _removal(*prefixes: str) -> list[Config]:
    """Return the filter that removes headers with these prefixes.

    A route would remove the headers only after Envoy has obeyed them.
    """
    mutations = [{"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in prefixes]
    kind = "http.early_header_mutation.header_mutation.v3.HeaderMutation"
    return [_typed("strip", kind, mutations=mutations)]


def _listener(name: str, manager: Config) -> Config:
    return {
        "name": name,
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        "filter_chains": [{"filters": [manager]}],
    }


def _manager(settings: RouterSettings, more: Config) -> Config:
    return _typed(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        common_http_protocol_options={
            # x_envoy_… becomes x-envoy-… in many servers.
            "headers_with_underscores_action": "REJECT_REQUEST",
            "max_headers_count": 100,
            "idle_timeout": "120s",
        },
        http2_protocol_options={
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 64 * 1024,
            "initial_connection_window_size": 1024**2,
        },
        server_header_transformation="PASS_THROUGH",
        preserve_external_request_id=True,
        # The default would end a request after 5 minutes of waiting or of computation.
        stream_idle_timeout=f"{settings.hold_timeout_seconds + SILENCE_SECONDS}s",
        **more,
    )


def _routes(settings: RouterSettings, cluster: str, *, retry_on: str) -> Config:
    route = {
        "cluster": cluster,
        "timeout": "0s",
        "retry_policy": {
            "retry_on": retry_on,
            "retriable_headers": [{"name": RETRY_HEADER, "string_match": {"exact": OTHER_REPLICA}}],
            # Retries for all causes count together, so at most two replicas ever get a request.
            "num_retries": 1,
            "retry_back_off": {"base_interval": "0.01s", "max_interval": "0.05s"},
            "retry_host_predicate": [
                _typed(
                    "envoy.retry_host_predicates.previous_hosts",
                    "retry.host.previous_hosts.v3.PreviousHostsPredicate",
                )
            ],
            # Number of times that the retry looks for another replica. After 5 times, it sometimes
            # still has the first one, even of two.
            "host_selection_retry_max_attempts": 30,
        },
    }
    has_small_body = {
        "name": "content-length",
        # For a request without a body, Envoy sends the picker no message about a body, so the
        # picker must get a message about the headers.
        "range_match": {"start": 1, "end": SMALL_BODY_BYTES + 1},
    }
    everything = {
        "name": "all",
        "domains": ["*"],
        "request_body_buffer_limit": SEEN_BODY_BYTES,
        # For a request with a small body, the picker would change the headers too late.
        "request_headers_to_add": [
            {
                "header": {
                    "key": header,
                    "value": f"%DYNAMIC_METADATA({METADATA_NAMESPACE}:{key})%",
                },
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
            for header, key in ((HELD_HEADER, METADATA_HELD), (ATTEMPT_HEADER, METADATA_ATTEMPT))
        ],
        # With this option, Envoy numbers the attempts in the header x-envoy-attempt-count.
        "include_request_attempt_count": "retriable-headers" in retry_on,
    }
    small = {
        "match": {"prefix": "/", "headers": [has_small_body]},
        "route": route,
        "typed_per_filter_config": {
            _PICKER_FILTER: _picker_options(request_header_mode="SKIP"),
            # Without the buffer, Envoy would choose a replica before the picker has answered.
            "envoy.filters.http.buffer": {
                "@type": f"{_TYPES}extensions.filters.http.buffer.v3.BufferPerRoute",
                "buffer": {"max_request_bytes": SMALL_BODY_BYTES + 1},
            },
        },
    }
    other = {
        "match": {"prefix": "/"},
        "route": route,
        "typed_per_filter_config": {_PICKER_FILTER: _picker_options(request_header_mode="SEND")},
    }
    stored = {**other, "match": {"prefix": STORED_PATH}}
    return {"virtual_hosts": [{**everything, "routes": [stored, small, other]}]}


def _picker_options(*, request_header_mode: str) -> Config:
    # Only the options of routes ask for the response's headers. If the filter asked for them, a
    # client whose request is not valid HTTP would get no response: Envoy would close the connection
    # before the picker has answered.
    return {
        "@type": f"{_TYPES}extensions.filters.http.ext_proc.v3.ExtProcPerRoute",
        "overrides": {
            "processing_mode": _processing_mode(
                request_header_mode=request_header_mode,
                # The response's headers tell the picker that the replica has computed the prompt.
                response_header_mode="SEND",
                # Otherwise, Envoy would end the call after the response's headers. The end of the
                # call tells the picker that the request has ended.
                response_trailer_mode="SEND",
            ),
            # Overrides without this option drop the metadata, even if the filter itself has the
            # option.
            "metadata_options": _RECEIVED_METADATA,
        },
    }


def _local_replies(settings: RouterSettings) -> Config:
    """Return the form of the responses that Envoy itself sends, including the picker's refusals."""
    flags, status, size = _flags, _status, settings.max_body_bytes
    return {
        "mappers": [
            _reply(flags("UC", "UF", "URX"), 502, "no replica could answer; send it again"),
            _reply(flags("UH"), 503, "no replica is available; send the request again later"),
            _reply(flags("OM", "UO"), 503, "the router has too many requests; send it again later"),
            _reply(status(413), 413, f"the body is larger than {size} bytes; send a shorter one"),
            _reply(
                status(408), 408, f"the body did not arrive within {BODY_SECONDS} s; send it faster"
            ),
            _reply(status(431), 431, "the headers are too long; send fewer or shorter ones"),
            _reply(status(403), 403, "the router serves no other protocol; send no header Upgrade"),
            *(_reply(status(code), code, None) for code in (400, 401, 404, 502, 503)),
        ]
    }


def _reply(
    when: Config, code: int, message: str | None, *, headers: dict[str, str] | None = None
) -> Config:
    """Return a rule that puts a reply into OpenAI's envelope, as the model server does.

    If `message` is None, the text that the picker or Envoy has written is the message.
    """
    kind = HTTPStatus(code).phrase.replace(" ", "") + ("" if code >= 500 else "Error")
    added = {"x-request-id": "%REQ(X-REQUEST-ID)%", **(headers or {})}
    if code == HTTPStatus.SERVICE_UNAVAILABLE:
        added["retry-after"] = "5"
    error = {"message": message or "%LOCAL_REPLY_BODY%", "type": kind, "param": None, "code": code}
    return {
        "filter": when,
        "status_code": code,
        "headers_to_add": [
            {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for key, value in added.items()
        ],
        "body_format_override": {"json_format": {"error": error}},
    }


def _flags(*names: str) -> Config:
    return {"response_flag_filter": {"flags": list(names)}}


def _status(code: int) -> Config:
    value = {"default_value": code, "runtime_key": "router.unused"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _body_limit(settings: RouterSettings) -> Config:
    # This filter refuses a body by its announced length before a byte is read, even if no picker
    # runs.
    return _typed(
        "envoy.filters.http.body_size_limit",
        "filters.http.body_size_limit.v3.BodySizeLimit",
        max_request_bytes=settings.max_body_bytes,
    )


def _filters(settings: RouterSettings, *, forwarded: bool = False) -> list[Config]:
    buffer = _typed(
        "envoy.filters.http.buffer",
        "filters.http.buffer.v3.Buffer",
        max_request_bytes=SMALL_BODY_BYTES + 1,
    )
    router = _typed(
        "envoy.filters.http.router", "filters.http.router.v3.Router", suppress_envoy_headers=True
    )
    # The route of small bodies enables the buffer.
    return [
        _picker_filter(settings, forwarded=forwarded),
        {**buffer, "disabled": True},
        router,
    ]


def _picker_filter(settings: RouterSettings, *, forwarded: bool) -> Config:
    service: Config = {
        "envoy_grpc": {"cluster_name": CLUSTER_PICKERS},
        "timeout": "0s",
        # If a picker has ended, the call goes to another one.
        "retry_policy": {
            "num_retries": 2,
            "retry_on": "connect-failure,refused-stream,reset,unavailable",
            "retry_back_off": {"base_interval": "0.02s", "max_interval": "0.1s"},
        },
    }
    if forwarded:
        service["initial_metadata"] = [{"key": FORWARDED_METADATA, "value": "1"}]
    needed = (
        *(":method", ":path", ":status", "authorization", "x-api-key", HELD_HEADER),
        *("content-length", "origin", "access-control-request-method", STORED_HEADER),
    )
    return _typed(
        _PICKER_FILTER,
        "filters.http.ext_proc.v3.ExternalProcessor",
        grpc_service=service,
        processing_mode=_processing_mode(),
        # These attributes give the picker the headers of a request with a small body. The only
        # message about such a request is the one with its body.
        request_attributes=[
            f"request.headers['{name}']"
            for name in (":path", "authorization", "x-api-key", HELD_HEADER)
        ],
        response_attributes=[
            "response.flags",
            "upstream.address",
            "upstream.request_attempt_count",
        ],
        forward_rules={"allowed_headers": {"patterns": [{"exact": name} for name in needed]}},
        # A picker that hangs delays a request by 1 s. A picker that holds a request extends this
        # time.
        message_timeout="1s",
        max_message_timeout=f"{settings.hold_timeout_seconds + SILENCE_SECONDS}s",
        failure_mode_allow=True,
        metadata_options=_RECEIVED_METADATA,
    )


def _processing_mode(**modes: str) -> Config:
    return {
        "request_header_mode": "SEND",
        "response_header_mode": "SKIP",
        "request_body_mode": "BUFFERED_PARTIAL",
        "response_body_mode": "NONE",
        "request_trailer_mode": "SKIP",
        "response_trailer_mode": "SKIP",
        **modes,
    }


def _replica_cluster(settings: RouterSettings, name: str) -> Config:
    least_request = _typed("least_request", "load_balancing_policies.least_request.v3.LeastRequest")
    override = _typed(
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
        "typed_extension_protocol_options": _protocol(
            # Shorter than the 120 s after which a model server closes an idle connection.
            common_http_protocol_options={"idle_timeout": "60s"},
            explicit_http_config={"http_protocol_options": {}},
            # Only a filter of the cluster runs again for the second attempt.
            http_filters=[
                _typed(
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
                _typed(
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


def _picker_cluster(settings: RouterSettings) -> Config:
    return {
        **_cluster(settings, CLUSTER_PICKERS),
        "connect_timeout": "0.5s",
        "typed_extension_protocol_options": _protocol(
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
            "eds_config": _file(settings, f"{name}.json"),
        },
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
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


def _tls(settings: RouterSettings) -> Config:
    secret = {"name": "server", "sds_config": _file(settings, TLS_FILE)}
    return _typed(
        "envoy.transport_sockets.tls",
        "transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context={
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificate_sds_secret_configs": [secret],
        },
    )


def _protocol(**options: Any) -> Config:
    name = "extensions.upstreams.http.v3.HttpProtocolOptions"
    return {f"envoy.{name}": {"@type": f"{_TYPES}{name}", **options}}


def _file(settings: RouterSettings, name: str) -> Config:
    folder = str(settings.run_directory)
    source = {"path": f"{folder}/{name}", "watched_directory": {"path": folder}}
    return {"path_config_source": source}


def _pipe(settings: RouterSettings, name: str) -> Config:
    return {"pipe": {"path": f"{settings.run_directory}/{name}", "mode": 0o600}}


def _typed(name: str, type_name: str, **fields: Any) -> Config:
    return {
        "name": name,
        "typed_config": {"@type": f"{_TYPES}extensions.{type_name}", **fields},
    }
