"""Names and limits in the configuration of Envoy that other modules use too."""

from typing import Final

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
