"""Prepares everything that an LLMService needs: cluster, images, models, hub, chart.

The demo and the end-to-end tests use the same preparation, so the tests cover the first steps of a
new user.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from e2e_support import ROOT, Cluster, Object

CHART = ROOT / "charts" / "llmservice-operator"
EXAMPLES = ROOT / "crds" / "examples"
SYSTEM_NAMESPACE = "llmservice-system"
RELEASE = "llmservice-operator"
"""Name in the commands of the documents, so that these work in the demo's cluster as they are."""

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TINY_MODEL = "llmservice-test/tiny-random-llama"


@dataclass(frozen=True)
class Images:
    """References of the images under test."""

    operator: str
    server_cpu: str
    server_gpu: str
    router: str = ""
    """Image of router pods; empty for the default of the chart."""

    @classmethod
    def from_json(cls, text: str) -> "Images":
        """Parse the output of `localkube images build all --json`."""
        found = json.loads(text)
        return cls(*(found[name] for name in ("operator", "server-cpu", "server-gpu", "router")))


def cpu_service(name: str, uri: str) -> Object:
    """Return an LLMService that is so small that several can run on a node without a GPU."""
    return {
        "apiVersion": "llmservice.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": uri},
            "accelerator": {"type": "cpu"},
            "engine": {"dtype": "Float32", "maxModelLen": 512},
            "resources": {"requests": {"cpu": "200m", "memory": "1Gi"}},
        },
    }


def localkube(*arguments: str, capture: bool = False) -> str:
    """Run localkube. Its progress goes to the terminal.

    With `capture`, return its standard output, and otherwise an empty string.
    """
    done = subprocess.run(
        ["localkube", *arguments],
        cwd=ROOT,
        check=True,
        text=True,
        stdout=subprocess.PIPE if capture else None,
    )
    return done.stdout if capture else ""


def images_under_test() -> Images:
    """Return the images that the JSON in LLMSERVICE_E2E_IMAGES names; if unset, build them."""
    given = os.environ.get("LLMSERVICE_E2E_IMAGES")
    return Images.from_json(given or localkube("images", "build", "all", "--json", capture=True))


def load_images(name: str, images: Images) -> None:
    """Load all images except the one for GPUs into the nodes of a local cluster."""
    for reference in filter(None, (images.operator, images.server_cpu, images.router)):
        localkube("load-image", reference, "--name", name)


def start_hub(name: str) -> str:
    """Start the test hub in a local cluster; return the URL at which pods reach it."""
    localkube("hub", "start", "--name", name)
    return localkube("hub", "url", "--name", name, capture=True).strip()


def install_chart(
    cluster: Cluster,
    images: Images,
    hub: str | None,
    *extra: str,
    chart: Path = CHART,
    namespace: str = SYSTEM_NAMESPACE,
) -> None:
    """Install or upgrade the chart and wait until the operator is available.

    The CPU image is the default for GPU services too. The nodes here advertise GPUs that they do
    not have, so everything except the computation is the same as on a real GPU.
    """
    registry, _, rest = images.operator.partition("/")
    repository, _, tag = rest.rpartition(":")
    values = {
        "image.registry": registry,
        "image.repository": repository,
        "image.tag": tag,
        "server.cpuImage": images.server_cpu,
        "server.gpuImage": images.server_cpu,
    }
    if images.router:
        values["router.image"] = images.router
    if hub:
        values["model.hubEndpoint"] = hub
    settings = [f"--set-string={key}={value}" for key, value in values.items()]
    cluster.create_namespace(namespace)
    cluster.run(
        "helm", "upgrade", "--install", RELEASE, str(chart), "--namespace", namespace,
        *settings, *extra, "--wait", "--timeout", "3m",
    )  # fmt: skip


def install_release(cluster: Cluster, name: str) -> None:
    """Install the chart into a local cluster, with the images under test and with the test hub."""
    images = images_under_test()
    load_images(name, images)
    install_chart(cluster, images, start_hub(name))


def uninstall_chart(cluster: Cluster, namespace: str = SYSTEM_NAMESPACE) -> None:
    """Remove the release and wait until its objects are gone."""
    cluster.run("helm", "uninstall", RELEASE, "--namespace", namespace, "--wait")
