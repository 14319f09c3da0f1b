"""Tests the admission policy on a real API server: the fields that need a right, and the changes
that need none.
"""

from collections.abc import Mapping
from typing import Any

import pytest

from chart_support.cluster import ADOPT, CRD, SMALLEST, Release, kubectl, read, refusal
from chart_support.helm import Manifest, Values
from shared_support.waiting import eventually

WITH_ACCOUNT: Mapping[str, Any] = {"template": {"serviceAccountName": "cloud"}}
WITH_CODE: Mapping[str, Any] = {
    "model": {**SMALLEST["spec"]["model"], "revision": "0a1b", "trustRemoteCode": True}
}

WITH_POOL: Mapping[str, Any] = {"router": {"mode": "InferencePool"}}
WITH_ROUTE: Mapping[str, Any] = {"route": {"parentRefs": [{"name": "public"}]}}


def service(name: str, spec: Mapping[str, Any]) -> Manifest:
    return {**SMALLEST, "metadata": {"name": name}, "spec": {**SMALLEST["spec"], **spec}}


def install(release: Release, values: Values | None = None) -> None:
    """Install the chart and bind roles to three users.

    `writer` can write LLMServices and no pods. `editor` and `administrator` have the roles `edit`
    and `admin` in the namespace.
    """
    release.install(values, ADOPT)
    kubectl("wait", "crd", CRD, "--for=condition=Established", "--timeout=30s")
    here = ("-n", release.name)
    resources = "--resource=llmservices.llmservice.dev,llmservices.llmservice.dev/scale"
    kubectl("create", "role", "writer", "--verb=get,create,update,patch", resources, *here)
    kubectl("create", "rolebinding", "writer", "--role=writer", "--user=writer", *here)
    for user, role in (("editor", "edit"), ("administrator", "admin")):
        kubectl("create", "rolebinding", user, f"--clusterrole={role}", f"--user={user}", *here)


def refused(release: Release, user: str, spec: Mapping[str, Any]) -> str:
    """Return the API server's error when the user creates such a service; nothing is stored."""
    return refusal(
        *("create", "-n", release.name, f"--as={user}", "--dry-run=server", "-f-"),
        stdin=service("wanted", spec),
    )


def changed(release: Release, user: str, change: str, *options: str) -> str:
    """Return the API server's error when the user changes the stored service."""
    return refusal(
        *("patch", "llmservice", "kept", "-n", release.name, f"--as={user}"),
        *("--type=merge", "-p", change, *options),
    )


def denial(release: Release, name: str, message: str) -> str:
    policy = f"{release.full_name}.{release.name}"
    return (
        f'llmservices.llmservice.dev "{name}" is forbidden: ValidatingAdmissionPolicy '
        f"'{policy}' with binding '{policy}' denied request: {message}"
    )


def about_accounts(release: Release) -> str:
    return (
        "spec.template.serviceAccountName: requires the right to create pods in namespace "
        f"{release.name}, which you do not have: remove the field, leave it and engine.image "
        "unchanged, or ask for that right, which the ClusterRole edit grants"
    )


def about_code(release: Release, role: str = "ClusterRole") -> str:
    return (
        "spec.model.trustRemoteCode: requires the right trust-remote-code on llmservices in "
        f"namespace {release.name}, which you do not have: remove the field, leave the model, its "
        "revision and the draft model unchanged, or ask for that right, which the "
        f"{role} {release.full_name}-trust-remote-code grants"
    )


def about_routes(release: Release) -> str:
    return (
        "spec.route: requires the right to create httproutes of gateway.networking.k8s.io in "
        f"namespace {release.name}, which you do not have: remove the field, leave it unchanged, "
        "or ask for that right"
    )


def about_pools(release: Release) -> str:
    return (
        "spec.router.mode: requires the right to create inferencepools of "
        f"inference.networking.k8s.io in namespace {release.name}, which you do not have: remove "
        "the field, or ask for that right"
    )


def until_in_force(release: Release) -> None:
    eventually(
        lambda: refused(release, "writer", WITH_CODE) != "", describe="the policy is in force"
    )


def test_a_user_who_may_create_pods_may_set_an_account(release: Release) -> None:
    install(release)
    until_in_force(release)

    assert refused(release, "writer", WITH_ACCOUNT).endswith(
        denial(release, "wanted", about_accounts(release))
    )
    assert refused(release, "writer", {}) == ""
    eventually(lambda: refused(release, "editor", WITH_ACCOUNT) == "", 30, "edit has the right")


def test_only_a_user_with_the_right_may_trust_remote_code(release: Release) -> None:
    install(release)
    until_in_force(release)

    for user in ("writer", "editor"):
        assert refused(release, user, WITH_CODE).endswith(
            denial(release, "wanted", about_code(release))
        )
    eventually(
        lambda: refused(release, "administrator", WITH_CODE) == "", 30, "admin has the right"
    )

    kubectl(
        *("create", "rolebinding", "trust", f"--clusterrole={release.full_name}-trust-remote-code"),
        *("--user=writer", "-n", release.name, "--as=administrator"),
    )
    eventually(lambda: refused(release, "writer", WITH_CODE) == "", 30, "the right was handed on")


def test_only_a_user_who_may_create_its_objects_may_set_a_route_or_a_pool(release: Release) -> None:
    install(release)
    until_in_force(release)

    for spec, message in ((WITH_ROUTE, about_routes), (WITH_POOL, about_pools)):
        assert refused(release, "editor", spec).endswith(
            denial(release, "wanted", message(release))
        )
    here = ("-n", release.name)
    kubectl("create", "-f-", stdin=a_role_for_routes(release.name))
    kubectl("create", "rolebinding", "routes", "--role=routes", "--user=editor", *here)
    both = {**WITH_ROUTE, **WITH_POOL}
    eventually(lambda: refused(release, "editor", both) == "", 30, "the rights were granted")


