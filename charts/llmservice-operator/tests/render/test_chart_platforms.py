"""Tests what clusters demand of the objects: mirrors, network policies, names and namespaces of
their own, other releases, and restarts after an upgrade.
"""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from chart_support.helm import (
    CHART,
    METRICS_SERVER,
    NAMESPACE,
    REGISTRY,
    RELEASE,
    Manifest,
    Values,
    find,
    helm,
    render,
)
from llmservice_operator.metrics_server.certificates import issue, server_context
from value_sets import rendered


def key(manifest: Manifest) -> tuple[str, str | None, str]:
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace"), metadata["name"]


def images(manifests: list[Manifest]) -> set[str]:
    """Return all images of the release and of its services."""
    (operator,) = find(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    found = {it["value"] for it in operator["env"] if "_IMAGE" in it["name"] and it["value"]}
    found |= {it["spec"]["containers"][0]["image"] for it in manifests if it["kind"] == "Pod"}
    return found | {operator["image"]}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "a mirror of all images",
            {
                f"mirror.example.com:5000/llm/llmservice/{image}:0.2.0"
                for image in ("operator", "server-gpu", "server-cpu", "router")
            },
        ),
        (
            "a mirror of images by digest",
            {
                "mirror.example.com/llmservice/operator@sha256:" + "ab" * 32,
                "mirror.example.com/llmservice/server-gpu:0.2.0",
                "mirror.example.com/llmservice/server-cpu:0.2.0",
                "mirror.example.com/me/server-amd@sha256:" + "cd" * 32,
                "mirror.example.com/llmservice/router:0.2.0",
            },
        ),
    ],
)
def test_one_value_moves_all_images_to_a_mirror(name: str, expected: set[str]) -> None:
    assert images(rendered(name)) == expected


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        ("localhost/a/b:1", "a/b:1"),
        ("registry:5000/b:1", "b:1"),
        ("me/server:1", "me/server:1"),
        ("server:1", "server:1"),
    ],
)
def test_a_mirror_replaces_only_the_registry_of_an_image(reference: str, path: str) -> None:
    values = {"global": {"imageRegistry": "mirror"}, "router": {"image": reference}}
    assert f"mirror/{path}" in images(render(values))


def test_all_objects_move_to_another_namespace() -> None:
    namespaces = {it["metadata"].get("namespace") for it in rendered("another namespace")}
    texts = yaml.safe_dump_all(rendered("another namespace"))

    assert namespaces == {None, "kube-system", "llm-platform"}
    assert NAMESPACE not in texts


def test_all_objects_and_pods_have_the_common_labels_and_annotations() -> None:
    manifests = rendered("common labels and annotations")
    templates = [it["spec"]["template"] for it in manifests if it["kind"] == "Deployment"]

    for each in [*manifests, *templates]:
        assert each["metadata"]["labels"]["team"] == "platform"
        assert each["metadata"]["labels"]["app.kubernetes.io/name"] != "not-ours"
        assert each["metadata"]["annotations"]["example.com/contact"] == "platform"


def with_version(version: str, folder: Path) -> list[Manifest]:
    """Return the objects of a copy of the chart with another version and the same appVersion."""
    chart = folder / version
    shutil.copytree(CHART, chart, ignore=shutil.ignore_patterns("tests"))
    facts = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump(facts | {"version": version}))
    return render(chart=chart)


