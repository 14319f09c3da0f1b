"""Tests the CA bundle of a service, and the chart's defaults of model servers."""

import json
from typing import Any

import pytest

from llmservice_operator.api.server_defaults import parse_server_defaults
from llmservice_operator.children import Context, build_all
from llmservice_operator.errors import InvalidSettings
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload import resolve_pin
from operator_support.services import SETTINGS, a_service, one

CONFIG_MAP = {"configMapKeyRef": {"name": "corporate-ca", "key": "root.pem"}}
SECRET = {"secretKeyRef": {"name": "own-ca", "key": "tls.crt"}}
PROXY = {"http": "http://proxy:3128", "https": "http://proxy:3129", "noProxy": ".svc"}


def built(kind: str, spec: dict[str, Any], defaults: dict[str, Any]) -> Any:
    parsed = parse_server_defaults(json.dumps(defaults), "DEFAULTS")
    settings = OperatorSettings(images=SETTINGS.images, server_defaults=parsed)
    service = a_service(spec)
    return one(kind, build_all(Context.of(service, settings, resolve_pin(service, None, settings))))


def pod(spec: dict[str, Any] | None = None, **defaults: Any) -> Any:
    return built("Deployment", spec or {}, defaults)["spec"]["template"]["spec"]


def environment(spec: dict[str, Any] | None = None, **defaults: Any) -> dict[str, str]:
    (container,) = pod(spec, **defaults)["containers"]
    return {each["name"]: each.get("value", "") for each in container["env"]}


def mounted(found: Any) -> Any:
    """Return the volume with the file that the server's variable names."""
    (container,) = found["containers"]
    (file,) = (each for each in container["env"] if each["name"] == "LLMSERVICE_CA_BUNDLE")
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "ca-bundle")
    (volume,) = (each for each in found["volumes"] if each["name"] == "ca-bundle")
    (source,) = (volume[kind] for kind in ("configMap", "secret") if kind in volume)
    (item,) = source["items"]
    assert file["value"] == f"{mount['mountPath']}/{item['path']}"
    assert mount["readOnly"]
    return volume


def test_the_bundle_of_the_spec_is_mounted_where_the_server_reads_it() -> None:
    items = [{"key": "root.pem", "path": "ca.crt"}]
    config_map = {"name": "corporate-ca", "items": items, "defaultMode": 0o444}
    assert mounted(pod({"caBundle": CONFIG_MAP})) == {"name": "ca-bundle", "configMap": config_map}
    items = [{"key": "tls.crt", "path": "ca.crt"}]
    secret = {"secretName": "own-ca", "items": items, "defaultMode": 0o444}
    assert mounted(pod({"caBundle": SECRET})) == {"name": "ca-bundle", "secret": secret}


def test_services_that_name_no_bundle_use_the_charts() -> None:
    assert mounted(pod(caBundle=CONFIG_MAP))["configMap"]["name"] == "corporate-ca"
    both = mounted(pod({"caBundle": SECRET}, caBundle=CONFIG_MAP))
    assert both["secret"]["secretName"] == "own-ca"
    assert "LLMSERVICE_CA_BUNDLE" not in environment()


def test_services_that_name_no_pull_secrets_use_the_charts() -> None:
    spec = {"engine": {"imagePullSecrets": [{"name": "own"}]}}
    default = [{"name": "a"}, {"name": "b"}]
    assert pod(imagePullSecrets=default)["imagePullSecrets"] == default
    assert pod(spec, imagePullSecrets=default)["imagePullSecrets"] == [{"name": "own"}]
    assert "imagePullSecrets" not in pod()


def test_the_charts_proxy_becomes_the_variables_that_libraries_read() -> None:
    found = environment(proxy=PROXY)
    assert found["HTTP_PROXY"] == "http://proxy:3128"
    assert found["HTTPS_PROXY"] == "http://proxy:3129"
    assert found["NO_PROXY"] == ".svc"
    assert not {name for name in environment(proxy={}) if name.endswith("PROXY")}


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_a_proxy_variable_of_the_spec_replaces_the_charts_in_either_spelling(name: str) -> None:
    spec = {"engine": {"env": [{"name": name, "value": "http://own:8080"}]}}
    found = environment(spec, proxy=PROXY)
    assert found[name] == "http://own:8080"
    assert {each for each in found if each.upper() == "HTTPS_PROXY"} == {name}
    assert found["HTTP_PROXY"] == "http://proxy:3128"


def test_pods_set_no_user_and_no_group_if_the_namespace_assigns_them() -> None:
    own = {"runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001}
    allotted = pod(userIds="Namespace")["securityContext"]
    assert allotted["runAsNonRoot"]
    assert pod()["securityContext"] == allotted | own
    assert not own.keys() & allotted.keys()


def proxy_ports(policy: Any) -> list[int]:
    """Return the ports of the last rule. Without a proxy, the last rule is that of the hub."""
    return [each["port"] for each in policy["spec"]["egress"][-1]["ports"]]


def test_the_network_policy_opens_the_port_of_every_known_proxy() -> None:
    assert proxy_ports(built("NetworkPolicy", {}, {"proxy": PROXY})) == [3128, 3129]
    own = [
        {"name": "https_proxy", "value": "https://$(USER):$(PASSWORD)@proxy"},
        {"name": "HTTP_PROXY", "valueFrom": SECRET},
        {"name": "NO_PROXY", "value": "http://not-a-proxy:1"},
    ]
    assert proxy_ports(built("NetworkPolicy", {"engine": {"env": own}}, {})) == [443]
    wrong = [{"name": "HTTPS_PROXY", "value": value} for value in ("http://proxy:$(PORT)",)]
    without = built("NetworkPolicy", {}, {})
    assert built("NetworkPolicy", {"engine": {"env": wrong}}, {}) == without


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Invalid JSON"),
        ('{"proxy": {"ftp": "x"}}', "proxy.ftp: Extra inputs are not permitted"),
        ('{"proxy": {"http": "proxy:3128"}}', "proxy.http: String should match"),
        ('{"caBundle": {}}', "caBundle: is an alternative to configMapKeyRef"),
        ('{"imagePullSecrets": [{"name": "A"}]}', "imagePullSecrets.0.name: must be the name"),
    ],
)
def test_wrong_defaults_are_refused_by_their_field(text: str, said: str) -> None:
    variable = "LLMSERVICE_OPERATOR_SERVER_DEFAULTS"
    with pytest.raises(InvalidSettings) as refused:
        OperatorSettings.from_environment({variable: text})
    assert str(refused.value).startswith(f"{variable}: ")
    assert said in str(refused.value)
