from importlib.metadata import version
from pathlib import Path

import pytest

from llmservice_operator.api.accelerator_class import parse_classes
from llmservice_operator.api.server_defaults import Proxy, ServerDefaults
from llmservice_operator.errors import InvalidSettings
from llmservice_operator.router_settings import (
    ClientLimits,
    LimitsOfClients,
    RouterSettings,
    StepPrior,
)
from llmservice_operator.settings import (
    VALUES,
    MetricsServerSettings,
    OperatorSettings,
    ServerImages,
)


def test_an_empty_environment_gives_the_released_images_and_all_namespaces() -> None:
    release = version("llmservice-operator")
    assert OperatorSettings.from_environment({}) == OperatorSettings(
        images=ServerImages(
            gpu=f"registry.invalid/llmservice/server-gpu:{release}",
            cpu=f"registry.invalid/llmservice/server-cpu:{release}",
            engine_version="0.32.0",
        ),
        hub_endpoint=None,
        watch_namespaces=(),
        namespace="llmservice-system",
        lease_name="llmservice-operator",
        health_port=8080,
        log_level="INFO",
    )


def test_every_setting_is_read_from_its_variable() -> None:
    environment = {
        "SERVER_IMAGE_GPU": "gpu:1",
        "SERVER_IMAGE_CPU": "cpu:1",
        "ENGINE_VERSION": "1.2.3",
        "HUB_ENDPOINT": "http://hub:8090",
        "METRICS_SERVER_URL": "http://metrics:8081",
        "METRICS_SERVER_PODS_HOST": "metrics-pods",
        "KEDA": "True",
        "TRIGGER_AUTHENTICATION": "TriggerAuthentication/token",
        "METRICS_API": "false",
        "METRICS_SERVER_CIDRS": "10.0.0.0/16, fd00::/8",
        "WATCH_NAMESPACES": "a, b,,",
        "NAMESPACE": "system",
        "LEASE_NAME": "lease",
        "LEASE_SECONDS": "60",
        "MONITORING_NAMESPACE": "monitoring",
        "MONITORING_POD_LABELS": "app=prometheus, team=",
        "HEALTH_PORT": "8081",
        "LOG_LEVEL": "debug",
        "AUDIT_PERIOD_SECONDS": "5",
        "ACCELERATOR_CLASSES": '{"a": {"gpu": "H100"}}',
        "GPUS_PER_NODE": "16",
        "SERVER_DEFAULTS": '{"proxy": {"http": "http://proxy"}}',
        "EXTERNAL_METRICS_PORT": "1",
        "SCALING_PORT": "2",
        "METRICS_SERVICE_NAME": "service",
        "METRICS_SERVICE_PORT": "3",
        "OWNER_ROLE": "role",
        "POD_ADDRESS": "10.0.0.1",
        "DRAIN_SECONDS": "0",
        "REPORT_READERS": "system/operator, system/metrics",
        "KEDA_READER": "keda/reader",
        "OPERATOR_LEASE_NAME": "operators",
        "TOKEN_FILE": "/run/token",
    }
    assert OperatorSettings.from_environment(
        {f"LLMSERVICE_OPERATOR_{name}": value for name, value in environment.items()}
    ) == OperatorSettings(
        images=ServerImages(gpu="gpu:1", cpu="cpu:1", engine_version="1.2.3"),
        hub_endpoint="http://hub:8090",
        metrics_server_url="http://metrics:8081",
        metrics_server_pods_host="metrics-pods",
        keda=True,
        trigger_authentication="TriggerAuthentication/token",
        metrics_api=False,
        metrics_server_cidrs=("10.0.0.0/16", "fd00::/8"),
        watch_namespaces=("a", "b"),
        namespace="system",
        lease_name="lease",
        lease_seconds=60,
        monitoring_namespace="monitoring",
        monitoring_pod_labels={"app": "prometheus", "team": ""},
        health_port=8081,
        log_level="DEBUG",
        audit_period_seconds=5,
        accelerator_classes=parse_classes('{"a": {"gpu": "H100"}}', ""),
        gpus_per_node=16,
        server_defaults=ServerDefaults(proxy=Proxy(http="http://proxy")),
        metrics_server=MetricsServerSettings(
            external_port=1,
            scaling_port=2,
            service_name="service",
            service_port=3,
            owner_role="role",
            pod_address="10.0.0.1",
            drain_seconds=0,
            report_readers=("system/operator", "system/metrics"),
            keda_reader="keda/reader",
            operator_lease_name="operators",
        ),
        token_file=Path("/run/token"),
    )


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        (
            "METRICS_SERVER_URL",
            "metrics:8081",
            "write an address that starts with http:// or https://",
        ),
        ("MONITORING_POD_LABELS", "app", "write KEY=VALUE,KEY=VALUE"),
        ("MONITORING_POD_LABELS", "=prometheus", "write KEY=VALUE,KEY=VALUE"),
        ("HUB_ENDPOINT", "hub:8090", "write an address that starts with http:// or https://"),
        ("KEDA", "yes", "write true or false"),
        ("METRICS_API", "off", "write true or false"),
        ("METRICS_SERVER_CIDRS", "10.0.0.1/16", "10.0.0.1/16 has host bits set"),
        ("GPUS_PER_NODE", "65", "write a whole number from 1 to 64"),
        ("GPUS_PER_NODE", "0", "write a whole number from 1 to 64"),
        ("HEALTH_PORT", "http", "write a port number from 1 to 65535"),
        ("HEALTH_PORT", "0", "write a port number from 1 to 65535"),
        ("HEALTH_PORT", "65536", "write a port number from 1 to 65535"),
        ("AUDIT_PERIOD_SECONDS", "0.5", "write a whole number from 1"),
        ("AUDIT_PERIOD_SECONDS", "0", "write a whole number from 1"),
        ("AUDIT_PERIOD_SECONDS", "1.5", "write a whole number from 1"),
        ("METRICS_SERVICE_PORT", "0", "write a port number from 1 to 65535"),
        ("EXTERNAL_METRICS_PORT", "x", "write a port number from 1 to 65535"),
        ("DRAIN_SECONDS", "-1", "write a whole number up to 3600"),
        (
            "REPORT_READERS",
            "operator",
            "write NAMESPACE/NAME of ServiceAccounts, separated by commas",
        ),
        (
            "TRIGGER_AUTHENTICATION",
            "Secret/token",
            "write KIND/NAME, such as ClusterTriggerAuthentication/load-reports",
        ),
        ("KEDA_READER", "a/b/c", "write NAME or NAMESPACE/NAME"),
        ("LOG_LEVEL", "LOUD", "write one of DEBUG, INFO, WARNING, ERROR"),
        ("NAMESPACE", "Not A Name", "write the name of a namespace"),
        ("NAMESPACE", "x" * 64, "write the name of a namespace"),
        ("MONITORING_NAMESPACE", "a.b", "write the name of a namespace"),
        ("WATCH_NAMESPACES", "a,b_c", "write names of namespaces, separated by commas"),
        ("LEASE_NAME", "-lease", "write the name of an object"),
        ("LEASE_SECONDS", "14", "write a whole number from 15 to 600"),
        ("LEASE_SECONDS", "601", "write a whole number from 15 to 600"),
    ],
)
def test_a_wrong_setting_is_refused_by_name_with_the_remedy(
    name: str, value: str, remedy: str
) -> None:
    variable = f"LLMSERVICE_OPERATOR_{name}"
    with pytest.raises(InvalidSettings) as refused:
        OperatorSettings.from_environment({variable: value})
    assert str(refused.value).startswith(f"{variable} is {value!r}: {remedy}")


