"""Names that the operator uses for objects, labels, ports, paths and environment variables.

No other module formats such a name, so that all modules use the same one. The names of metrics are
an exception. They are in the modules that declare the metrics.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from llmservice_operator import api

if TYPE_CHECKING:  # the processes of a router need the names, but not the models of the API
    from llmservice_operator.api.spec import LLMService

FIELD_MANAGER: Final = "llmservice-operator"
"""The operator's identity in server-side apply, and the value of the managed-by label."""

HANDOVER_FIELD_MANAGER: Final = f"{FIELD_MANAGER}-handover"
"""Field manager with which the operator writes a workload's spec.replicas when autoscaling is
switched on, and while the operator itself scales. The number of replicas therefore stays when the
operator's manifest no longer contains it."""

METRICS_SERVER_FIELD_MANAGER: Final = "llmservice-metrics-server"
"""Field manager that owns status.autoscaling.calibration and nothing else. The operator never sends
that field."""

MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
INSTANCE_LABEL: Final = "app.kubernetes.io/instance"
"""Label that other tools also use. By default, Argo CD deletes an object that has no owner if this
label contains the name of an application that does not declare the object."""
PART_OF_LABEL: Final = "app.kubernetes.io/part-of"
PART_OF: Final = "llmservice"
"""Value of the part-of label on objects that belong to the release and to no LLMService."""
SERVICE_LABEL: Final = f"{api.GROUP}/name"
"""Label with the LLMService's name on every child and pod. It is also the workload's selector,
which is immutable."""

ROUTER_LABEL: Final = f"{api.GROUP}/router-of"
"""Label with the LLMService's name on every router pod. Router pods do not have SERVICE_LABEL, so
no selector of the replicas matches them."""
ROUTER_APPLICATION: Final = f"{api.SINGULAR}-router"
"""Value of the label app.kubernetes.io/name on the pods of the router."""

NAMESPACE_NAME_LABEL: Final = "kubernetes.io/metadata.name"
"""Label that Kubernetes puts on every namespace, with the namespace's name."""
COMPONENT_LABEL: Final = "app.kubernetes.io/component"
METRICS_SERVER_COMPONENT: Final = "metrics-server"
"""Value of the component label on the pods of the metrics server."""

CHILD_SELECTOR: Final = f"{MANAGED_BY_LABEL}={FIELD_MANAGER}"
"""Label selector that matches every object and pod of every LLMService."""

ENGINE_VERSION_ANNOTATION: Final = f"{api.GROUP}/engine-version"
ENGINE_DEFAULT_FOR_ANNOTATION: Final = f"{api.GROUP}/engine-default-for"
ENGINE_ASSUMED_VERSION_ANNOTATION: Final = f"{api.GROUP}/engine-assumed-version"
"""With the workload's image, this annotation and the two above record the engine pin: the image and
version that a service stays on. They are on the workload, never on its pod template, because
recording the pin must not replace a pod."""

KEPT_REPLICAS_ANNOTATION: Final = f"{api.GROUP}/kept-replicas"
"""Annotation on the workload with the number of replicas to keep: the number at the time when
autoscaling was removed, or the number before a suspension."""

DELETION_COST_ANNOTATION: Final = "controller.kubernetes.io/pod-deletion-cost"
"""Annotation of Kubernetes. Among its ready pods, a ReplicaSet first deletes the pod with the
lowest cost."""

SERVICE_NAME_LENGTH: Final = 63
"""Maximum length of the name of a Service object, in characters."""