def a_role_for_routes(namespace: str) -> Manifest:
    """Return a Role as an object, because kubectl creates none for a kind that is not served."""
    rules = [
        {"apiGroups": [group], "resources": [resource], "verbs": ["create"]}
        for group, resource in (
            ("gateway.networking.k8s.io", "httproutes"),
            ("inference.networking.k8s.io", "inferencepools"),
        )
    ]
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "routes", "namespace": namespace},
        "rules": rules,
    }


@pytest.fixture
def kept(release: Release) -> Release:
    """Return a release with a stored service that sets a service account, a route and an image, and
    trusts remote code. A user with every right created the service.
    """
    install(release)
    until_in_force(release)
    eventually(
        lambda: refused(release, "administrator", WITH_CODE) == "", 30, "admin has the right"
    )
    both = {
        **WITH_ACCOUNT,
        **WITH_CODE,
        **WITH_ROUTE,
        "engine": {"image": "registry.example/server:1"},
    }
    kubectl("create", "-n", release.name, "-f-", stdin=service("kept", both))
    return release


@pytest.mark.parametrize(
    "change",
    [
        '{"spec": {"replicas": 2}}',
        '{"spec": {"model": {"aliases": ["other"]}}}',
        '{"metadata": {"labels": {"team": "search"}}}',
        '{"spec": {"template": {"serviceAccountName": null}, "model": {"trustRemoteCode": false},'
        ' "route": null}}',
    ],
    ids=["replicas", "aliases", "labels", "all fields away"],
)
def test_another_change_needs_no_further_right(kept: Release, change: str) -> None:
    assert changed(kept, "writer", change) == ""


def test_status_and_scale_need_no_further_right(kept: Release) -> None:
    here = ("-n", kept.name)
    # kubectl reads the status before it patches it. The operator does not, so it has no such right.
    kubectl("create", "role", "reader", "--verb=get", "--resource=llmservices/status", *here)
    kubectl("create", "rolebinding", "reader", "--role=reader", f"--user={kept.account}", *here)
    assert changed(kept, kept.account, '{"status": {"replicas": 1}}', "--subresource=status") == ""
    assert refusal("scale", "llmservice", "kept", "--replicas=3", *here, "--as=writer") == ""
    assert read("llmservice", "kept", *here)["spec"]["replicas"] == 3


def test_a_change_of_an_image_or_of_a_model_needs_the_same_right(
    kept: Release,
) -> None:
    draft = (
        '{"spec": {"engine": {"speculativeDecoding": {"method": "DraftModel", '
        '"numSpeculativeTokens": 3, "draftModel": {"uri": "hf://org/draft"}}}}}'
    )
    for change, message in (
        ('{"spec": {"template": {"serviceAccountName": "other"}}}', about_accounts(kept)),
        ('{"spec": {"engine": {"image": "registry.example/server:2"}}}', about_accounts(kept)),
        ('{"spec": {"model": {"uri": "hf://org/other"}}}', about_code(kept)),
        ('{"spec": {"model": {"revision": "main"}}}', about_code(kept)),
        (draft, about_code(kept)),
    ):
        assert changed(kept, "writer", change).endswith(denial(kept, "kept", message))
        assert changed(kept, "administrator", change, "--dry-run=server") == ""


def test_a_change_of_a_route_needs_the_right_to_create_httproutes(kept: Release) -> None:
    change = '{"spec": {"route": {"hostnames": ["chat.example.com"]}}}'
    assert changed(kept, "administrator", change).endswith(denial(kept, "kept", about_routes(kept)))


def test_with_watch_namespaces_the_right_is_a_role_there_and_not_needed_elsewhere(
    release: Release,
) -> None:
    other = release.make_namespace(f"{release.name}-other")
    install(release, {"watchNamespaces": [release.name]})
    until_in_force(release)

    assert refused(release, "writer", WITH_CODE).endswith(
        denial(release, "wanted", about_code(release, "Role"))
    )
    kubectl("create", "rolebinding", "writer", "--clusterrole=edit", "--user=writer", "-n", other)
    role = ("--verb=create", "--resource=llmservices.llmservice.dev", "-n", other)
    kubectl("create", "role", "writer", *role)
    kubectl("create", "rolebinding", "services", "--role=writer", "--user=writer", "-n", other)
    elsewhere = ("create", "-n", other, "--as=writer", "--dry-run=server", "-f-")
    assert refusal(*elsewhere, stdin=service("wanted", WITH_CODE)) == ""


def test_the_api_server_finds_nothing_wrong_with_the_types_of_the_policy(
    release: Release,
) -> None:
    install(release)

    def checked() -> bool:
        policy = read("validatingadmissionpolicy", f"{release.full_name}.{release.name}")
        status = policy.get("status", {})
        assert "expressionWarnings" not in status.get("typeChecking", {}), status
        return bool(status.get("observedGeneration") == policy["metadata"]["generation"])

    eventually(checked, 30, "the types of the policy are checked")


def test_without_the_policy_no_right_is_needed(release: Release) -> None:
    install(release, {"admissionPolicy": {"enabled": False}})

    eventually(
        lambda: refused(release, "writer", {**WITH_ACCOUNT, **WITH_CODE}) == "",
        describe="no right is needed",
    )