@pytest.mark.parametrize("name", VALUES)
def test_a_wrong_setting_from_a_chart_value_is_refused_by_the_name_of_the_value(name: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        OperatorSettings.from_environment({f"LLMSERVICE_OPERATOR_{name}": "{x}: /"})
    assert str(refused.value).endswith(f" (chart value {VALUES[name]})")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("HUB_ENDPOINT", "https://hub:99999", "its port is no number from 1 to 65535"),
        ("HUB_ENDPOINT", "https://hub:0", "its port is no number from 1 to 65535"),
        ("HUB_ENDPOINT", "https://hub:x/y", "its port is no number from 1 to 65535"),
        ("HUB_ENDPOINT", "https://", "it has no valid host"),
        ("HUB_ENDPOINT", "https:///path", "it has no valid host"),
        ("HUB_ENDPOINT", "https://hub example", "it has no valid host"),
        ("HUB_ENDPOINT", "https://[::1", "it has no valid host"),
        ("METRICS_SERVER_URL", "http://metrics:65536", "its port is no number from 1 to 65535"),
        ("MONITORING_POD_LABELS", "a b=c", "'a b' is no label key"),
        ("MONITORING_POD_LABELS", "app=no value", "'no value' is no label value"),
    ],
)
def test_a_setting_with_which_every_pass_would_fail_is_refused_at_the_start(
    name: str, value: str, problem: str
) -> None:
    variable = f"LLMSERVICE_OPERATOR_{name}"
    with pytest.raises(InvalidSettings) as refused:
        OperatorSettings.from_environment({variable: value})
    assert str(refused.value).startswith(f"{variable} is {value!r}: {problem}")


