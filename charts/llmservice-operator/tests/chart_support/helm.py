"""Runs the real helm on the chart, and parses its output.

Nothing here connects to a cluster.
"""

import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from localkube import binaries

Manifest = dict[str, Any]
Values = Mapping[str, Any]

CHART = Path(__file__).resolve().parents[2]
REPOSITORY = CHART.parents[1]
RELEASE = "llmservice-operator"
NAMESPACE = "llmservice-system"
KUBE_VERSION = "1.37.0"
REGISTRY = CHART / "tests" / "registry.yaml"
"""Values with the registry, which every installation must name."""


@dataclass(frozen=True)
class Field:
    """One value of the chart that a user can set."""

    path: tuple[str, ...]
    description: str
    default: Any

    @property
    def name(self) -> str:
        return ".".join(self.path)


def load_schema() -> Any:
    return json.loads((CHART / "values.schema.json").read_text())


def load_defaults() -> Any:
    return yaml.safe_load((CHART / "values.yaml").read_text())


def fields() -> list[Field]:
    """Return every value in the order of values.yaml, with its description from the schema."""
    return list(_fields(load_schema(), load_defaults(), ()))


def _fields(schema: Any, default: Any, path: tuple[str, ...]) -> Iterator[Field]:
    if "properties" not in schema:
        yield Field(path, schema["description"], default)
        return
    for key, value in default.items():
        yield from _fields(schema["properties"][key], value, (*path, key))


class HelmError(Exception):
    """Helm failed. The message is its standard error."""


class MissingProgram(Exception):
    """A program that the tests run does not exist. The message says how to get it."""


@cache
def binary(name: str, build: str) -> str:
    """Return the path of a program: from the variable of its name in capitals, else from PATH, else
    from the cache, into which the command `build` puts it.
    """
    if found := os.environ.get(name.upper()) or shutil.which(name):
        return found
    cached = binaries.program(name)
    if not cached.exists():
        raise MissingProgram(
            f"{name} is missing: build it with `{build}`, put one on PATH, or name it in"
            f" {name.upper()}"
        )
    return str(cached)


def helm(*args: str, stdin: str = "") -> str:
    """Run helm and return its output; raise HelmError with its message."""
    done = subprocess.run(
        [binary("helm", "uv run localkube build"), *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode != 0:
        raise HelmError(done.stderr.strip())
    return done.stdout


def render_text(
    values: Values | None = None,
    *,
    chart: Path = CHART,
    release: str = RELEASE,
    namespace: str = NAMESPACE,
    kube_version: str = KUBE_VERSION,
    api_versions: tuple[str, ...] = (),
) -> str:
    """Return the output of `helm template` for these values, on a cluster that also serves these
    API versions.
    """
    return helm(
        *("template", release, str(chart), "--namespace", namespace),
        *("--kube-version", kube_version, "--values", str(REGISTRY), "--values", "-"),
        *(f"--api-versions={each}" for each in api_versions),
        stdin=json.dumps(values or {}),
    )


def render(values: Values | None = None, **options: Any) -> list[Manifest]:
    """Return the rendered objects, in helm's order."""
    return parse(render_text(values, **options))


def parse(text: str) -> list[Manifest]:
    """Return the objects in helm's output, without the empty documents."""
    parts = text.split("\n---\n")
    return [manifest for part in parts if (manifest := pickle.loads(_parsed(part)))]


@cache
def _parsed(document: str) -> bytes:
    """Return the pickled content of a YAML document.

    Most documents are the same in all outputs. The CRD has thousands of lines, and to read its
    pickle takes a thirtieth of the time of a parser.
    """
    # PyYAML's loader in C is eight times as fast as its default.
    return pickle.dumps(yaml.load(document, yaml.CSafeLoader))


METRICS_SERVER = "metrics-server"
"""Value of the component label of the metrics server's objects."""


def is_of(component: str, manifest: Manifest) -> bool:
    labels = manifest["metadata"].get("labels", {})
    return bool(labels.get("app.kubernetes.io/component") == component)


def find(
    manifests: list[Manifest], kind: str, name: str | None = None, component: str | None = None
) -> Manifest:
    """Return the only object of this kind.

    With `name`, it must have this name. Without `name`, it is an object of the metrics server if
    `component` is METRICS_SERVER, and another object if not.
    """
    found = [
        manifest
        for manifest in manifests
        if manifest["kind"] == kind and name in (None, manifest["metadata"]["name"])
        if name or is_of(METRICS_SERVER, manifest) == (component == METRICS_SERVER)
    ]
    assert len(found) == 1, f"{len(found)} objects of kind {kind} and name {name}"
    return found[0]


def pods(manifests: list[Manifest]) -> Iterator[Manifest]:
    """Yield every pod spec among the objects."""
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            yield manifest["spec"]
        elif "template" in manifest.get("spec", {}):
            yield manifest["spec"]["template"]["spec"]
