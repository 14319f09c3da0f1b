"""Builds the routes, which choose the cluster and the retries of a request."""

from llmservice_operator.names import ATTEMPT_HEADER, HELD_HEADER, OTHER_REPLICA, RETRY_HEADER
from llmservice_operator.router.envoy_filters import PICKER_FILTER, picker_options
from llmservice_operator.router.envoy_names import (
    METADATA_ATTEMPT,
    METADATA_HELD,
    METADATA_NAMESPACE,
    SEEN_BODY_BYTES,
    SMALL_BODY_BYTES,
    STORED_PATH,
)
from llmservice_operator.router.envoy_parts import TYPES, Config, typed
from llmservice_operator.router_settings import RouterSettings


def routes(settings: RouterSettings, cluster: str, *, retry_on: str) -> Config:
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
                typed(
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
            PICKER_FILTER: picker_options(request_header_mode="SKIP"),
            # Without the buffer, Envoy would choose a replica before the picker has answered.
            "envoy.filters.http.buffer": {
                "@type": f"{TYPES}extensions.filters.http.buffer.v3.BufferPerRoute",
                "buffer": {"max_request_bytes": SMALL_BODY_BYTES + 1},
            },
        },
    }
    other = {
        "match": {"prefix": "/"},
        "route": route,
        "typed_per_filter_config": {PICKER_FILTER: picker_options(request_header_mode="SEND")},
    }
    stored = {**other, "match": {"prefix": STORED_PATH}}
    return {"virtual_hosts": [{**everything, "routes": [stored, small, other]}]}
