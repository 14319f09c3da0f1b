"""Tests the chart's copy of the CRD, the versions that the chart names, and the chart's package."""

import re
import subprocess
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart_support.helm import CHART, REPOSITORY, Manifest, find, helm, load_defaults, render

COPY = CHART / "files" / "llmservice.yaml"
KEEP = "helm.sh/resource-policy"


def test_the_chart_carries_the_generated_crd_byte_by_byte() -> None:
    generated = REPOSITORY / "crds" / "llmservice.yaml"

    assert COPY.read_bytes() == generated.read_bytes(), "run `make generate`"


@pytest.mark.parametrize("keep", [True, False])
def test_rendering_adds_to_the_crd_only_labels_and_the_keep_annotation(keep: bool) -> None:
    rendered = find(render({"crds": {"keep": keep}}), "CustomResourceDefinition")
    source: Manifest = yaml.safe_load(COPY.read_text())

    assert rendered["metadata"].get("annotations", {}).get(KEEP) == ("keep" if keep else None)
    assert without_additions(rendered) == without_additions(source)


def without_additions(crd: Manifest) -> Manifest:
    metadata = dict(crd["metadata"])
    annotations = {k: v for k, v in metadata.pop("annotations", {}).items() if k != KEEP}
    labels = {
        key: value
        for key, value in metadata.pop("labels", {}).items()
        if not key.startswith(("app.kubernetes.io/", "helm.sh/"))
    }
    return crd | {"metadata": metadata | {"annotations": annotations, "labels": labels}}


def test_without_crds_install_there_is_no_crd() -> None:
    kinds = [it["kind"] for it in render({"crds": {"install": False}})]

    assert "CustomResourceDefinition" not in kinds


def project_version(member: str) -> str:
    project: Any = tomllib.loads((REPOSITORY / member / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def test_all_parts_of_a_release_have_the_same_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    locked = tomllib.loads((REPOSITORY / "uv.lock").read_text())["package"]
    members = [it["version"] for it in locked if not it["source"].keys() <= {"registry", "url"}]
    found = {project_version(member) for member in (".", "operator", "server_image", "e2e/cluster")}

    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    newest = changelog.partition("\n## [")[2].partition("]")[0]

    versions = {chart["version"], chart["appVersion"], newest, *members, *found}
    assert versions == {project_version("operator")}


def released(manifests: list[Manifest]) -> list[str]:
    """Return the images of a release that the operator gets, and its own one."""
    container = find(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    variables = {it["name"]: it.get("value") for it in container["env"]}
    names = ("SERVER_IMAGE_GPU", "SERVER_IMAGE_CPU", "ROUTER_IMAGE")
    return [container["image"], *(str(variables[f"LLMSERVICE_OPERATOR_{it}"]) for it in names)]


@pytest.mark.parametrize("value", ["image.registry", "global.imageRegistry"])
def test_one_value_names_the_registry_of_all_images_of_a_release(value: str) -> None:
    part, _, field = value.partition(".")
    version = project_version("operator")

    assert released(render({part: {field: "registry.example.com:5000/team"}})) == [
        f"registry.example.com:5000/team/llmservice/{name}:{version}"
        for name in ("operator", "server-gpu", "server-cpu", "router")
    ]


def test_the_chart_has_the_license_of_the_project() -> None:
    assert (CHART / "LICENSE").read_bytes() == (REPOSITORY / "LICENSE").read_bytes()


def test_the_engine_version_is_the_one_that_the_server_images_install() -> None:
    requirements = (REPOSITORY / "server_image" / "requirements" / "cpu.txt").read_text()
    locked = re.search(r"^vllm(?:-cpu)?==(\S+)", requirements, re.MULTILINE)

    assert locked is not None
    assert load_defaults()["server"]["engineVersion"] == locked[1]


def test_the_package_holds_the_chart_and_no_test(tmp_path: Path) -> None:
    helm("package", str(CHART), "--destination", str(tmp_path))

    with tarfile.open(tmp_path / f"llmservice-operator-{project_version('operator')}.tgz") as chart:
        inside = {Path(name).relative_to("llmservice-operator") for name in chart.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=CHART,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    shipped = {Path(it) for it in tracked if not it.startswith("tests/")}
    assert inside == shipped


def test_the_chart_renders_the_same_as_part_of_another_chart(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    (parent / "charts").mkdir(parents=True)
    helm("package", str(CHART), "--destination", str(parent / "charts"))
    version = project_version("operator")
    dependency = {"name": "llmservice-operator", "version": version, "repository": ""}
    (parent / "Chart.yaml").write_text(
        yaml.safe_dump(
            {"apiVersion": "v2", "name": "p", "version": "1.0.0", "dependencies": [dependency]}
        )
    )
    global_values = {"global": {"imageRegistry": "registry.example.com"}}

    assert render(global_values, chart=parent) == render(global_values)
