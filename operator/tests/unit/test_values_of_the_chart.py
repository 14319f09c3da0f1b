"""Tests the settings of the operator that follow from the values of the chart."""

from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from llmservice_operator.__main__ import main
from llmservice_operator.chart_values import chart_variables
from llmservice_operator.errors import InvalidSettings
from llmservice_operator.settings import OperatorSettings
from operator_support.examples import example_text


def settings(*texts: str) -> OperatorSettings:
    return OperatorSettings.from_environment(chart_variables(texts))


def test_values_become_settings() -> None:
    found = settings(
        "server: {gpuImage: 'mine:1', engineVersion: 0.31.0, proxy: {https: 'http://p:1'}}",
        "gpusPerNode: 16\nmodel: {hubEndpoint: 'https://hub.example.com'}\nkeda: {enabled: true}",
    )
    assert (found.images.gpu, found.images.engine_version) == ("mine:1", "0.31.0")
    assert (found.gpus_per_node, found.keda) == (16, True)
    assert found.hub_endpoint == "https://hub.example.com"


@pytest.mark.parametrize(
    "values", ["image: {registry: r.example.com}", "global: {imageRegistry: r.example.com}"]
)
def test_one_value_names_the_registry_of_all_images_of_a_release(values: str) -> None:
    found, release = settings(values), version("llmservice-operator")
    assert found.images.gpu == f"r.example.com/llmservice/server-gpu:{release}"
    assert found.images.cpu == f"r.example.com/llmservice/server-cpu:{release}"
    assert found.router_image == f"r.example.com/llmservice/router:{release}"
    assert settings(values, "server: {gpuImage: ''}").images.gpu == found.images.gpu


def test_only_a_mirror_changes_the_registry_of_a_given_image() -> None:
    given = "server: {gpuImage: 'a.example.com/mine:1'}"
    assert settings("image: {registry: r.example.com}", given).images.gpu == "a.example.com/mine:1"
    assert settings("global: {imageRegistry: m}", given).images.gpu == "m/mine:1"


def test_a_later_file_has_priority_field_by_field_and_null_removes() -> None:
    found = settings(
        "monitoring: {namespace: a, podLabels: {x: y}}\nmodel: {hubEndpoint: 'http://a'}",
        "monitoring: {namespace: b}\nmodel: {hubEndpoint: null}",
    )
    assert (found.monitoring_namespace, found.monitoring_pod_labels) == ("b", {"x": "y"})
    assert found.hub_endpoint is None


def test_no_values_are_the_defaults_of_the_chart() -> None:
    found = settings("")
    assert found.monitoring_namespace == "monitoring"
    assert None not in (found.metrics_server_url, found.metrics_server_pods_host)
    without = settings("metricsServer: {enabled: false}")
    assert (without.metrics_server_url, without.metrics_server_pods_host) == (None, None)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("just text", "the values must be an object with the fields of the chart's values.yaml"),
        ("a: b: c", "the values are not valid YAML: "),
        ("server: x", "the chart value server must be an object, not 'x'"),
    ],
)
def test_a_file_without_values_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        chart_variables([text])
    assert str(refused.value).startswith(sentence)


def test_render_prints_what_the_installed_operator_would_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service, values = tmp_path / "service.yaml", tmp_path / "values.yaml"
    service.write_text(example_text("minimal"))
    values.write_text("server: {gpuImage: 'registry.example.com/gpu:7'}")
    assert main(["render", "-f", str(service), "--values", str(values)]) == 0
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    (deployment,) = (each for each in printed if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example.com/gpu:7"
