"""Tests the chart on a real API server: install, upgrade, uninstall, and the rights that it grants.

The tests need no node, because pods are admitted and not run.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from chart_support.cluster import (
    ADOPT,
    CRD,
    SMALLEST,
    Release,
    kubectl,
    operator_of,
    read,
    read_all,
    rights,
)
from chart_support.helm import CHART, HelmError, Manifest, Values, render
from operator_support.processes import until_settled
from rights_table import (
    READ,
    TRUST,
    WRITE,
    Right,
    lease_rights,
    metrics_api_rights,
    operator_rights,
    table,
)
from shared_support.waiting import eventually


@pytest.mark.parametrize("name", ["default", "everything"])
def test_the_api_server_accepts_every_object_strictly(release: Release, name: str) -> None:
    values = {}
    if name == "everything":
        values = yaml.safe_load((CHART / "tests" / "everything.yaml").read_text())
        values["watchNamespaces"] = [release.make_namespace(f"{release.name}-team")]
        values["namespaceOverride"] = release.name
        # The kinds of the Prometheus operator are not installed.
        values["monitoring"]["enabled"] = False
    manifests = render(values, release=release.name, namespace=release.name)

    answer = kubectl(
        *("apply", "--server-side", "--force-conflicts", "--dry-run=server"),
        *("--validate=strict", "-f-"),
        stdin=manifests,
    )

    assert len(answer.splitlines()) == len(manifests)


def test_a_server_side_dry_run_writes_nothing(release: Release) -> None:
    release.install({}, ADOPT, "--dry-run=server")

    assert release.deployment() is None


def test_all_pods_are_admitted_where_only_restricted_pods_are(release: Release) -> None:
    release.install({}, ADOPT)

    def pods() -> list[Manifest]:
        selector = f"app.kubernetes.io/instance={release.name}"
        return read_all("pods", "-n", release.name, "-l", selector)

    eventually(
        lambda: len(pods()) == 4, 30, "two pods of the operator and two of the metrics server"
    )
    assert all(
        container["image"] == "registry.example.com/llmservice/operator:0.2.0"
        for pod in pods()
        for container in pod["spec"]["containers"]
    )


def test_an_upgrade_changes_the_operator_and_the_crd(release: Release, tmp_path: Path) -> None:
    older = tmp_path / "chart"
    shutil.copytree(CHART, older, ignore=shutil.ignore_patterns("tests"))
    source = older / "files" / "llmservice.yaml"
    crd = yaml.safe_load(source.read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["retired"] = {"type": "string"}
    source.write_text(yaml.safe_dump(crd))
    release.install({"replicas": 3}, ADOPT, chart=older)
    assert "retired" in spec_fields()

    release.install({"replicas": 1}, verb="upgrade")

    assert "retired" not in spec_fields()
    deployment = release.deployment()
    assert deployment is not None
    assert deployment["spec"]["replicas"] == 1
    assert read("poddisruptionbudget", release.full_name, "-n", release.name) is None


def spec_fields() -> set[str]:
    version = read("crd", CRD)["spec"]["versions"][0]
    return set(version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"])


def test_uninstall_leaves_the_crd_and_the_services_and_a_new_install_finds_them(
    release: Release,
) -> None:
    release.install({}, ADOPT)
    kubectl("wait", "crd", CRD, "--for=condition=Established", "--timeout=30s")
    kubectl("create", "--validate=strict", "-n", release.name, "-f-", stdin=SMALLEST)
    uid = read("llmservice", "smollm2", "-n", release.name)["metadata"]["uid"]

    release.uninstall()

    assert release.deployment() is None
    for kind in ("clusterrole", "clusterrolebinding"):
        assert read(kind, release.full_name) is None
    assert read("llmservice", "smollm2", "-n", release.name)["metadata"]["uid"] == uid

    release.install()

    assert read("llmservice", "smollm2", "-n", release.name)["metadata"]["uid"] == uid


def test_a_kept_crd_is_not_adopted_by_another_release(release: Release) -> None:
    release.install({}, ADOPT)
    other = Release()
    other.make_namespace(other.name)
    try:
        with pytest.raises(HelmError, match=f"{CRD}.*invalid ownership metadata"):
            other.install()

        other.install({"crds": {"install": False}})
        assert other.deployment() is not None
    finally:
        other.uninstall()
        kubectl("delete", "namespace", *other.namespaces, "--wait=false")


def test_the_notes_command_makes_a_service_when_it_is_pasted(release: Release) -> None:
    printed = release.install({"watchNamespaces": [release.name]}, ADOPT)
    kubectl("wait", "crd", CRD, "--for=condition=Established", "--timeout=30s")
    command = re.search(r"^kubectl .* apply .*<<'END'\n(.*\n)+?END$", printed, re.MULTILINE)

    assert command is not None
    subprocess.run(["bash", "-euc", command[0]], check=True, timeout=60)

    assert read("llmservice", "smollm2", "-n", release.name) is not None
    assert f"rollout status deployment/{release.full_name}" in printed
    assert "WARNING" not in printed


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        ({"replicas": 0}, "replicas is 0, so nothing reconciles"),
        ({"rbac": {"create": False}}, "rbac.create is false"),
        ({"metricsServer": {"enabled": False}}, "no LLMService can scale with its load"),
        ({"rbac": {"create": False}}, "nothing deletes the APIService"),
        ({"crds": {"keep": False}}, "deletes every LLMService in the cluster"),
    ],
)
def test_the_notes_warn_of_the_effects_of_a_value(
    release: Release, values: Values, warning: str
) -> None:
    printed = release.install(values, ADOPT, "--dry-run=server")

    assert re.search(f"WARNING: .*{warning}", printed)


def test_the_notes_of_an_upgrade_that_leaves_an_apiservice_behind_say_how_to_delete_it(
    release: Release,
) -> None:
    release.install({"rbac": {"create": False}}, ADOPT)

    without: Values = {"rbac": {"create": False}, "metricsAPI": {"enabled": False}}
    printed = release.install(without, "--dry-run=server", verb="upgrade")

    assert "kubectl delete apiservice v1beta1.external.metrics.k8s.io" in printed


def templates(release: Release, name: str) -> dict[str, str]:
    """Return the image of every pod template that the service has had, by the template's hash."""
    selector = f"llmservice.dev/name={name}"
    return {
        each["metadata"]["labels"]["pod-template-hash"]: each["spec"]["template"]["spec"][
            "containers"
        ][0]["image"]
        for each in read_all("replicasets", "-n", release.name, "-l", selector)
    }


