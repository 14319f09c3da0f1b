"""Tests that every set of values renders to valid objects with restricted pods, and that all
renderings of a set are equal.
"""

import copy
import json
from functools import cache

import kubernetes_validate
import pytest
from kubernetes_validate import utils

from chart_support.helm import (
    CHART,
    NAMESPACE,
    REGISTRY,
    RELEASE,
    HelmError,
    find,
    helm,
    pods,
    render,
    render_text,
)
from pod_security import violations
from value_sets import NOT_RESTRICTED, VALUE_SETS, rendered, rendered_text

OLDEST = (1, 30)


def test_users_write_many_sets_of_values() -> None:
    assert len(VALUE_SETS) >= 60
    assert len({json.dumps(it, sort_keys=True) for it in VALUE_SETS.values()}) == len(VALUE_SETS)


def kubernetes_versions() -> list[str]:
    """Return the Kubernetes releases from the oldest that the chart supports to the newest that
    the library knows.
    """
    versions = [it.rsplit(".", 1)[0] for it in utils.all_versions()]
    return [it for it in versions if tuple(map(int, it.split("."))) >= OLDEST]


read_schema = cache(utils.schema_contents)


@pytest.fixture(autouse=True)
def _schemas_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the library read each schema once, instead of several megabytes for each object."""
    monkeypatch.setattr(utils, "schema_contents", read_schema)


@cache
def validate(manifest: str, kubernetes_version: str) -> None:
    """Validate an object. Results are cached, because most value sets give the same objects."""
    kubernetes_validate.validate(json.loads(manifest), kubernetes_version, strict=True)


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_object_is_valid_in_every_kubernetes_release(name: str) -> None:
    manifests = rendered(name)

    assert len(manifests) >= 3
    # The kinds of the Prometheus operator do not belong to a release of Kubernetes.
    own = [it for it in manifests if not it["apiVersion"].startswith("monitoring.coreos.com/")]
    for text in (json.dumps(it, sort_keys=True) for it in own):
        for version in kubernetes_versions():
            validate(text, version)


def test_the_validation_finds_a_misspelt_field() -> None:
    deployment = copy.deepcopy(find(rendered("the defaults"), "Deployment"))
    deployment["spec"]["template"]["spec"]["enableServiceLink"] = False

    with pytest.raises(kubernetes_validate.ValidationError, match="enableServiceLink"):
        validate(json.dumps(deployment), kubernetes_versions()[-1])


def test_the_validation_covers_the_oldest_supported_release_and_newer_ones() -> None:
    assert kubernetes_versions()[0] == "1.30"
    assert len(kubernetes_versions()) >= 8


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_pod_is_restricted_and_cannot_write_its_root(name: str) -> None:
    specs = list(pods(rendered(name)))

    has_metrics_server = VALUE_SETS[name].get("metricsServer", {}).get("enabled", True)
    expected = 3 if has_metrics_server else 2
    assert len(specs) == expected, "operator, metrics server and the test pod"
    weaker = [
        spec
        for spec in specs
        if violations(spec)
        or not all(it["securityContext"].get("readOnlyRootFilesystem") for it in spec["containers"])
    ]
    assert bool(weaker) == (name in NOT_RESTRICTED)


@pytest.mark.parametrize(
    ("where", "weaker"),
    [
        ("securityContext", {"runAsNonRoot": False}),
        ("securityContext", {"runAsUser": 0}),
        ("securityContext", {"seccompProfile": {"type": "Unconfined"}}),
        ("securityContext", {"allowPrivilegeEscalation": True}),
        ("securityContext", {"privileged": True}),
        ("securityContext", {"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}),
        ("securityContext", {"procMount": "Unmasked"}),
        ("ports", [{"containerPort": 8080, "hostPort": 8080}]),
    ],
)
def test_the_restricted_check_finds_a_weaker_container(where: str, weaker: object) -> None:
    pod = copy.deepcopy(next(pods(rendered("the defaults"))))
    container = pod["containers"][0]
    container[where] = container[where] | weaker if isinstance(weaker, dict) else weaker

    assert len(violations(pod)) == 1


@pytest.mark.parametrize("name", VALUE_SETS)
def test_only_what_calls_the_api_server_mounts_a_token(name: str) -> None:
    deployments = [it["spec"] for it in rendered(name) if it["kind"] == "Deployment"]
    test_pod = find(rendered(name), "Pod")["spec"]

    assert all(it["template"]["spec"]["automountServiceAccountToken"] for it in deployments)
    assert test_pod["automountServiceAccountToken"] is False
    accounts = [it for it in rendered(name) if it["kind"] == "ServiceAccount"]
    assert all(it["automountServiceAccountToken"] is False for it in accounts)


@pytest.mark.parametrize("name", ["the defaults", "further objects"])
def test_rendering_twice_gives_the_same_text(name: str) -> None:
    assert render_text(VALUE_SETS[name]) == rendered_text(name)


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_object_has_its_own_name_and_the_common_labels(name: str) -> None:
    manifests = rendered(name)
    keys = [
        (it["kind"], it["metadata"].get("namespace"), it["metadata"]["name"]) for it in manifests
    ]

    assert len(keys) == len(set(keys))
    for manifest in manifests:
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "llmservice"
        assert labels["app.kubernetes.io/instance"] == RELEASE


@pytest.mark.parametrize("name", ["the defaults", "common labels and annotations"])
def test_helm_lint_finds_nothing(name: str) -> None:
    assert "0 chart(s) failed" in helm(
        *("lint", "--strict", str(CHART), "--namespace", NAMESPACE),
        *("--values", str(REGISTRY), "--values", "-"),
        stdin=json.dumps(VALUE_SETS[name]),
    )


def test_an_older_kubernetes_is_refused() -> None:
    with pytest.raises(HelmError, match=r"chart requires kubeVersion: >=1\.30\.0-0"):
        render(kube_version="1.29.5")
