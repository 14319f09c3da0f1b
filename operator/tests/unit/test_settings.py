from importlib.metadata import version

import pytest

from llmservice_operator.errors import InvalidSettings
from llmservice_operator.settings import OperatorSettings, ServerImages


def test_an_empty_environment_gives_the_released_images_and_all_namespaces() -> None:
    release = version("llmservice-operator")
    assert OperatorSettings.from_environment({}) == OperatorSettings(
        images=ServerImages(
            gpu=f"ghcr.io/llmservice/server-gpu:{release}",
            cpu=f"ghcr.io/llmservice/server-cpu:{release}",
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
        "KEDA": "True",
        "WATCH_NAMESPACES": "a, b,,",
        "NAMESPACE": "system",
        "LEASE_NAME": "lease",
        "MONITORING_NAMESPACE": "monitoring",
        "MONITORING_POD_LABELS": "app=prometheus, team=",
        "HEALTH_PORT": "8081",
        "LOG_LEVEL": "debug",
        "AUDIT_PERIOD_SECONDS": "5",
    }
    assert OperatorSettings.from_environment(
        {f"LLMSERVICE_OPERATOR_{name}": value for name, value in environment.items()}
    ) == OperatorSettings(
        images=ServerImages("gpu:1", "cpu:1", "1.2.3"),
        hub_endpoint="http://hub:8090",
        metrics_server_url="http://metrics:8081",
        keda=True,
        watch_namespaces=("a", "b"),
        namespace="system",
        lease_name="lease",
        monitoring_namespace="monitoring",
        monitoring_pod_labels={"app": "prometheus", "team": ""},
        health_port=8081,
        log_level="DEBUG",
        audit_period_seconds=5,
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
        ("HEALTH_PORT", "http", "write a port number from 1 to 65535"),
        ("HEALTH_PORT", "0", "write a port number from 1 to 65535"),
        ("HEALTH_PORT", "65536", "write a port number from 1 to 65535"),
        ("AUDIT_PERIOD_SECONDS", "0.5", "write a whole number from 1"),
        ("AUDIT_PERIOD_SECONDS", "0", "write a whole number from 1"),
        ("LOG_LEVEL", "LOUD", "write one of DEBUG, INFO, WARNING, ERROR"),
    ],
)
def test_a_wrong_setting_is_refused_by_name_with_the_remedy(
    name: str, value: str, remedy: str
) -> None:
    variable = f"LLMSERVICE_OPERATOR_{name}"
    with pytest.raises(InvalidSettings) as refused:
        OperatorSettings.from_environment({variable: value})
    assert str(refused.value) == f"{variable} is {value!r}: {remedy}"
