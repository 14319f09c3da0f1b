"""Tests upgrades from earlier versions, and everything else that helm does to a release, under the
load of clients that repeat no request.

`make test-upgrade` runs it. The earlier versions, and the reasons for them, are in
earlier_versions.py; FROM=COMMIT chooses another one. The served pods have the image of the earlier
version, as those of a user.
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import earlier_versions
from e2e_support import PATIENCE, Cluster, Object, serves
from earlier_versions import Earlier
from impatient_clients import Ending
from llmservice_operator.names import COMPONENT_LABEL
from served import Served, Snapshot
from shared_support.waiting import eventually
from stage import (
    CHART,
    RELEASE,
    SYSTEM_NAMESPACE,
    Images,
    install_chart,
    load_images,
    uninstall_chart,
)

pytestmark = pytest.mark.local

NAMESPACE, OTHER_NAMESPACE = "team-a", "team-b"
OTHER_SYSTEM_NAMESPACE = "llmservice-system-b"
CRD = "llmservices.llmservice.dev"
PODS_OF_A_RELEASE = {"operator": 2, "metrics-server": 2}
"""Number of pods of each component, with the default values of the chart."""

EARLIER: Sequence[Earlier | None] = [
    *(
        earlier_versions.read(Path(file))
        if (file := os.environ.get("LLMSERVICE_TEST_EARLIER"))
        else [None]
    )
]
"""Versions from which the test upgrades; None if `make test-upgrade` has prepared none."""


class Stage:
    """The services under load, and a report of each step."""

    def __init__(self, cluster: Cluster, say: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.services: list[Served] = []
        self._say = say
        self._loads = contextlib.ExitStack()

    def serve(self, namespace: str, name: str, *, has_router: bool = False) -> Served:
        """Create a service, wait until it serves, and start its clients."""
        service = Served(self.cluster, namespace, name, has_router)
        self._loads.enter_context(service.clients)
        self.services.append(service)
        return service

    def stop(self) -> None:
        """Stop all clients, and wait until their requests have ended."""
        self._loads.close()

    def assert_no_failure(self) -> None:
        """Assert that each request has been answered, of all services and since their starts."""
        for service in self.services:
            assert service.clients.failures() == [], f"{service.namespace}/{service.name}"

    @contextlib.contextmanager
    def step(self, title: str, present: Images | None, *, replaces: bool = False) -> Iterator[None]:
        """Run a step, wait until it has had its effects, print them and check them.

        Args:
            title: what the step does.
            present: images of the releases that serve the services afterwards; None if no release
                serves all of them any more.
            replaces: whether the step replaces all replicas once. Otherwise it replaces none.

        """
        before = [Snapshot.of(service) for service in self.services]
        began = time.monotonic()
        yield
        if present:
            for service in self.services:
                service.wait_reconciled(present.router)
        for each in before:
            eventually(each.service.clients.go_on(2), within=PATIENCE, every=0.2)
        seconds = time.monotonic() - began
        after = [Snapshot.of(each.service) for each in before]
        changes = [each.changes_until(later) for each, later in zip(before, after, strict=True)]
        requests = sum((each.requests for each in changes), Counter[Ending]())
        failed = requests.total() - requests[Ending.ANSWERED]
        replaced = sum(each.replaced for each in changes)
        restarted = sum(each.restarted + each.router_restarts for each in changes)
        routers = sum(each.router_pods for each in changes)
        self._say(
            f"{title}: {seconds:.0f} s, {requests.total()} requests, {failed} failed; "
            f"replicas {replaced} replaced; router pods {routers} replaced; {restarted} restarts"
        )
        self.assert_no_failure()
        assert restarted == 0
        if replaces:
            assert [each.replaced for each in changes] == [len(it.replicas) for it in before]
        else:
            assert replaced == 0
            assert [each.templates for each in after] == [each.templates for each in before]
        assert [each.images for each in after] == [each.images for each in before]


def wait_for_release(cluster: Cluster, namespace: str, image: str, components: set[str]) -> None:
    """Wait until all pods of a release have the operator's image and are ready, and no other pod is
    left.
    """

    wanted = {name: count for name, count in PODS_OF_A_RELEASE.items() if name in components}

    def is_settled() -> bool:
        pods = cluster.list("pods", namespace)
        assert {pod["spec"]["containers"][0]["image"] for pod in pods} == {image}
        assert Counter(component_of(pod) for pod in pods) == wanted
        return all(serves(pod) for pod in pods)

    eventually(is_settled, within=PATIENCE, every=1)


def component_of(pod: Object) -> str:
    """Return the component of a pod of a release. Release 0.1.0 had only the operator."""
    component: str = pod["metadata"]["labels"].get(COMPONENT_LABEL, "operator")
    return component


@pytest.fixture
def stage(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> Iterator[Stage]:
    """Yield a stage without services. At the end, nothing of it and of the releases remains."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(text, flush=True)

    for namespace in (NAMESPACE, OTHER_NAMESPACE):
        cluster.create_namespace(namespace)
    stage = Stage(cluster, say)
    yield stage
    stage.stop()
    for namespace in (NAMESPACE, OTHER_NAMESPACE):
        cluster.kubectl("delete", "llm", "--all", "-n", namespace, "--ignore-not-found")
        cluster.wait_until_no_pods(namespace)
    for namespace in (SYSTEM_NAMESPACE, OTHER_SYSTEM_NAMESPACE):
        options = ("--namespace", namespace, "--ignore-not-found", "--wait")
        cluster.run("helm", "uninstall", RELEASE, *options)
    cluster.kubectl("delete", "crd", CRD, "--ignore-not-found")


