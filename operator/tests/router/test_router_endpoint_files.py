"""The files that tell Envoy its endpoints."""

import json
from pathlib import Path
from typing import Any

from llmservice_operator.router.endpoint_files import EndpointFiles
from llmservice_operator.router.replica_view import ReplicaView
from router_support.whole_pod import settings_of_pod


def view(number: int, address: str, *, is_draining: bool = False) -> ReplicaView:
    return ReplicaView(f"chat-{number}", address, is_draining, None, 0.0)


def assignment(folder: Path, name: str) -> dict[str, Any]:
    """Return the only resource of a file."""
    (resource,) = json.loads((folder / f"{name}.json").read_text())["resources"]
    assert resource["cluster_name"] == name
    assert resource["policy"] == {"overprovisioning_factor": 100_000}
    found: dict[str, Any] = resource
    return found


def hosts(assignment: dict[str, Any], priority: int) -> list[tuple[str, int]]:
    return [
        (address["address"], address["port_value"])
        for level in assignment["endpoints"]
        if level["priority"] == priority
        for endpoint in level["lb_endpoints"]
        for address in [endpoint["endpoint"]["address"]["socket_address"]]
    ]


def test_the_replicas_come_first_and_the_forwarder_last(tmp_path: Path) -> None:
    settings = settings_of_pod(tmp_path / "run")
    files = EndpointFiles(settings)
    files.write_bootstrap()
    replicas = [view(1, "[fd00::1]:8000"), view(2, "10.0.0.2:8000"), view(3, "10.0.0.1:8000")]

    assert files.write_replicas(replicas) == "1"

    expected = [("10.0.0.1", 8000), ("10.0.0.2", 8000), ("fd00::1", 8000)]
    only = assignment(settings.run_directory, "replicas")
    both = assignment(settings.run_directory, "replicas_or_forwarder")
    assert hosts(only, 0) == hosts(both, 0) == expected
    assert hosts(only, 1) == []
    assert hosts(both, 1) == [("127.0.0.1", settings.forwarder_port)]
    (last,) = both["endpoints"][1]["lb_endpoints"]
    assert last["endpoint"]["health_check_config"] == {"disable_active_health_check": True}
    assert not list(settings.run_directory.glob("*.new"))


def test_files_are_written_only_when_the_endpoints_change(tmp_path: Path) -> None:
    files = EndpointFiles(settings_of_pod(tmp_path))
    first, second = view(1, "10.0.0.1:8000"), view(2, "10.0.0.2:8000")

    assert files.write_replicas([]) == "1"
    assert files.write_replicas([]) is None
    assert files.write_replicas([first, second]) == "2"
    assert files.write_replicas([second, first]) is None
    assert files.write_replicas([first, view(2, "10.0.0.2:8000", is_draining=True)]) == "3"
    assert hosts(assignment(tmp_path, "replicas"), 0) == [("10.0.0.1", 8000)]


def test_the_pickers_have_an_order(tmp_path: Path) -> None:
    settings = settings_of_pod(tmp_path)
    files = EndpointFiles(settings)
    files.write_pickers(["10.0.0.2", "10.0.0.1"])
    found = assignment(tmp_path, "pickers")
    assert hosts(found, 0) == [("10.0.0.2", settings.picker_port)]
    assert hosts(found, 1) == [("10.0.0.1", settings.picker_port)]
    before = (tmp_path / "pickers.json").stat()
    files.write_pickers(["10.0.0.2", "10.0.0.1"])
    assert (tmp_path / "pickers.json").stat().st_ino == before.st_ino