def test_a_refused_hub_endpoint_names_the_value_of_the_chart() -> None:
    with pytest.raises(InvalidSettings, match=r"\(chart value model\.hubEndpoint\)"):
        OperatorSettings.from_environment({"LLMSERVICE_OPERATOR_HUB_ENDPOINT": "https://hub:99999"})


@pytest.mark.parametrize(
    "address", ["https://hub.example.com/mirror", "http://10.0.0.1:8090", "http://[fd00::1]:80/x"]
)
def test_an_address_of_every_form_is_taken(address: str) -> None:
    settings = OperatorSettings.from_environment({"LLMSERVICE_OPERATOR_HUB_ENDPOINT": address})
    assert settings.hub_endpoint == address


def test_every_wrong_variable_is_named_at_once() -> None:
    with pytest.raises(InvalidSettings) as refused:
        OperatorSettings.from_environment(
            {
                "LLMSERVICE_OPERATOR_KEDA": "Yes",
                "LLMSERVICE_OPERATOR_SCALING_PORT": "0",
                "LLMSERVICE_OPERATOR_ACCELERATOR_CLASSES": '{"a": {"nodes": {}}}',
            }
        )
    assert sorted(str(refused.value).split("; ")) == [
        "LLMSERVICE_OPERATOR_ACCELERATOR_CLASSES: a.nodes: Extra inputs are not permitted"
        " (chart value acceleratorClasses)",
        "LLMSERVICE_OPERATOR_KEDA is 'Yes': write true or false (chart value keda.enabled)",
        "LLMSERVICE_OPERATOR_SCALING_PORT is '0': write a port number from 1 to 65535",
    ]


def test_only_from_environment_reads_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = OperatorSettings()
    for name in ("SERVER_IMAGE_GPU", "LEASE_NAME", "POD_ADDRESS"):
        monkeypatch.setenv(f"LLMSERVICE_OPERATOR_{name}", "from-the-process")
    assert OperatorSettings() == OperatorSettings.from_environment({}) == expected


@pytest.mark.parametrize(
    "name",
    [
        "LLMSERVICE_OPERATOR_IMAGES",
        "LLMSERVICE_OPERATOR_METRICS_SERVER",
        "LLMSERVICE_OPERATOR_GPU",
        "LLMSERVICE_OPERATOR_SERVICE_PORT",  # set for a Service named llmservice-operator
        "SERVER_IMAGE_GPU",
        "HEALTH_PORT",
        "llmservice_operator_health_port",
    ],
)
def test_a_variable_of_another_name_is_not_a_setting(name: str) -> None:
    assert OperatorSettings.from_environment({name: "1"}) == OperatorSettings()


def test_every_setting_that_can_be_refused_says_what_to_write() -> None:
    """A text setting accepts any text, and the error of a JSON setting names the field at fault."""
    for group in (OperatorSettings, ServerImages, MetricsServerSettings, RouterSettings):
        for name, field in group.model_fields.items():
            takes_any = field.annotation in (
                str,
                str | None,
                Path,
                Path | None,
                tuple[str, ...],
            ) and not any(hasattr(it, "pattern") for it in field.metadata)
            composed = name in (
                "images",
                "metrics_server",
                "accelerator_classes",
                "server_defaults",
            )
            assert takes_any or composed or field.description, f"{name}: add a description"


