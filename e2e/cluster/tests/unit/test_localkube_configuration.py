"""Tests the configuration of a cluster's programs, and the parsing of the command line."""

import io
import json
import shutil
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

from localkube import (
    archive,
    audit,
    binaries,
    cli,
    control_plane,
    dns,
    gpus,
    lifecycle,
    mounts,
    node,
    paths,
    progress,
    registry,
)
from localkube.cluster import Cluster
from localkube.errors import LocalkubeError


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Cluster that does not run, with its state and cache in the test's own folder."""
    monkeypatch.setattr(paths, "STATE_ROOT", tmp_path / "state")
    monkeypatch.setenv("LLMSERVICE_CACHE", str(tmp_path / "cache"))
    return Cluster("demo")


@pytest.mark.parametrize("name", ["", "UPPER", "-dash", "dash-", "../escape", "a" * 33])
def test_refuses_a_name_that_is_no_folder_name(name: str) -> None:
    with pytest.raises(LocalkubeError, match="lower-case letters"):
        Cluster(name)


def test_says_how_to_start_a_cluster_that_is_not_there(cluster: Cluster) -> None:
    with pytest.raises(LocalkubeError, match="localkube --name demo up"):
        cluster.environment()


def test_kubectl_finds_its_plugin_without_an_activated_environment(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    lifecycle._write_record(cluster, 1, True, complete=True)
    monkeypatch.setenv("PATH", "/usr/bin")

    found = shutil.which("kubectl-llm", path=cluster.environment()["PATH"])

    assert found == str(Path(sys.executable).with_name("kubectl-llm"))


def test_an_api_only_cluster_has_no_nodes(cluster: Cluster) -> None:
    lifecycle._write_record(cluster, 1, True, complete=True)
    assert cluster.nodes() == []

    lifecycle._write_record(cluster, 2, False, complete=True)
    assert [each.address for each in cluster.nodes()] == ["10.200.0.1", "10.200.0.2"]


def test_containerd_keeps_images_in_the_cache_and_pulls_by_the_registrys_address(
    cluster: Cluster,
) -> None:
    second = cluster.node(2)

    config = tomllib.loads(node.containerd_config(second))
    hosts = tomllib.loads(registry.node_hosts(cluster))

    assert config["root"] == str(paths.cache_dir() / "localkube/containerd/demo/node2")
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["restrict_oom_score_adj"] is True
    assert cri["sandbox_image"] == archive.pause_reference()
    assert hosts["host"]["http://10.200.0.1:5000"]["capabilities"] == ["pull", "resolve"]


def test_pod_subnets_follow_the_number_of_the_node(cluster: Cluster) -> None:
    bridge = node.cni_config(cluster.node(2))["plugins"][0]

    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.244.1.0/24"}]]


def test_each_kubelet_has_a_control_group_of_its_own(cluster: Cluster) -> None:
    configs = [node.kubelet_config(cluster.node(index)) for index in (1, 2)]

    roots = [config["cgroupRoot"] for config in configs]
    assert roots == ["/localkube/demo/node1", "/localkube/demo/node2"]


def test_the_registry_stores_in_the_cache(cluster: Cluster) -> None:
    storage = yaml.safe_load(registry.config())["storage"]["filesystem"]

    assert storage["rootdirectory"] == str(paths.cache_dir() / "localkube/registry")


def test_the_audit_policy_writes_down_every_write() -> None:
    silent = [rule for rule in control_plane.audit_policy()["rules"] if rule["level"] == "None"]

    for rule in silent:
        reads_only = set(rule.get("verbs", ())) == {"get", "list", "watch"}
        assert reads_only or rule["nonResourceURLs"] == ["*"]


def test_the_dns_service_has_the_address_that_pods_are_told(cluster: Cluster) -> None:
    service, endpoints, *_ = dns.manifests(cluster)

    told = node.kubelet_config(cluster.node(1))["clusterDNS"]
    assert told == [service["spec"]["clusterIP"]]
    assert endpoints["endpoints"][0]["addresses"] == ["10.200.0.1"]
    assert "bind 10.200.0.1" in dns.corefile(cluster)


def test_mount_points_are_read_with_their_spaces() -> None:
    table = (
        "36 35 98:0 / /mnt rw - ext4 /dev/a rw\n37 36 0:3 / /mnt/my\\040disk rw - nsfs nsfs rw\n"
    )

    assert mounts.targets(table) == [Path("/mnt"), Path("/mnt/my disk")]


def test_no_gpus_takes_the_resource_away() -> None:
    assert gpus.patch(4)["status"]["capacity"] == {"nvidia.com/gpu": "4"}
    assert gpus.patch(0)["status"]["allocatable"] == {"nvidia.com/gpu": None}


def test_fewer_than_no_gpus_are_refused(cluster: Cluster) -> None:
    with pytest.raises(LocalkubeError, match="0 for none"):
        gpus.advertise(cluster, -1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 0}, "between 1 and 9"),
        ({"nodes": 10}, "between 1 and 9"),
        ({"nodes": 2, "api_only": True}, "leave --nodes out"),
    ],
)
def test_up_refuses_what_makes_no_sense(
    cluster: Cluster, options: dict[str, int], message: str
) -> None:
    with pytest.raises(LocalkubeError, match=message):
        lifecycle.up(cluster, nodes=options["nodes"], api_only=bool(options.get("api_only")))


