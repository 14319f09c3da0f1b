"""Tests that each message about a missing requirement says what to do."""

from dataclasses import replace
from pathlib import Path

import pytest

from localkube import binaries, preflight
from localkube.cli import main
from localkube.errors import LocalkubeError
from localkube.preflight import Facts

READY = Facts(root=True, go=(1, 26), disk_free_gb={Path("/cache"): 50.0})


def only(facts: Facts) -> str:
    (problem,) = preflight.problems(facts)
    return problem


def test_a_machine_with_everything_has_no_problem() -> None:
    assert preflight.problems(READY) == []


def test_names_sudo_where_root_is_missing() -> None:
    assert "sudo" in only(replace(READY, root=False))


def test_says_the_line_that_installs_the_missing_packages() -> None:
    problem = only(replace(READY, missing_packages=["runc", "nftables"]))

    assert "apt-get install --no-install-recommends --yes runc nftables" in problem
    assert "localkube setup" in problem


def test_says_where_go_is_found() -> None:
    assert "install Go 1.26 or newer from https://go.dev/dl/" in only(replace(READY, go=None))


def test_says_which_go_is_there_and_which_is_needed() -> None:
    assert "Go 1.19 is too old: install Go 1.26" in only(replace(READY, go=(1, 19)))


@pytest.mark.parametrize(
    ("to_build", "free", "needed"),
    [
        pytest.param(["kubernetes"], 9.0, "10 GB needed, 9.0 GB free", id="programs to build"),
        pytest.param([], 1.5, "2 GB needed, 1.5 GB free", id="everything built"),
        pytest.param(None, 44.0, "45 GB needed, 44.0 GB free", id="nothing cached"),
    ],
)
def test_says_how_much_disk_is_needed_and_free(
    to_build: list[str] | None, free: float, needed: str
) -> None:
    facts = replace(
        READY,
        to_build=to_build or [],
        from_nothing=to_build is None,
        disk_free_gb={Path("/cache"): free},
    )

    problem = only(facts)

    assert needed in problem
    assert "LLMSERVICE_CACHE" in problem


def test_asks_for_less_disk_once_the_programs_are_built() -> None:
    assert preflight.problems(replace(READY, disk_free_gb={Path("/cache"): 5.0})) == []


def test_names_the_control_groups_that_are_not_mounted() -> None:
    assert "cpuset" in only(replace(READY, missing_controllers=["cpuset"]))


def test_tells_everything_at_once() -> None:
    facts = Facts(root=False, missing_packages=["runc"], go=None)

    assert len(preflight.problems(facts)) == 3


def test_a_package_is_missing_when_its_program_is() -> None:
    packages = {"here": "sh", "not-here": "/nonexistent/program"}

    assert preflight.missing_packages(packages) == ["not-here"]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26)),
        ("go version go1.27rc1 linux/arm64", (1, 27)),
        ("gibberish", None),
    ],
)
def test_reads_the_version_of_go(text: str, version: tuple[int, int] | None) -> None:
    assert preflight.parse_go_version(text) == version


@pytest.mark.parametrize(
    ("stderr", "advice"),
    [
        ("go: example.com/x: dial tcp: lookup example.com: no such host", "set GOPROXY"),
        ("write /tmp/x: no space left on device", "8 GB needed"),
        ("main.go:3: undefined: x", "undefined: x"),
    ],
)
def test_a_failed_build_says_what_to_change(
    stderr: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMSERVICE_CACHE", str(tmp_path))

    assert advice in binaries.build_failure("helm", stderr)


def test_up_refuses_a_machine_that_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "look", lambda *, api_only: replace(READY, root=False))

    with pytest.raises(LocalkubeError, match="This machine is not ready"):
        preflight.check(api_only=True)


def test_setup_tells_of_a_missing_go_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "install_packages", lambda: None)
    monkeypatch.setattr(preflight, "look", lambda *, api_only: replace(READY, go=None))

    assert main(["setup"]) == 1

    assert "Go is missing: install Go 1.26" in capsys.readouterr().err


def test_setup_asks_for_the_disk_of_the_images_as_long_as_there_are_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    little = replace(READY, disk_free_gb={tmp_path: 20.0})
    monkeypatch.setattr(preflight, "look", lambda *, api_only: little)
    monkeypatch.setenv("LLMSERVICE_CACHE", str(tmp_path))

    with pytest.raises(LocalkubeError, match="45 GB needed"):
        preflight.check(api_only=False, with_images=True)
    (tmp_path / "images").mkdir()
    preflight.check(api_only=False, with_images=True)
