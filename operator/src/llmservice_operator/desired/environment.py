"""The environment of the model server's container."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.api import object_store
from llmservice_operator.api.autoscaling import DEFAULT_SLO
from llmservice_operator.api.environment import EnvironmentVariable
from llmservice_operator.api.lifecycle import SMOKE_TEST_SECONDS
from llmservice_operator.api.spec import LLMService, LLMServiceSpec
from llmservice_operator.desired.cache import cache_variables
from llmservice_operator.settings import OperatorSettings

_CACHES: Final = {
    "XDG_CACHE_HOME": names.CACHE_PATH,
    "HF_HOME": f"{names.CACHE_PATH}/huggingface",
    "VLLM_CACHE_ROOT": f"{names.CACHE_PATH}/vllm",
    "TORCHINDUCTOR_CACHE_DIR": f"{names.CACHE_PATH}/torchinductor",
    "TRITON_CACHE_DIR": f"{names.CACHE_PATH}/triton",
    "NUMBA_CACHE_DIR": f"{names.CACHE_PATH}/numba",
}
"""Cache folders of the libraries. The root filesystem is read-only, so they point to the cache
volume."""

_IDENTITY: Final = {"HOME": names.TMP_PATH, "USER": "llmservice", "LOGNAME": "llmservice"}
"""Identity of the container's user. The UID has no entry in /etc/passwd, so torch would fail to
look up the name of the user."""

_NO_TELEMETRY: Final = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}

_OF_THE_POD: Final = {
    names.REPLICA_NAMESPACE_ENV: "metadata.namespace",
    names.REPLICA_POD_ENV: "metadata.name",
    names.REPLICA_UID_ENV: "metadata.uid",
}
"""Variables that contain fields of the pod. With them, a replica can report its identity, so that a
router notices when another pod has taken over an address."""

MEBIBYTE: Final = 1024**2

REQUEST_TIMEOUT_SECONDS: Final = 600
"""Default time limit of one request, in seconds. If the limit of the drain is longer, it is used
instead. The value is the usual time limit of clients. The default drain has the same limit, so that
a rollout does not terminate a request that would have succeeded."""


def build_environment(service: LLMService, settings: OperatorSettings) -> list[dict[str, Any]]:
    """Return the container's variables. They refer to the Secret of a token and never contain the
    token.
    """
    termination = service.spec.termination
    values = {
        names.API_PORT_ENV: str(names.API_PORT),
        names.MANAGEMENT_PORT_ENV: str(names.MANAGEMENT_PORT),
        names.PRE_STOP_SECONDS_ENV: str(termination.pre_stop_seconds),
        names.DRAIN_TIMEOUT_SECONDS_ENV: str(termination.drain_timeout_seconds),
        **_limits(service),
        **_smoke_test(service),
        names.REPLICA_SERVICE_ENV: service.metadata.name,
        **_IDENTITY,
        **_CACHES,
        **_NO_TELEMETRY,
        **cache_variables(service),
    }
    if service.spec.model.offline:
        values |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if service.spec.model.takes_adapters:
        values[names.ADAPTERS_FILE_ENV] = f"{names.ADAPTERS_PATH}/{names.ADAPTERS_FILE}"
    if service.spec.auth is not None:
        values[names.API_KEYS_DIRECTORY_ENV] = names.API_KEYS_PATH
        if service.spec.auth.isolate_prefix_cache:
            values[names.ISOLATE_PREFIX_CACHE_ENV] = "true"
    if service.spec.ca_bundle is not None:
        values[names.CA_BUNDLE_ENV] = f"{names.CA_BUNDLE_PATH}/{names.CA_BUNDLE_FILE}"
    # These variables are set even while autoscaling is off, because switching autoscaling on must
    # not restart a pod.
    slo = service.spec.slo or DEFAULT_SLO
    limits = {
        names.SLO_TTFT_ENV: slo.ttft_milliseconds,
        names.SLO_ITL_ENV: slo.itl_milliseconds,
    }
    values |= {name: str(limit) for name, limit in limits.items() if limit is not None}
    hub = service.spec.model.hub_endpoint or settings.hub_endpoint
    if hub is not None:
        values[names.HUB_ENDPOINT_ENV] = hub
    environment: list[dict[str, Any]] = [
        {"name": name, "value": value} for name, value in values.items()
    ]
    environment.extend(
        {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
        for name, path in _OF_THE_POD.items()
    )
    token = service.spec.model.credentials_secret_ref
    if token is not None:
        reference = {"name": token.name, "key": token.key}
        environment.append({"name": names.HUB_TOKEN_ENV, "valueFrom": {"secretKeyRef": reference}})
    environment.extend(_object_store(service))
    template = service.spec.engine.chat_template
    if template is not None and template.config_map_key_ref is not None:
        # The template is in a variable and not in a file, because the pod's status reports a
        # missing ConfigMap only for a variable.
        chosen = template.config_map_key_ref.model_dump(by_alias=True)
        environment.append(
            {"name": names.CHAT_TEMPLATE_ENV, "valueFrom": {"configMapKeyRef": chosen}}
        )
    environment.extend(_variable(each) for each in service.spec.engine.env)
    return environment


def _object_store(service: LLMService) -> Iterator[dict[str, Any]]:
    """Yield the variables for access to the object store.

    Two libraries read from the store, boto3 and the streamer. The variables refer to the Secret of
    the credentials and never contain the credentials.
    """
    store = service.spec.model.object_store
    if store is None:
        return
    addressing = store.addressing or ("VirtualHost" if store.endpoint is None else "Path")
    values = {
        object_store.ENDPOINT: store.endpoint,
        object_store.STREAMER_ENDPOINT: store.endpoint,
        object_store.REGION: store.region,
        object_store.STREAMER_VIRTUAL_HOSTS: "1" if addressing == "VirtualHost" else "0",
    }
    for name, value in values.items():
        if value is not None:
            yield {"name": name, "value": value}
    if store.credentials_secret_ref is not None:
        for key in (object_store.ACCESS_KEY_ID, object_store.SECRET_ACCESS_KEY):
            reference = {"name": store.credentials_secret_ref.name, "key": key}
            yield {"name": key, "valueFrom": {"secretKeyRef": reference}}


def _limits(service: LLMService) -> dict[str, str]:
    """Return the variables for the limits of requests.

    The server has defaults for limits that are not set.
    """
    serving = service.spec.serving
    mebibytes = serving.max_body_mebibytes
    limits = {
        names.REQUEST_TIMEOUT_SECONDS_ENV: request_timeout_seconds(service.spec),
        names.ENGINE_HANG_SECONDS_ENV: serving.engine_hang_seconds,
        names.MAX_BODY_BYTES_ENV: None if mebibytes is None else mebibytes * MEBIBYTE,
        names.MAX_CHOICES_ENV: serving.max_choices,
    }
    return {name: str(limit) for name, limit in limits.items() if limit is not None}


def request_timeout_seconds(spec: LLMServiceSpec) -> int:
    """Return the time limit of a request in seconds; 0 means no limit."""
    if spec.serving.request_timeout_seconds is not None:
        return spec.serving.request_timeout_seconds
    # If the limit of the drain is longer, it is also the default limit of a request.
    return max(REQUEST_TIMEOUT_SECONDS, spec.termination.drain_timeout_seconds)


def _smoke_test(service: LLMService) -> dict[str, str]:
    """Return the variables of a smoke test that differs from the server's default.

    The default smoke test sets no variable, so that an upgrade of the operator restarts no pod.
    """
    test = service.spec.smoke_test
    if not test.enabled:
        return {names.SMOKE_TEST_ENV: "false"}
    texts = {names.SMOKE_TEST_PROMPT_ENV: test.prompt, names.SMOKE_TEST_EXPECT_ENV: test.expect}
    # The kubelet replaces $(NAME) with the value of a variable, which may be a token, and $$ with
    # $.
    values = {name: text.replace("$", "$$") for name, text in texts.items() if text is not None}
    if test.timeout_seconds != SMOKE_TEST_SECONDS:
        values[names.SMOKE_TEST_TIMEOUT_SECONDS_ENV] = str(test.timeout_seconds)
    return values


def _variable(variable: EnvironmentVariable) -> dict[str, Any]:
    """Return the variable of the spec. An empty value is omitted, as the API server omits it."""
    if variable.value_from is not None:
        source = variable.value_from.model_dump(by_alias=True, exclude_none=True)
        return {"name": variable.name, "valueFrom": source}
    return {"name": variable.name, **({"value": variable.value} if variable.value else {})}