def test_a_node_is_schedulable_once_it_is_ready_and_without_taints() -> None:
    ready = [{"type": "Ready", "status": "True"}]
    unready = [{"type": "Ready", "status": "False"}]
    items = [
        ("good", {}, ready),
        ("tainted", {"taints": [{"key": "node.kubernetes.io/not-ready"}]}, ready),
        ("unready", {}, unready),
        ("new", {}, []),
    ]
    nodes = {
        "items": [
            {"metadata": {"name": name}, "spec": spec, "status": {"conditions": conditions}}
            for name, spec, conditions in items
        ]
    }

    assert lifecycle.schedulable(nodes) == {"good"}


def event(second: int, user: str, verb: str) -> str:
    time = f"2030-01-31T12:00:{second:02}.000000Z"
    return json.dumps({"requestReceivedTimestamp": time, "user": {"username": user}, "verb": verb})


def test_the_audit_log_is_filtered_and_a_line_under_way_is_left_out(cluster: Cluster) -> None:
    cluster.logs.mkdir(parents=True)
    lines = [event(1, "a", "create"), event(2, "a", "get"), event(3, "b", "patch")]
    cluster.audit_log.write_text("\n".join(lines) + '\n{"verb": "cre')

    def verbs(**wanted: str | bool) -> list[str]:
        return [each["verb"] for each in audit.events(cluster, **wanted)]  # type: ignore[arg-type]

    assert verbs() == ["create", "get", "patch"]
    assert verbs(user="a") == ["create", "get"]
    assert verbs(writes_only=True) == ["create", "patch"]
    assert verbs(since="2030-01-31T12:00:02Z") == ["get", "patch"]
    assert verbs(since="2030-01-31T14:00:02+02:00") == ["get", "patch"]


def test_says_how_a_time_is_written() -> None:
    with pytest.raises(LocalkubeError, match="2030-01-31T12:00:00Z"):
        audit.moment("yesterday")


def test_the_pause_archive_names_its_image_and_is_the_same_every_time(tmp_path: Path) -> None:
    program = tmp_path / "pause"
    program.write_bytes(b"program")

    packed = archive.single_program(program, "localhost/pause:1")

    assert packed == archive.single_program(program, "localhost/pause:1")
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        manifest_file = tar.extractfile("manifest.json")
        assert manifest_file is not None
        (manifest,) = json.load(manifest_file)
        assert manifest["RepoTags"] == ["localhost/pause:1"]
        assert {manifest["Config"], *manifest["Layers"]} < set(tar.getnames())


def test_programs_are_cached_by_all_that_goes_into_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "go_sources", lambda: tmp_path)
    monkeypatch.setattr(binaries, "toolchain", lambda: "go1")
    module = binaries.Module("pause")
    (tmp_path / "pause").mkdir()
    source = tmp_path / "pause" / "main.go"
    source.write_text("package main")
    first = binaries.folder(module)

    source.write_text("package main // changed")
    second = binaries.folder(module)
    monkeypatch.setattr(binaries, "toolchain", lambda: "go2")
    third = binaries.folder(module)

    assert len({first, second, third}) == 3


@pytest.mark.parametrize(
    ("typed", "understood"),
    [
        ("up --name x --api-only", "--name x up --api-only"),
        ("--name x up", "--name x up"),
        ("up", "--name llmservice up"),
        ("exec --name x -- tool --name y", "--name x exec -- tool --name y"),
        ("kubectl run --name y", "--name llmservice kubectl run --name y"),
    ],
)
def test_the_name_may_stand_before_or_after_the_command(typed: str, understood: str) -> None:
    assert cli.name_first(typed.split()) == understood.split()


def test_an_error_is_one_message_and_the_exit_status_1(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--name", "demo", "exec", "--", "true"]) == 1

    printed = capsys.readouterr()
    assert printed.err.startswith("localkube: There is no cluster 'demo'. Start it:")
    assert printed.out == ""


def test_exec_without_a_command_says_how_it_is_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["exec"]) == 1
    assert "localkube exec -- COMMAND" in capsys.readouterr().err


def test_a_step_is_one_line_with_its_seconds_or_its_failure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress.step("Something slow"):
        pass
    with pytest.raises(ZeroDivisionError), progress.step("Something wrong"):
        _ = 1 / 0

    slow, wrong = capsys.readouterr().err.splitlines()
    assert slow == "  Something slow … 0.0 s"
    assert wrong == "  Something wrong … failed after 0.0 s"
