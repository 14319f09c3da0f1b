"""Builds the listeners for the clients and for the forwarder."""

from llmservice_operator.router.envoy_filters import body_limit, filters
from llmservice_operator.router.envoy_names import (
    BODY_SECONDS,
    CLUSTER_OR_FORWARDER,
    CLUSTER_REPLICAS,
    FORWARDED_SOCKET,
    HEADERS_SECONDS,
    NO_REPLICA_HEADER,
    OWN_HEADERS,
    SILENCE_SECONDS,
    TLS_FILE,
)
from llmservice_operator.router.envoy_parts import BUFFER_BYTES, Config, file, pipe, typed
from llmservice_operator.router.envoy_replies import flags, local_replies, reply
from llmservice_operator.router.envoy_routes import routes
from llmservice_operator.router_settings import RouterSettings


def client_listener(settings: RouterSettings) -> Config:
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
        "local_reply_config": local_replies(settings),
        "route_config": routes(
            settings,
            CLUSTER_OR_FORWARDER,
            retry_on="connect-failure,refused-stream,reset-before-request,reset,retriable-headers",
        ),
        "http_filters": [body_limit(settings), *filters(settings)],
    }
    listener = _listener("clients", _manager(settings, manager))
    # An IPv6 socket that also accepts IPv4 would fail on a node without IPv6.
    listener["address"] = {
        "socket_address": {"address": "0.0.0.0", "port_value": settings.client_port}
    }
    if settings.tls_directory is not None:
        listener["filter_chains"][0]["transport_socket"] = _tls(settings)
    return listener


def forwarder_listener(settings: RouterSettings) -> Config:
    # The forwarder's requests go only to replicas. The listener for clients would send them back to
    # the forwarder while there is no replica.
    retry = [
        reply(flags("UC"), 502, "the replica ended while it held the request"),
        reply(
            flags("UH", "UF"),
            503,
            "no replica is available",
            headers={NO_REPLICA_HEADER: "1"},
        ),
    ]
    manager = {
        "stat_prefix": "forwarded",
        # OWN_HEADERS stay. In one of them, the forwarder says how long it held the request.
        "early_header_mutation_extensions": _removal("x-envoy-", "x-gateway-"),
        "local_reply_config": {"mappers": [*retry, *local_replies(settings)["mappers"]]},
        # `reset` is left out: this request may have ended one replica before the forwarder got it,
        # so a retry could end a third replica.
        "route_config": routes(
            settings,
            CLUSTER_REPLICAS,
            retry_on="connect-failure,refused-stream,reset-before-request",
        ),
        "http_filters": filters(settings, forwarded=True),
    }
    listener = _listener("forwarded", _manager(settings, manager))
    listener["address"] = pipe(settings, FORWARDED_SOCKET)
    return listener


def _removal(*prefixes: str) -> list[Config]:
    """Return the filter that removes headers with these prefixes.

    A route would remove the headers only after Envoy has obeyed them.
    """
    mutations = [{"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in prefixes]
    kind = "http.early_header_mutation.header_mutation.v3.HeaderMutation"
    return [typed("strip", kind, mutations=mutations)]


def _listener(name: str, manager: Config) -> Config:
    return {
        "name": name,
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "filter_chains": [{"filters": [manager]}],
    }


def _manager(settings: RouterSettings, more: Config) -> Config:
    return typed(
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


def _tls(settings: RouterSettings) -> Config:
    secret = {"name": "server", "sds_config": file(settings, TLS_FILE)}
    return typed(
        "envoy.transport_sockets.tls",
        "transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context={
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificate_sds_secret_configs": [secret],
        },
    )