def make_pod_ready(release: Release, name: str) -> None:
    """Set the pod's status to Ready, because no kubelet runs in an API-only cluster."""
    selector = ("-n", release.name, "-l", f"llmservice.dev/name={name}")
    eventually(lambda: len(read_all("pods", *selector)) == 1, 30, "a pod")
    pod = read_all("pods", *selector)[0]["metadata"]["name"]
    conditions = [{"type": kind, "status": "True"} for kind in ("Ready", "PodScheduled")]
    status = json.dumps({"status": {"phase": "Running", "conditions": conditions}})
    kubectl("patch", "pod", pod, "-n", release.name, "--subresource=status", "-p", status)


def test_an_upgrade_with_a_new_engine_restarts_no_pod_until_the_spec_asks_for_it(
    release: Release, tmp_path: Path
) -> None:
    here = ("-n", release.name)
    older, newer = "registry.example/server-gpu:a", "registry.example/server-gpu:b"
    watched: Values = {"watchNamespaces": [release.name]}
    release.install({**watched, "server": {"gpuImage": older, "engineVersion": "0.31.0"}}, ADOPT)
    kubectl("wait", "crd", CRD, "--for=condition=Established", "--timeout=30s")
    with operator_of(release, tmp_path / "first.log").until_leading() as operator:
        kubectl("create", *here, "-f-", stdin=SMALLEST)
        eventually(lambda: len(templates(release, "smollm2")) == 1, 30, "a pod template")
        make_pod_ready(release, "smollm2")
        service = ("llmservice", "smollm2", *here)
        # An upgrade keeps an image only if a replica with it has loaded the model before.
        eventually(lambda: "untried" not in read(*service)["status"]["engine"], 30, "a tried image")
        until_settled(operator)
        first = templates(release, "smollm2")
        assert set(first.values()) == {older}
        operator.kill()
    kubectl("patch", "lease", release.full_name, *here, "-p", '{"spec": {"holderIdentity": ""}}')

    upgrade: Values = {**watched, "server": {"gpuImage": newer, "engineVersion": "0.32.0"}}
    release.install(upgrade, verb="upgrade")
    with operator_of(release, tmp_path / "second.log").until_leading() as operator:
        kubectl("create", *here, "-f-", stdin={**SMALLEST, "metadata": {"name": "later"}})
        eventually(
            lambda: set(templates(release, "later").values()) == {newer}, 30, "the new image"
        )
        merge = ("--type=merge", "-p")
        kubectl("patch", *service, "--subresource=status", *merge, '{"status": null}')
        eventually(lambda: "status" in read(*service), 30, "a new status")
        until_settled(operator)
        assert templates(release, "smollm2") == first

        kubectl("patch", *service, *merge, '{"spec": {"engine": {"version": "0.32.0"}}}')
        eventually(lambda: len(templates(release, "smollm2")) == 2, 30, "a second pod template")
        until_settled(operator)
        assert sorted(templates(release, "smollm2").values()) == [older, newer]


def own_rights(release: Release, namespace: str) -> set[Right]:
    """Return the operator's rights in a namespace beyond those that every account has."""
    other = f"system:serviceaccount:{release.name}:other"
    return rights(release.account, namespace) - rights(other, namespace)


def test_the_authorizer_grants_the_operator_exactly_its_table(release: Release) -> None:
    release.install({}, ADOPT)
    everywhere = operator_rights() | metrics_api_rights()
    lease = lease_rights(release.full_name)

    eventually(
        lambda: own_rights(release, release.name) == everywhere | lease,
        describe="the operator's rights in its own namespace are its table and its Lease",
    )
    assert own_rights(release, "default") == everywhere


def test_with_watch_namespaces_the_authorizer_grants_nothing_elsewhere(release: Release) -> None:
    watched = release.make_namespace(f"{release.name}-team")
    release.install({"watchNamespaces": [watched]}, ADOPT)

    eventually(
        lambda: own_rights(release, watched) == operator_rights(),
        describe="the operator's rights in the watched namespace are its table",
    )
    assert own_rights(release, release.name) == lease_rights(release.full_name)
    assert own_rights(release, "default") == set()


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("view", table(READ)),
        ("edit", table(READ) | table(WRITE)),
        ("admin", table(READ) | table(WRITE) | table(TRUST)),
    ],
)
def test_the_clusters_user_roles_include_services(
    release: Release, role: str, expected: set[Right]
) -> None:
    release.install({}, ADOPT)
    here = f"--namespace={release.name}"
    kubectl("create", "rolebinding", role, f"--clusterrole={role}", "--user=someone", here)

    def on_services() -> set[Right]:
        return {it for it in rights("someone", release.name) if it[0] == "llmservice.dev"}

    eventually(lambda: on_services() == expected, 30, f"{role} has the rights of the chart's roles")
