"""Tests the hub's configuration file, and the messages about a wrong one."""

import subprocess
import sys
from pathlib import Path

import pytest

from localkube.errors import LocalkubeError
from localkube.hub import daemon
from localkube.hub.models import SMOLLM2, TINY_LLAMA, read_prompts
from localkube.hub.repository import Visibility
from localkube.hub.settings import HubSettings, InvalidHubSettings, RepositorySettings


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    settings = HubSettings(
        host="10.200.0.1",
        port=8091,
        bytes_per_second=1000,
        repositories={
            "org/name": RepositorySettings(
                branches={"main": tmp_path}, visibility=Visibility.PRIVATE, bytes_per_second=10
            )
        },
        tokens={"hf_reader": frozenset({"org/name"})},
    )

    assert HubSettings.parse(settings.to_yaml()) == settings


def repository(**changes: object) -> dict[str, object]:
    return {"branches": {"main": "/tmp"}} | changes


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("repositories: [", "is not YAML"),
        ("", "the whole: Input should be"),
        ({}, "repositories: Field required"),
        ({"repositories": {}, "speed": 1}, "speed: Extra inputs"),
        ({"repositories": {"name": repository()}}, "should match pattern"),
        ({"repositories": {"o/n": repository(branches={})}}, "add `main`"),
        ({"repositories": {"o/n": repository(branches={"main": "/no"})}}, "directory"),
        ({"repositories": {"o/n": repository(visibility="open")}}, "'public', 'gated' or"),
        ({"repositories": {"o/n": repository(bytesPerSecond=0)}}, "greater than 0"),
        (
            {"repositories": {"o/n": repository()}, "tokens": {"hf_x": ["o/other"]}},
            "tokens name o/other: add it under repositories",
        ),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_field(document: object, said: str) -> None:
    text = document if isinstance(document, str) else repr(document)

    with pytest.raises(InvalidHubSettings, match=said):
        HubSettings.parse(text)


def test_a_hub_that_cannot_start_says_why(tmp_path: Path) -> None:
    file = tmp_path / "hub.yaml"
    file.write_text("repositories: {}\nport: none\n")

    done = subprocess.run(
        [sys.executable, "-m", "localkube.hub.server", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "the hub cannot start: the hub's configuration: port:" in done.stderr


def test_a_missing_configuration_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalkubeError, match=r"absent\.yaml"):
        daemon.read_settings(tmp_path / "absent.yaml")


def test_without_a_configuration_all_models_are_public_and_two_are_behind_doors(
    tmp_path: Path,
) -> None:
    settings = daemon.default_settings({SMOLLM2: tmp_path, TINY_LLAMA: tmp_path})

    visible = {repo_id: each.visibility for repo_id, each in settings.repositories.items()}
    assert visible == {
        SMOLLM2: Visibility.PUBLIC,
        TINY_LLAMA: Visibility.PUBLIC,
        daemon.PRIVATE_TINY_LLAMA: Visibility.PRIVATE,
        daemon.GATED_TINY_LLAMA: Visibility.GATED,
        daemon.SLOW_SMOLLM2: Visibility.PUBLIC,
    }
    assert settings.tokens[daemon.STRANGER_TOKEN] == frozenset()


@pytest.mark.parametrize("text", ['{"a": 1}', "[1, 2]", "Hello"])
def test_prompts_that_are_no_list_of_strings_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(text)

    with pytest.raises(LocalkubeError, match=r"prompts\.json"):
        read_prompts(file)