PRIOR = '{"fixed": 0.01, "prefill": 1e-4, "sequence": 1e-5, "kv": 1e-8}'
ROUTER = {
    "LLMSERVICE_ROUTER_NAMESPACE": "team",
    "LLMSERVICE_ROUTER_SERVICE": "chat",
    "LLMSERVICE_ROUTER_REPLICAS_HOST": "chat-replicas.team.svc",
    "LLMSERVICE_ROUTER_STEP_PRIOR": PRIOR,
}


def test_a_router_needs_its_service_its_replicas_and_a_prior() -> None:
    with pytest.raises(InvalidSettings) as refused:
        RouterSettings.from_environment({})
    assert str(refused.value).split("; ") == [
        "LLMSERVICE_ROUTER_NAMESPACE is not set: write the name of a namespace",
        "LLMSERVICE_ROUTER_SERVICE is not set: write the name of an object",
        "LLMSERVICE_ROUTER_REPLICAS_HOST is not set: write a DNS name or an address",
        f"LLMSERVICE_ROUTER_STEP_PRIOR is not set: write JSON such as {PRIOR}",
    ]
    settings = RouterSettings.from_environment(ROUTER)
    assert settings == RouterSettings(
        namespace="team",
        service="chat",
        replicas_host="chat-replicas.team.svc",
        step_prior=StepPrior(fixed=0.01, prefill=1e-4, sequence=1e-5, kv=1e-8),
    )
    assert set(settings.environment()) == set(ROUTER)


def test_the_environment_of_a_router_gives_its_settings() -> None:
    settings = RouterSettings(
        namespace="team",
        service="chat",
        replicas_host="chat-replicas.team.svc",
        step_prior=StepPrior(fixed=0.01, prefill=1e-4, sequence=1e-5, kv=1e-8),
        pickers_host="chat-router.team.svc",
        metrics_servers_host="metrics-server-pods.system.svc",
        pod_address="fd00::1",
        client_port=1,
        management_port=2,
        picker_port=3,
        forwarder_port=4,
        gateway_port=11,
        run_directory=Path("/run/other"),
        api_keys_directory=Path("/etc/keys"),
        tls_directory=Path("/etc/tls"),
        max_body_bytes=5,
        max_held_requests=6,
        max_held_bytes=7,
        hold_timeout_seconds=8,
        heartbeat_seconds=9,
        policy="LeastRequest",
        ttft_limit_seconds=1.5,
        client_limits=LimitsOfClients(default=ClientLimits(requests=12)),
        scales_to_zero=True,
        drain_seconds=0,
        drain_timeout_seconds=10,
        log_level="DEBUG",
    )
    assert len(settings.environment()) == len(RouterSettings.model_fields)
    assert RouterSettings.from_environment(settings.environment()) == settings


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("REPLICAS_HOST", "a b", "write a DNS name or an address"),
        ("STEP_PRIOR", '{"fixed": 1}', f"write JSON such as {PRIOR}"),
        ("STEP_PRIOR", PRIOR.replace("0.01", "-1"), f"write JSON such as {PRIOR}"),
        ("POLICY", "RoundRobin", "write one of LeastWork, LeastRequest"),
        ("HEARTBEAT_SECONDS", "0", "write a whole number from 1 to 3600"),
        ("TTFT_LIMIT_SECONDS", "nan", "write a number above 0 and up to 3600"),
        ("MAX_BODY_BYTES", "0", "write a whole number from 1 to 2^40"),
        ("PICKER_PORT", "0", "write a port number from 1 to 65535"),
    ],
)
def test_a_wrong_setting_of_a_router_is_refused_by_name_with_the_remedy(
    name: str, value: str, remedy: str
) -> None:
    variable = f"LLMSERVICE_ROUTER_{name}"
    with pytest.raises(InvalidSettings) as refused:
        RouterSettings.from_environment(ROUTER | {variable: value})
    assert str(refused.value) == f"{variable} is {value!r}: {remedy}"