ROUTER_CONTAINER: Final = "router"
ROUTER_COMMAND: Final = ("llmservice-operator", "router")
PICKER_PORT_NAME: Final = "picker"
ROUTER_PICKER_PORT: Final = 9002
"""Port at which the proxies of all router pods ask a picker."""
GATEWAY_PORT_NAME: Final = "gateway"
ROUTER_GATEWAY_PORT: Final = 9004
"""Port at which the Envoys of Gateways ask a picker, by TLS."""
ROUTER_POD_ADDRESS_ENV: Final = "LLMSERVICE_ROUTER_POD_ADDRESS"
RUN_VOLUME: Final = "run"
RUN_PATH: Final = "/run/llmservice"
TLS_VOLUME: Final = "tls"
TLS_PATH: Final = "/etc/llmservice/tls"

SERVER_CONTAINER: Final = "server"
SERVER_COMMAND: Final = "llmservice-server"

RETRY_HEADER: Final = "x-llm-retry"
OTHER_REPLICA: Final = "other-replica"
"""Value of RETRY_HEADER. A replica adds the header to a response 503 if another replica may serve
the request."""

HELD_HEADER: Final = "x-llm-router-held-ms"
"""Header with the time in milliseconds for which a router held a request."""

ATTEMPT_HEADER: Final = "x-llm-router-attempt"
"""Header with the number of a router's attempt at a request, from 1. A router sets it only if
another replica gets the request after a refusal of attempt 1."""

STORED_HEADER: Final = "x-llm-stored-response"
"""Header with the id of a response that a replica has stored."""

IDENTITY_PATH: Final = "/identity"
"""Path on the management port at which a replica answers Envoy's health check with its
NAMESPACE/SERVICE."""

API_PORT_NAME: Final = "api"
API_PORT: Final = 8000
MANAGEMENT_PORT_NAME: Final = "management"
MANAGEMENT_PORT: Final = 9090
SERVICE_PORT_NAME: Final = "http"

STARTUP_PROBE_PATH: Final = "/startupz"
LIVENESS_PROBE_PATH: Final = "/livez"
READINESS_PROBE_PATH: Final = "/readyz"
GATEWAY_READINESS_PROBE_PATH: Final = "/readyz/gateways"
"""Path at a router pod that answers Gateways. An older router, which would not answer them, lacks
the path, so its pods do not become ready."""

API_PORT_ENV: Final = "LLMSERVICE_API_PORT"
MANAGEMENT_PORT_ENV: Final = "LLMSERVICE_MANAGEMENT_PORT"
PRE_STOP_SECONDS_ENV: Final = "LLMSERVICE_PRE_STOP_SECONDS"
DRAIN_TIMEOUT_SECONDS_ENV: Final = "LLMSERVICE_DRAIN_TIMEOUT_SECONDS"
REQUEST_TIMEOUT_SECONDS_ENV: Final = "LLMSERVICE_REQUEST_TIMEOUT_SECONDS"
ENGINE_HANG_SECONDS_ENV: Final = "LLMSERVICE_ENGINE_HANG_SECONDS"
MAX_BODY_BYTES_ENV: Final = "LLMSERVICE_MAX_BODY_BYTES"
MAX_CHOICES_ENV: Final = "LLMSERVICE_MAX_CHOICES"
CHAT_TEMPLATE_ENV: Final = "LLMSERVICE_CHAT_TEMPLATE"
"""Variable with the chat template of a ConfigMap. The server's command line refers to it."""
CA_BUNDLE_ENV: Final = "LLMSERVICE_CA_BUNDLE"
API_KEYS_DIRECTORY_ENV: Final = "LLMSERVICE_API_KEYS_DIRECTORY"
ISOLATE_PREFIX_CACHE_ENV: Final = "LLMSERVICE_ISOLATE_PREFIX_CACHE"
SLO_TTFT_ENV: Final = "LLMSERVICE_SLO_TTFT_MILLISECONDS"
SLO_ITL_ENV: Final = "LLMSERVICE_SLO_ITL_MILLISECONDS"
SMOKE_TEST_ENV: Final = "LLMSERVICE_SMOKE_TEST"
SMOKE_TEST_PROMPT_ENV: Final = "LLMSERVICE_SMOKE_TEST_PROMPT"
SMOKE_TEST_EXPECT_ENV: Final = "LLMSERVICE_SMOKE_TEST_EXPECT"
SMOKE_TEST_TIMEOUT_SECONDS_ENV: Final = "LLMSERVICE_SMOKE_TEST_TIMEOUT_SECONDS"
REPLICA_NAMESPACE_ENV: Final = "LLMSERVICE_REPLICA_NAMESPACE"
REPLICA_SERVICE_ENV: Final = "LLMSERVICE_REPLICA_SERVICE"
REPLICA_POD_ENV: Final = "LLMSERVICE_REPLICA_POD"
REPLICA_UID_ENV: Final = "LLMSERVICE_REPLICA_UID"
HUB_ENDPOINT_ENV: Final = "HF_ENDPOINT"
HUB_TOKEN_ENV: Final = "HF_TOKEN"
SHARED_CACHE_DIRECTORY_ENV: Final = "LLMSERVICE_SHARED_CACHE_DIRECTORY"
ADAPTERS_FILE_ENV: Final = "LLMSERVICE_ADAPTERS_FILE"

