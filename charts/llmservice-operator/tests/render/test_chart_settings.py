"""Tests that `render --values` reads the values as the chart's template does."""

import pytest
import yaml

from chart_support.helm import CHART, REGISTRY, find, render
from llmservice_operator.chart_values import chart_variables
from llmservice_operator.settings import PREFIX, VALUES, OperatorSettings
from value_sets import VALUE_SETS, rendered

NAMED_BY_THE_RELEASE = ("lease_name", "metrics_server_url", "metrics_server_pods_host")
"""Settings whose values contain the name of the release. Whether the last two are set does matter.
"""


ANY_TEXT = {
    *("NAMESPACE", "POD_ADDRESS", "LEASE_NAME", "METRICS_SERVICE_NAME", "OWNER_ROLE"),
    *("METRICS_SERVER_URL", "METRICS_SERVER_PODS_HOST", "HEALTH_PORT", "SCALING_PORT"),
    *("TOKEN_FILE", "REPORT_READERS", "OPERATOR_LEASE_NAME"),
    *("SERVER_IMAGE_GPU", "SERVER_IMAGE_CPU", "SERVER_IMAGE_AMD", "ENGINE_VERSION", "ROUTER_IMAGE"),
}
"""Variables that the chart itself sets to a valid text, and those for which every text is valid."""


def test_a_message_about_a_variable_can_name_the_chart_value() -> None:
    deployments = [it for it in rendered("the defaults") if it["kind"] == "Deployment"]
    variables = {
        variable["name"].removeprefix(PREFIX)
        for it in deployments
        for variable in it["spec"]["template"]["spec"]["containers"][0]["env"]
    }

    assert variables == ANY_TEXT | set(VALUES)


SETS = {
    **VALUE_SETS,
    "everything": yaml.safe_load((CHART / "tests" / "everything.yaml").read_text()),
}


@pytest.mark.parametrize("name", SETS)
def test_the_command_line_reads_values_as_the_chart_does(name: str) -> None:
    manifests = rendered(name) if name in VALUE_SETS else render(SETS[name])
    operator = find(manifests, "Deployment")
    (container,) = operator["spec"]["template"]["spec"]["containers"]
    told = {it["name"]: it["value"] for it in container["env"] if "value" in it}
    by_the_chart = OperatorSettings.from_environment(told)
    texts = [REGISTRY.read_text(), yaml.safe_dump(SETS[name])]
    by_the_values = OperatorSettings.from_environment(chart_variables(texts))
    # The file is a mount of the pod, and no value sets its path.
    names = dict.fromkeys((*NAMED_BY_THE_RELEASE, "token_file"))
    assert by_the_values.model_copy(update=names) == by_the_chart.model_copy(update=names)
    for setting in NAMED_BY_THE_RELEASE[1:]:
        assert bool(getattr(by_the_values, setting)) == bool(getattr(by_the_chart, setting))