def test_another_version_of_the_chart_replaces_the_pods_of_the_release_and_no_others(
    tmp_path: Path,
) -> None:
    one, other = (with_version(version, tmp_path) for version in ("1.0.0", "1.0.1"))

    for component in (None, METRICS_SERVER):
        pods = [
            find(each, "Deployment", component=component)["spec"]["template"]
            for each in (one, other)
        ]
        assert pods[0] != pods[1]
        # The operator builds the pods of the services from its image and its environment only.
        assert pods[0]["spec"] == pods[1]["spec"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (
            ({"watchNamespaces": ["a"]}, RELEASE, "system-a"),
            ({"watchNamespaces": ["b"]}, RELEASE, "system-b"),
        ),
        (({}, RELEASE, "system-a"), ({"watchNamespaces": ["b"]}, RELEASE, "system-b")),
        (({}, "blue", "system"), ({"watchNamespaces": ["b"]}, "green", "system")),
        (({}, "blue", "system-a"), ({}, "green", "system-b")),
    ],
    ids=[
        "each for one namespace, of one name",
        "one of them for the whole cluster, of one name",
        "in one namespace, of two names",
        "each for the whole cluster, of two names",
    ],
)
def test_two_releases_share_no_object(
    first: tuple[Values, str, str], second: tuple[Values, str, str]
) -> None:
    (values, release, namespace), (other_values, other_release, other_namespace) = first, second
    everything: Values = {"networkPolicy": {"enabled": True}, "monitoring": {"enabled": True}}
    one = render({**everything, **values}, release=release, namespace=namespace)
    other = render(
        {**everything, **other_values, "crds": {"install": False}},
        release=other_release,
        namespace=other_namespace,
    )

    assert not {key(it) for it in one} & {key(it) for it in other}


def policy(name: str, component: str | None = None) -> Any:
    return find(rendered(name), "NetworkPolicy", component=component)["spec"]


PROMETHEUS = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
}
OF_THE_RELEASE = {
    "app.kubernetes.io/part-of": "llmservice",
    "app.kubernetes.io/instance": RELEASE,
}


def test_a_network_policy_selects_the_pods_of_its_component() -> None:
    for component in (None, METRICS_SERVER):
        deployment = find(rendered("network policies"), "Deployment", component=component)
        selector = policy("network policies", component)["podSelector"]
        assert selector == deployment["spec"]["selector"]


def test_only_prometheus_and_the_test_pod_reach_the_operator() -> None:
    (rule,) = policy("network policies")["ingress"]
    pod = find(rendered("network policies"), "Pod")["metadata"]["labels"]

    assert [it["port"] for it in rule["ports"]] == ["health"]
    test_pod, prometheus = rule["from"]
    assert prometheus == PROMETHEUS
    assert test_pod["podSelector"]["matchLabels"].items() <= pod.items()


def test_a_network_policy_can_require_labels_of_prometheus_or_leave_it_out() -> None:
    (rule,) = policy("network policies for one Prometheus only")["ingress"]
    assert rule["from"][1] == {
        **PROMETHEUS,
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
    }
    (rule,) = policy("network policies with KEDA and no monitoring")["ingress"]
    assert len(rule["from"]) == 1


def test_the_release_and_keda_read_load_reports_and_the_api_server_reads_metrics() -> None:
    name = "network policies with KEDA and no monitoring"
    health, scaling, external = policy(name, METRICS_SERVER)["ingress"]
    pods = [
        it["spec"]["template"]["metadata"]["labels"]
        for it in rendered(name)
        if it["kind"] == "Deployment"
    ]

    assert [it["port"] for rule in (health, scaling, external) for it in rule["ports"]] == [
        *("health", "scaling", "external")
    ]
    own, keda = scaling["from"]
    assert own == {"podSelector": {"matchLabels": OF_THE_RELEASE}}
    assert all(OF_THE_RELEASE.items() <= it.items() for it in pods)
    assert keda == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}
    assert "from" not in external


def test_a_release_without_metrics_server_has_one_network_policy() -> None:
    name = "network policies for some namespaces without a metrics server"
    assert [it for it in rendered(name) if it["kind"] == "NetworkPolicy"] == [
        find(rendered(name), "NetworkPolicy")
    ]


def test_metrics_servers_on_the_host_network_can_be_replaced_on_as_many_nodes() -> None:
    deployment = find(
        rendered("metrics servers on the host network"), "Deployment", component=METRICS_SERVER
    )

    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    assert deployment["spec"]["template"]["spec"]["hostNetwork"] is True
    assert deployment["spec"]["template"]["spec"]["dnsPolicy"] == "ClusterFirstWithHostNet"