EXTERNAL_METRICS_GROUP: Final = "external.metrics.k8s.io"
EXTERNAL_METRICS_VERSION: Final = "v1beta1"
EXTERNAL_METRICS_API: Final = f"{EXTERNAL_METRICS_VERSION}.{EXTERNAL_METRICS_GROUP}"
"""Name of the APIService for external metrics."""
METRIC_SERVICE_LABEL: Final = "llmservice"
"""Label with the LLMService's name on every external metric and every gauge of the metrics
server."""

LOAD_REPORTS_PATH: Final = "/v1/scaling"
"""Path at which the metrics server serves all load reports as JSON."""

METRICS_SERVER_AUDIENCE: Final = "llmservice-metrics-server"
"""Audience of the tokens with which callers read load reports. The API server and other components
accept no such token."""

TOKEN_SENDER_ANNOTATION: Final = f"{api.GROUP}/token-sender"
"""Annotation of the operator's Lease: the identity of the last holder that sends its token to the
metrics servers. The operators of release 0.1 do not write it."""

WAKES_PATH: Final = "/v1/wakes"
"""Path at which the metrics server names the services without replicas whose routers hold requests.
It delays the answer until there is one."""

ROUTER_HELD_PATH: Final = "/held"
"""Path on the management port at which a router pod reports its held requests. It delays the answer
until there is one."""

ROUTER_REPLICAS_PATH: Final = "/replicas"
"""Path on the management port at which a router pod takes the list of replicas from a metrics
server."""

CACHE_VOLUME: Final = "cache"
CACHE_PATH: Final = "/cache"
MODEL_CACHE_VOLUME: Final = "model-cache"
MODEL_CACHE_PATH: Final = "/model-cache"
"""Writable mount path of the claim of spec.model.cache. The pod's own cache has another path."""
TMP_VOLUME: Final = "tmp"
TMP_PATH: Final = "/tmp"
SHM_VOLUME: Final = "shm"
SHM_PATH: Final = "/dev/shm"
API_KEYS_VOLUME: Final = "api-keys"
API_KEYS_PATH: Final = "/etc/llmservice/api-keys"
CA_BUNDLE_VOLUME: Final = "ca-bundle"
CA_BUNDLE_PATH: Final = "/etc/llmservice/ca-bundle"
CA_BUNDLE_FILE: Final = "ca.crt"
ADAPTERS_VOLUME: Final = "adapters"
ADAPTERS_PATH: Final = "/etc/llmservice/adapters"
ADAPTERS_FILE: Final = "adapters.json"
"""Key of the ConfigMap with the list of adapters, and name of its mounted file."""
MODELS_VOLUME: Final = "models"
MODELS_PATH: Final = "/models"
"""Read-only mount path of the claim of a pvc:// model."""
DRAFT_MODELS_VOLUME: Final = "draft-models"
DRAFT_MODELS_PATH: Final = "/draft-models"
"""Mount path of the claim of a pvc:// draft model, if it is not the claim of the model."""


