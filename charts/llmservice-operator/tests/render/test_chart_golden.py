"""Compares the chart's objects with golden files: all objects for three sets of values, and for
every other set the differences from the objects for the default values.

The golden files omit the CRD and the dashboards. Other tests compare these with their sources.
"""

import difflib
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart_support.helm import CHART, Manifest, Values, fields, render
from value_sets import VALUE_SETS, rendered

TESTS = CHART / "tests"

EVERYTHING: Any = yaml.safe_load((TESTS / "everything.yaml").read_text())

GOLDEN: dict[str, Values] = {
    "default": {},
    "everything": EVERYTHING,
    "one-namespace": {"watchNamespaces": ["team-a"], "replicas": 1},
}


DIFFERENCES = TESTS / "golden" / "value-sets.diff"
HEADING = "=== "
LEFT_OUT = ("CustomResourceDefinition", "ConfigMap")


def text_of(manifests: list[Manifest]) -> str:
    kept = [manifest for manifest in manifests if manifest["kind"] not in LEFT_OUT]
    kept.sort(key=lambda it: (it["kind"], it["metadata"].get("namespace", ""), str(it)))
    return yaml.safe_dump_all(kept, sort_keys=False, width=100)


@cache
def lines_of(name: str) -> dict[str, list[str]]:
    """Return the lines of each object of a set of values."""
    return {
        "/".join(
            (it["kind"], it["metadata"].get("namespace", ""), it["metadata"]["name"])
        ): yaml.dump(it, Dumper=yaml.CSafeDumper, sort_keys=False, width=100).splitlines()
        for it in rendered(name)
        if it["kind"] not in LEFT_OUT
    }


def differences(name: str) -> list[str]:
    """Return the names of the objects that a set adds and removes, and the lines that it changes in
    the others.
    """
    default, own = lines_of("the defaults"), lines_of(name)
    found = []
    for key in sorted(default.keys() | own.keys()):
        if key not in own or key not in default:
            found.append(f"{'+' if key in own else '-'} {key}")
        elif own[key] != default[key]:
            diff = difflib.unified_diff(default[key], own[key], n=1, lineterm="")
            found.append(f"  {key}")
            found += [line.rstrip() for line in [*diff][2:] if not line.startswith("@@")]
    return found


@cache
def golden_differences() -> dict[str, list[str]]:
    """Return the golden lines of each set of values."""
    found: dict[str, list[str]] = {}
    for line in DIFFERENCES.read_text().splitlines():
        if line.startswith(HEADING):
            found[line.removeprefix(HEADING)] = []
        else:
            found[[*found][-1]].append(line)
    return found


@pytest.mark.parametrize("name", GOLDEN)
def test_the_objects_are_those_of_the_golden_file(name: str, update_golden: bool) -> None:
    golden = TESTS / "golden" / f"{name}.yaml"
    text = text_of(render(GOLDEN[name]))
    if update_golden:
        golden.write_text(text)

    assert text == golden.read_text(), "read the diff, then run `make golden-chart`"


def test_no_golden_file_is_left_over() -> None:
    found = {Path(path).stem for path in (TESTS / "golden").iterdir()}

    assert found == {*GOLDEN, DIFFERENCES.stem}


def test_the_golden_differences_are_those_of_every_set(update_golden: bool) -> None:
    if update_golden:
        lines = [line for name in VALUE_SETS for line in (HEADING + name, *differences(name))]
        DIFFERENCES.write_text("\n".join([*lines, ""]))
        golden_differences.cache_clear()

    assert [*golden_differences()] == [*VALUE_SETS]


@pytest.mark.parametrize("name", VALUE_SETS)
def test_a_set_of_values_changes_the_objects_as_in_the_golden_file(name: str) -> None:
    assert differences(name) == golden_differences()[name], (
        "read the diff, then run `make golden-chart`"
    )


def test_everything_yaml_changes_every_value() -> None:
    same = [it.name for it in fields() if reduce(getitem, it.path, EVERYTHING) == it.default]

    # These keep their defaults. Otherwise the golden file would lack the objects that they create.
    assert same == [
        *("monitoring.podMonitors.enabled", "monitoring.rules.enabled"),
        "monitoring.dashboards.enabled",
        *("rbac.create", "serviceAccount.create", "metricsServer.enabled"),
    ]
