"""Tests that wrong values are refused, and that the schema, the comments and the README agree."""

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from chart_support.helm import (
    CHART,
    METRICS_SERVER,
    Field,
    Manifest,
    Values,
    fields,
    find,
    is_of,
    load_defaults,
    load_schema,
    pods,
    render,
)
from llmservice_operator.api.server_defaults import ServerDefaults
from llmservice_operator.names import METRICS_SERVER_AUDIENCE
from llmservice_operator.settings import OperatorSettings

OPENSHIFT = "security.openshift.io/v1"
"""API version that only OpenShift serves."""

FREE_MAPS = {"definitions.amounts", "extraEnv[].valueFrom", "extraVolumes[]", "global"}
"""Objects for which the schema allows any key: the values of a parent chart, and Kubernetes types,
whose keys the API server checks."""


def objects(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every schema whose type is object, with its path."""
    if schema.get("type") == "object":
        yield path, schema
    if "items" in schema:
        yield from objects(schema["items"], f"{path}[]")
    for key, value in schema.get("properties", {}).items():
        yield from objects(value, f"{path}.{key}".lstrip("."))
    for value in schema.get("patternProperties", {}).values():
        if value:
            yield from objects(value, f"{path}.*")


def test_every_object_of_the_schema_is_closed_except_kubernetes_own_types() -> None:
    schema = load_schema()
    shared = ((f"definitions.{name}", it) for name, it in schema["definitions"].items())
    still_open = {
        path
        for start, each in (("", schema), *shared)
        for path, it in objects(each, start)
        if it.get("additionalProperties") is not False
    }

    assert still_open == FREE_MAPS


def test_every_property_of_the_schema_is_described() -> None:
    undescribed = [
        f"{path}.{key}"
        for path, it in objects(load_schema())
        for key, value in it.get("properties", {}).items()
        if not value.get("description", "").endswith(".")
    ]

    assert undescribed == []


def test_schema_and_defaults_name_the_same_values() -> None:
    for path, schema in objects(load_schema()):
        if "properties" not in schema or not {"[", "*"}.isdisjoint(path):
            continue
        default = load_defaults()
        for key in path.split(".") if path else ():
            default = default[key]
        assert set(schema["properties"]) == set(default), path


def comments() -> dict[str, str]:
    """Return the comment above each value of values.yaml."""
    found: dict[str, str] = {}
    path: list[str] = []
    comment = ""
    for line in (CHART / "values.yaml").read_text().splitlines():
        if said := re.fullmatch(r" *# (.+)", line):
            comment = f"{comment} {said[1]}".strip()
        elif key := re.match(r"( *)([A-Za-z]+):", line):
            path = [*path[: len(key[1]) // 2], key[2]]
            if comment:
                found[".".join(path)] = comment
            comment = ""
        else:
            comment = ""
    return found


def test_each_comment_in_values_yaml_is_the_description_in_the_schema() -> None:
    assert comments() == {it.name: it.description for it in fields()}


def values_table() -> str:
    rows = [f"| `{it.name}` | {shown_default(it)} | {it.description} |" for it in fields()]
    return "\n".join(["| value | default | meaning |", "|---|---|---|", *rows])


def shown_default(field: Field) -> str:
    return f"`{json.dumps(field.default)}`"


def test_the_readme_lists_every_value_with_its_default(update_golden: bool) -> None:
    readme = CHART / "README.md"
    pattern = re.compile(r"(?<=--update-golden` -->\n).*?(?=<!-- end of values -->)", re.DOTALL)
    text, replaced = pattern.subn(lambda _: f"\n{values_table()}\n\n", readme.read_text())
    assert replaced == 1
    if update_golden:
        readme.write_text(text)

    assert readme.read_text() == text, "run `make golden-chart`"


SENT = {"name": "reports", "serviceAccount": "reader"}


@pytest.mark.parametrize(
    ("keda", "reader"),
    [
        ({"enabled": False, "authentication": SENT}, None),
        ({"enabled": True}, None),
        ({"enabled": True, "authentication": SENT}, "keda/reader"),
        ({"enabled": True, "authentication": {**SENT, "kind": "TriggerAuthentication"}}, "reader"),
    ],
)
def test_both_processes_have_a_token_and_the_metrics_server_knows_the_accounts(
    keda: Values, reader: str | None
) -> None:
    account = {"create": False, "name": "shared"}
    manifests = render({"keda": keda, "serviceAccount": account, "namespaceOverride": "llm"})
    operator, metrics_server = (
        find(manifests, "Deployment", component=component) for component in (None, METRICS_SERVER)
    )
    settings = settings_of(metrics_server)

    for each in (operator, metrics_server):
        assert token_audience(each) == METRICS_SERVER_AUDIENCE
    assert settings.metrics_server.report_readers == (
        "llm/shared",
        f"llm/{metrics_server['spec']['template']['spec']['serviceAccountName']}",
    )
    assert settings.metrics_server.operator_lease_name == settings_of(operator).lease_name
    assert (settings.keda, settings.metrics_server.keda_reader) == (keda["enabled"], reader)


def settings_of(deployment: Manifest) -> OperatorSettings:
    variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    return OperatorSettings.from_environment(
        {it["name"]: it["value"] for it in variables if "value" in it}
    )


def token_audience(deployment: Manifest) -> str:
    """Return the audience of the token in the file that a process reads."""
    pod, path = deployment["spec"]["template"]["spec"], settings_of(deployment).token_file
    assert path is not None
    (mount,) = (
        it for it in pod["containers"][0]["volumeMounts"] if it["mountPath"] == str(path.parent)
    )
    (volume,) = (it for it in pod["volumes"] if it["name"] == mount["name"])
    (source,) = volume["projected"]["sources"]
    assert source["serviceAccountToken"]["path"] == path.name
    audience: str = source["serviceAccountToken"]["audience"]
    return audience


def container(values: Values) -> Any:
    return find(render(values), "Deployment")["spec"]["template"]["spec"]["containers"][0]


def test_the_operator_reads_the_values_from_its_environment() -> None:
    everything = yaml.safe_load((CHART / "tests" / "everything.yaml").read_text())
    variables = container(everything)["env"]
    environment = {it["name"]: it["value"] for it in variables if "value" in it}
    from_the_pod = [it["name"] for it in variables if "valueFrom" in it]

    settings = OperatorSettings.from_environment(environment)

    assert settings.images.gpu == "mirror.example.com/mirror/server-gpu:9.9.9"
    assert settings.images.cpu == "mirror.example.com/mirror/server-cpu:9.9.9"
    assert settings.images.amd == "mirror.example.com/mirror/server-amd:9.9.9"
    assert settings.router_image == "mirror.example.com/mirror/router:9.9.9"
    assert settings.images.engine_version == everything["server"]["engineVersion"]
    assert settings.hub_endpoint == everything["model"]["hubEndpoint"]
    defaults = settings.server_defaults.model_dump(
        mode="json", by_alias=True, exclude_defaults=True
    )
    assert defaults == {
        "amdGroups": everything["server"]["amdGroups"],
        "caBundle": {"secretKeyRef": {"name": "corporate-ca", "key": "root.pem"}},
        "imagePullSecrets": everything["server"]["imagePullSecrets"],
        "proxy": everything["server"]["proxy"],
        "userIds": everything["userIds"],
    }
    assert classes_in(settings) == classes_of(everything)
    assert settings.gpus_per_node == everything["gpusPerNode"]
    assert settings.metrics_api is everything["metricsAPI"]["enabled"]
    assert (
        list(settings.metrics_server_cidrs) == everything["metricsServer"]["hostNetwork"]["cidrs"]
    )
    assert settings.monitoring_namespace == everything["monitoring"]["namespace"]
    assert settings.monitoring_pod_labels == everything["monitoring"]["podLabels"]
    assert list(settings.watch_namespaces) == everything["watchNamespaces"]
    assert settings.trigger_authentication == "TriggerAuthentication/load-reports"
    assert settings.lease_name == everything["fullnameOverride"]
    assert settings.lease_seconds == everything["leaseSeconds"]
    assert settings.log_level.lower() == everything["logLevel"]
    assert settings.health_port == container(everything)["ports"][0]["containerPort"]
    assert from_the_pod == ["LLMSERVICE_OPERATOR_NAMESPACE"]


@pytest.mark.parametrize(
    ("values", "api_versions", "expected"),
    [
        ({}, (), 10001),
        ({}, (OPENSHIFT,), None),
        ({"userIds": "Fixed"}, (OPENSHIFT,), 10001),
        ({"userIds": "Namespace"}, (), None),
    ],
)
def test_pods_set_no_ids_if_the_namespace_assigns_them(
    values: Values, api_versions: tuple[str, ...], expected: int | None
) -> None:
    manifests = render(values, api_versions=api_versions)
    operator = find(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    told = {it["name"]: it["value"] for it in operator["env"] if "value" in it}
    settings = OperatorSettings.from_environment(told)

    for pod in pods(manifests):
        assert pod["securityContext"].get("runAsUser") == expected
        assert pod["securityContext"].get("runAsGroup") == expected
    assert settings.server_defaults.user_ids == ("Fixed" if expected else "Namespace")


def classes_in(settings: OperatorSettings) -> dict[str, Any]:
    return {
        name: each.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        for name, each in settings.accelerator_classes.items()
    }


def classes_of(everything: dict[str, Any]) -> dict[str, Any]:
    """Return the accelerator classes of the values, with quantities as the operator writes them."""
    classes: dict[str, Any] = copy.deepcopy(everything["acceleratorClasses"])
    classes["mig-3g"]["pricePerHour"] = "1.25"
    classes["mig-3g"]["resources"]["requests"]["cpu"] = "4"
    classes["mig-3g"]["resources"]["extended"]["rdma/hca"] = "1"
    return classes


def test_the_metrics_server_reads_the_values_from_its_environment() -> None:
    everything = yaml.safe_load((CHART / "tests" / "everything.yaml").read_text())
    deployment = find(render(everything), "Deployment", component=METRICS_SERVER)
    (its,) = deployment["spec"]["template"]["spec"]["containers"]
    environment = {it["name"]: it["value"] for it in its["env"] if "value" in it}
    from_the_pod = [it["name"] for it in its["env"] if "valueFrom" in it]
    name = deployment["metadata"]["name"]

    settings = OperatorSettings.from_environment(environment)
    assert classes_in(settings) == classes_of(everything)
    own = settings.metrics_server

    assert settings.metrics_api is everything["metricsAPI"]["enabled"]
    assert list(settings.watch_namespaces) == everything["watchNamespaces"]
    assert own.service_name == own.owner_role == name
    assert [settings.health_port, own.scaling_port, own.external_port] == [
        it["containerPort"] for it in its["ports"]
    ]
    assert own.external_port == everything["metricsServer"]["port"]
    assert own.service_port == 443
    assert (own.report_readers, settings.token_file) == ((), None)
    assert from_the_pod == ["LLMSERVICE_OPERATOR_NAMESPACE", "LLMSERVICE_OPERATOR_POD_ADDRESS"]


def test_the_operator_finds_the_metrics_server_by_its_service_and_routers_find_its_pods() -> None:
    environment = {it["name"]: it.get("value", "") for it in container({})["env"]}
    manifests = render()
    services = [it for it in manifests if it["kind"] == "Service" and is_of(METRICS_SERVER, it)]
    pods = find(manifests, "Deployment", component=METRICS_SERVER)["spec"]["template"]["metadata"]
    for service in services:
        assert service["spec"]["selector"].items() <= pods["labels"].items()

    settings = OperatorSettings.from_environment(environment)

    hosts = {
        it["spec"].get("clusterIP"): f"{it['metadata']['name']}.{it['metadata']['namespace']}.svc"
        for it in services
    }
    assert hosts == {
        None: (settings.metrics_server_url or "").removeprefix("http://").removesuffix(":8081"),
        "None": settings.metrics_server_pods_host,
    }


def test_neither_selector_finds_the_other_components_pods() -> None:
    manifests = render({"podLabels": {"app.kubernetes.io/name": "x"}})
    deployments = [it["spec"] for it in manifests if it["kind"] == "Deployment"]
    found = [
        selector["selector"]["matchLabels"].items()
        <= template["template"]["metadata"]["labels"].items()
        for selector in deployments
        for template in deployments
    ]

    assert found == [True, False, False, True]


def test_the_defaults_are_read_as_no_hub_and_every_namespace() -> None:
    environment = {it["name"]: it.get("value", "") for it in container({})["env"]}

    settings = OperatorSettings.from_environment(environment)

    assert settings.hub_endpoint is None
    assert settings.server_defaults == ServerDefaults()
    assert settings.watch_namespaces == ()


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ({}, "registry.example.com/llmservice/operator:0.2.0"),
        ({"tag": "dev"}, "registry.example.com/llmservice/operator:dev"),
        ({"registry": "localhost:5000"}, "localhost:5000/llmservice/operator:0.2.0"),
        (
            {"tag": "dev", "digest": "sha256:" + "a" * 64},
            "registry.example.com/llmservice/operator@sha256:" + "a" * 64,
        ),
    ],
)
def test_a_digest_wins_over_a_tag_and_a_tag_over_the_version(image: Values, reference: str) -> None:
    manifests = render({"image": image})

    assert container({"image": image})["image"] == reference
    assert find(manifests, "Pod")["spec"]["containers"][0]["image"] == reference


def test_own_pod_labels_cannot_replace_those_that_select_the_pod() -> None:
    deployment = find(
        render({"podLabels": {"app.kubernetes.io/name": "x", "y": "z"}}), "Deployment"
    )
    labels = deployment["spec"]["template"]["metadata"]["labels"]

    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert labels["y"] == "z"


def test_the_test_pod_is_selected_by_neither_service_nor_budget() -> None:
    manifests = render()
    labels = find(manifests, "Pod")["metadata"]["labels"]

    assert not find(manifests, "Service")["spec"]["selector"].items() <= labels.items()
    budget = find(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    assert not budget.items() <= labels.items()


@pytest.mark.parametrize(("replicas", "budgets"), [(0, 0), (1, 0), (2, 1), (5, 1)])
def test_a_disruption_budget_comes_with_the_second_replica(replicas: int, budgets: int) -> None:
    for values in (
        {"replicas": replicas, "metricsServer": {"enabled": False}},
        {"replicas": 1, "metricsServer": {"replicas": replicas}},
    ):
        kinds = [it["kind"] for it in render(values)]
        assert kinds.count("PodDisruptionBudget") == budgets