def load_report_path(namespace: str, name: str) -> str:
    """Return the URL path of one LLMService's load report on the metrics server."""
    return f"{LOAD_REPORTS_PATH}/{namespace}/{name}"


def key_of(text: str) -> tuple[str, str]:
    """Return the namespace and the name of an LLMService that is written as NAMESPACE/NAME."""
    namespace, _, name = text.partition("/")
    return namespace, name


def child(service: LLMService) -> str:
    """Return the default name of a child, which is the LLMService's name."""
    return service.name


def workload(service: LLMService) -> str:
    return service.name


def autoscaler(service: LLMService) -> str:
    return service.name


def kubernetes_service(service: LLMService) -> str:
    """Return the Service object's name. It is the LLMService's name, so clients can predict it."""
    return service.name


def route(service: LLMService) -> str:
    """Return the name of the HTTPRoute."""
    return service.name


def cache_claim(service: LLMService) -> str:
    """Return the name of the claim that the operator creates for spec.model.cache."""
    return f"{service.name}-cache"


def router(service: LLMService) -> str:
    """Return the name of the router's Deployment, and of the other objects for its pods."""
    return _with_suffix(service.name, "-router")


def replica_addresses(service: LLMService) -> str:
    """Return the name of the headless Service object with the addresses of the replicas."""
    return _with_suffix(service.name, "-replicas")


def pickers(service: LLMService) -> str:
    """Return the name of the Service object through which Gateways ask the pickers."""
    return _with_suffix(service.name, "-pickers")


def inference_pool(service: LLMService) -> str:
    """Return the name of the InferencePool."""
    return service.name


def _with_suffix(name: str, suffix: str) -> str:
    """Return the name with a suffix, as a valid name of a Service object.

    The end of a long name is replaced by a digest.
    """
    if len(name) + len(suffix) <= SERVICE_NAME_LENGTH:
        return name + suffix
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: SERVICE_NAME_LENGTH - len(suffix) - 9]}-{digest}{suffix}"


def host(service: LLMService, name: str) -> str:
    """Return the DNS name of a Service object in the service's namespace."""
    return f"{name}.{service.namespace}.svc"


def adapters(service: LLMService) -> str:
    """Return the name of the ConfigMap with the list of adapters."""
    return f"{service.name}-adapters"


def url(service: LLMService) -> str:
    """Return the cluster-internal address of the API."""
    port = service.spec.service.port
    scheme, usual = ("http", 80) if service.spec.service.tls is None else ("https", 443)
    suffix = "" if port == usual else f":{port}"
    return f"{scheme}://{host(service, kubernetes_service(service))}{suffix}"


def selector(service: LLMService) -> dict[str, str]:
    """Return the labels that select all pods of the service. They are immutable in a workload."""
    return {SERVICE_LABEL: service.name}


def router_selector(service: LLMService) -> dict[str, str]:
    """Return the labels that select the router pods. They are immutable in a Deployment."""
    return {ROUTER_LABEL: service.name}


def router_labels(service: LLMService) -> dict[str, str]:
    """Return the labels of the router pods."""
    return {
        "app.kubernetes.io/name": ROUTER_APPLICATION,
        INSTANCE_LABEL: service.name,
        # The metrics servers watch the pods with this label. To the operator, a router pod belongs
        # to no service, because it lacks SERVICE_LABEL.
        MANAGED_BY_LABEL: FIELD_MANAGER,
        **router_selector(service),
    }


def labels(service: LLMService) -> dict[str, str]:
    """Return the labels of every child and pod."""
    return {
        "app.kubernetes.io/name": api.SINGULAR,
        INSTANCE_LABEL: service.name,
        MANAGED_BY_LABEL: FIELD_MANAGER,
        **selector(service),
    }
