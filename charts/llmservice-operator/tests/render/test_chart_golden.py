"""Compares the chart's objects for three sets of values with golden files.

The golden files omit the CRD and the dashboards. Other tests compare these with their sources.
"""

from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart_support.helm import CHART, Values, fields, render

TESTS = CHART / "tests"

EVERYTHING: Any = yaml.safe_load((TESTS / "everything.yaml").read_text())

GOLDEN: dict[str, Values] = {
    "default": {},
    "everything": EVERYTHING,
    "one-namespace": {"watchNamespaces": ["team-a"], "replicas": 1},
}


def rendered_text(values: Values) -> str:
    left_out = ("CustomResourceDefinition", "ConfigMap")
    manifests = [manifest for manifest in render(values) if manifest["kind"] not in left_out]
    manifests.sort(key=lambda it: (it["kind"], it["metadata"].get("namespace", ""), str(it)))
    return yaml.safe_dump_all(manifests, sort_keys=False, width=100)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_objects_are_those_of_the_golden_file(name: str, update_golden: bool) -> None:
    golden = TESTS / "golden" / f"{name}.yaml"
    text = rendered_text(GOLDEN[name])
    if update_golden:
        golden.write_text(text)

    assert text == golden.read_text(), "read the diff, then run `make golden-chart`"


def test_no_golden_file_is_left_over() -> None:
    found = {Path(path).stem for path in (TESTS / "golden").iterdir()}

    assert found == set(GOLDEN)


def test_everything_yaml_changes_every_value() -> None:
    same = [it.name for it in fields() if reduce(getitem, it.path, EVERYTHING) == it.default]

    # These keep their defaults. Otherwise the golden file would lack the objects that they create.
    assert same == [
        *("monitoring.podMonitors.enabled", "monitoring.rules.enabled"),
        "monitoring.dashboards.enabled",
        *("rbac.create", "serviceAccount.create", "metricsServer.enabled"),
    ]