@pytest.mark.parametrize("earlier", EARLIER, ids=lambda it: it.name if it else "none prepared")
def test_releases_come_and_go_without_a_failed_request_and_with_only_announced_replacements(
    earlier: Earlier | None,
    cluster: Cluster,
    images: Images,
    hub: str,
    local_cluster_name: str,
    stage: Stage,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert earlier is not None, "no earlier version is prepared: run `make test-upgrade`"
    old = Images(earlier.operator, earlier.server_cpu, earlier.server_cpu, earlier.router)
    load_images(local_cluster_name, old)
    with capsys.disabled():
        print(f"\nfrom {earlier.name}")
    install_chart(cluster, old, hub, chart=Path(earlier.chart))
    stage.serve(NAMESPACE, "plain")
    if earlier.router:
        stage.serve(NAMESPACE, "routed", has_router=True)

    def install(*values: str, namespace: str = SYSTEM_NAMESPACE) -> None:
        settings = [f"--set={value}" for value in values]
        install_chart(cluster, images, hub, *settings, chart=CHART, namespace=namespace)
        wait_for_release(cluster, namespace, images.operator, set(PODS_OF_A_RELEASE))

    replaces = bool(earlier.announced)
    with stage.step("upgrade", images, replaces=replaces):
        install()
    with stage.step("rollback", old, replaces=replaces):
        where = ("--namespace", SYSTEM_NAMESPACE)
        cluster.run("helm", "rollback", RELEASE, "1", *where, "--wait", "--timeout", "3m")
        wait_for_release(cluster, SYSTEM_NAMESPACE, old.operator, components_of(earlier))
    with stage.step("second upgrade", images, replaces=replaces):
        install()
    with stage.step("two releases", images):
        install(f"watchNamespaces={{{NAMESPACE}}}")
        install(
            f"watchNamespaces={{{OTHER_NAMESPACE}}}",
            "crds.install=false",
            namespace=OTHER_SYSTEM_NAMESPACE,
        )
        stage.serve(OTHER_NAMESPACE, "plain")
    with stage.step("uninstalled second release", None):
        uninstall_chart(cluster, OTHER_SYSTEM_NAMESPACE)
        cluster.wait_until_no_pods(OTHER_SYSTEM_NAMESPACE)
    with stage.step("uninstalled first release", None):
        uninstall_chart(cluster)
        cluster.wait_until_no_pods(SYSTEM_NAMESPACE)
    with stage.step("installed again, for all namespaces", images):
        install()
    stage.stop()
    stage.assert_no_failure()


def components_of(earlier: Earlier) -> set[str]:
    """Return the components that the chart of a version has."""
    templates = Path(earlier.chart) / "templates"
    return {name for name in PODS_OF_A_RELEASE if (templates / name).is_dir()}