def test_ids_of_ones_own_replace_those_of_the_chart_even_if_they_are_zero() -> None:
    for manifest in rendered("IDs of its own"):
        if manifest["kind"] == "Deployment":
            context = manifest["spec"]["template"]["spec"]["securityContext"]
            assert (context["runAsUser"], context["runAsGroup"]) == (20000, 0)
            assert context["runAsNonRoot"] is True


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"metricsAPI": {"enabled": False}}, "The operator itself scales the services"),
        (
            {"metricsAPI": {"enabled": False}, "keda": {"enabled": True}},
            "KEDA scales the services.",
        ),
        ({"watchNamespaces": ["team-a"]}, "--user=alice --role=llmservice-operator-edit"),
        (
            {"metricsServer": {"port": 10260, "hostNetwork": {"enabled": True}}},
            "must admit privileged pods",
        ),
        ({"namespaceOverride": "llm"}, "is installed in namespace llm."),
    ],
)
def test_the_notes_tell_the_effects_of_a_value(values: Values, sentence: str) -> None:
    printed = helm(
        *("install", RELEASE, str(CHART), "--dry-run=client"),
        *("--values", str(REGISTRY), "--values", "-"),
        stdin=json.dumps(values),
    )

    assert sentence in printed.partition("NOTES:")[2]


def asked(name: str) -> list[str]:
    """Return the URLs that `helm test` asks."""
    command = find(rendered(name), "Pod")["spec"]["containers"][0]["command"]
    return [it for it in command if it.startswith("http")]


def test_helm_test_asks_every_port_of_every_component() -> None:
    for name in ("the defaults", "no external metrics", "no metrics server"):
        ports = {
            (it["metadata"]["name"], port["port"])
            for it in rendered(name)
            if it["kind"] == "Service" and it["spec"].get("clusterIP") != "None"
            for port in it["spec"]["ports"]
        }
        urls = [urlsplit(url) for url in asked(name)]
        assert {(url.hostname, url.port or 443) for url in urls} == ports


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        statuses = {"/readyz": HTTPStatus.OK, "/v1/scaling": HTTPStatus.UNAUTHORIZED}
        self.send_response(statuses.get(self.path, HTTPStatus.SERVICE_UNAVAILABLE))
        self.end_headers()
        self.wfile.write(b"watches: no answer yet")

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run_helm_test(*urls: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, CHART / "files" / "helm_test.py", *urls],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not done.stderr
    return done.returncode, done.stdout


def test_helm_test_passes_if_every_component_is_ready(address: str) -> None:
    assert run_helm_test(f"{address}/readyz") == (0, f"{address}/readyz: 200\n")


def test_helm_test_sees_that_the_load_reports_need_a_token(address: str) -> None:
    url = f"{address}/v1/scaling"
    assert run_helm_test(url) == (0, f"{url}: asks for a token\n")


def test_helm_test_sees_that_the_metrics_server_serves_tls_to_the_api_server_only() -> None:
    certificate = issue(["localhost"], datetime(2026, 1, 1, tzinfo=UTC))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    context = server_context(certificate, certificate.authority.decode())
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"https://127.0.0.1:{server.server_port}"

    assert run_helm_test(url) == (0, f"{url}: serves TLS\n")
    server.shutdown()
    server.server_close()


def test_helm_test_names_what_is_not_ready_and_what_does_not_answer(address: str) -> None:
    away = "http://127.0.0.1:1/readyz"

    status, printed = run_helm_test(f"{address}/starting", away, f"{address}/readyz")

    assert status == 1
    assert f"{address}/starting is not ready: 503 watches: no answer yet\n" in printed
    assert f"{away} does not answer: " in printed
    assert f"{address}/readyz: 200\n" in printed
