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


def test_chart_and_images_have_the_version_of_the_distributions() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    server = load_defaults()["server"]

    assert chart["version"] == chart["appVersion"] == project_version("operator")
    assert server["gpuImage"].endswith(f"/server-gpu:{project_version('server_image')}")
    assert server["cpuImage"].endswith(f"/server-cpu:{project_version('server_image')}")


def test_the_metadata_for_artifact_hub_names_the_images_of_the_values() -> None:
    annotations = yaml.safe_load((CHART / "Chart.yaml").read_text())["annotations"]
    images = {it["image"] for it in yaml.safe_load(annotations["artifacthub.io/images"])}
    containers = find(render(), "Deployment")["spec"]["template"]["spec"]["containers"]
    variables = {it["name"]: it.get("value") for it in containers[0]["env"]}

    assert images == {
        containers[0]["image"],
        *(variables[f"LLMSERVICE_OPERATOR_SERVER_IMAGE_{kind}"] for kind in ("GPU", "CPU")),
        variables["LLMSERVICE_OPERATOR_ROUTER_IMAGE"],
    }


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
