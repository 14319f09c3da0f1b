"""Tests the hub and the volume of models inside a real cluster."""

import os
import sys
from collections.abc import Iterator

import pytest

from localkube.cluster import Cluster
from localkube.hub.daemon import PRIVATE_TINY_LLAMA, READER_TOKEN
from localkube.hub.models import TINY_LLAMA, models_folder
from localkube_support.cluster import apply, localkube, objects, succeed
from shared_support.waiting import eventually

NAME = "test-hub"
NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "models"}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    succeed(NAME, "down")
    succeed(NAME, "up", "--api-only")
    yield Cluster(NAME)
    succeed(NAME, "down")


@pytest.fixture
def hub(cluster: Cluster) -> str:
    return succeed(NAME, "hub", "start").strip()


def downloaded_size(cluster: Cluster, hub: str, repo_id: str, token: str) -> str:
    """Download a file with the real client in the cluster; return its size in characters, or the
    client's error output.
    """
    program = (
        "import tempfile, huggingface_hub as h\n"
        "with tempfile.TemporaryDirectory() as cache:\n"
        f"    path = h.hf_hub_download({repo_id!r}, 'config.json', cache_dir=cache)\n"
        "    print(len(open(path).read()))\n"
    )
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_TOKEN": token}
    done = cluster.exec(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    return str(done.stdout or done.stderr)


def test_the_hub_serves_the_models_inside_the_clusters_network(cluster: Cluster, hub: str) -> None:
    size = str((models_folder() / TINY_LLAMA / "config.json").stat().st_size)

    assert hub == "http://10.200.0.1:8090"
    assert succeed(NAME, "hub", "url").strip() == hub
    assert downloaded_size(cluster, hub, TINY_LLAMA, "").strip() == size
    assert downloaded_size(cluster, hub, PRIVATE_TINY_LLAMA, READER_TOKEN).strip() == size
    assert "RepositoryNotFoundError" in downloaded_size(cluster, hub, PRIVATE_TINY_LLAMA, "")


def test_starting_the_hub_again_replaces_it(cluster: Cluster, hub: str) -> None:
    before = cluster.daemons()["hub"]

    again = succeed(NAME, "hub", "start", "--bytes-per-second", "1000000").strip()

    assert again == hub
    assert cluster.daemons()["hub"] not in {None, before}


def test_a_stopped_hub_has_no_url_and_says_how_to_start_it(cluster: Cluster, hub: str) -> None:
    succeed(NAME, "hub", "stop")
    succeed(NAME, "hub", "stop")

    asked = localkube(NAME, "hub", "url")

    assert asked.returncode == 1
    assert f"localkube --name {NAME} hub start" in asked.stderr


def test_a_speed_that_is_none_is_refused() -> None:
    refused = localkube(NAME, "hub", "start", "--bytes-per-second", "0")

    assert refused.returncode == 2
    assert "must be a whole number above 0" in refused.stderr


def test_the_models_are_on_a_claim_also_after_it_was_deleted(cluster: Cluster) -> None:
    apply(cluster, NAMESPACE)

    def is_bound() -> bool:
        claim = objects(cluster, "pvc", "weights", "--namespace=models")
        return bool(claim["status"]["phase"] == "Bound")

    succeed(NAME, "models", "volume", "models", "weights")
    eventually(is_bound, 60)
    succeed(NAME, "models", "volume", "models", "weights")
    cluster.kubectl("delete", "pvc", "weights", "--namespace=models")
    succeed(NAME, "models", "volume", "models", "weights")
    eventually(is_bound, 60)

    volume = objects(cluster, "pv", "models.models.weights")
    assert volume["spec"]["hostPath"]["path"] == str(models_folder())
    assert volume["spec"]["accessModes"] == ["ReadOnlyMany"]


def test_a_volume_in_a_namespace_that_is_not_there_is_refused(cluster: Cluster) -> None:
    refused = localkube(NAME, "models", "volume", "absent", "weights")

    assert refused.returncode == 1
    assert '"absent" not found' in refused.stderr
