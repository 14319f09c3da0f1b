"""Tests that the test models have the right content, and are the same every time."""

import json
from pathlib import Path

import pytest

from localkube.hub import engine
from localkube.hub.models import SMOLLM2, TINY_LLAMA, models_folder
from localkube_support.cluster import localkube, succeed

NAME = "test-models"
"""Cluster name for the command line. No cluster runs, because models need none."""


@pytest.fixture(scope="module")
def models() -> dict[str, Path]:
    folders: dict[str, str] = json.loads(succeed(NAME, "models"))
    return {repo_id: Path(folder) for repo_id, folder in folders.items()}


def test_both_models_lie_in_one_folder_by_their_repository_id(models: dict[str, Path]) -> None:
    assert models == {repo_id: models_folder() / repo_id for repo_id in (SMOLLM2, TINY_LLAMA)}


def test_every_file_can_be_read_under_any_user_id(models: dict[str, Path]) -> None:
    files = [path for folder in models.values() for path in folder.iterdir()]

    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {f.name for f in files}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}


def test_smollm2_knows_the_capital_of_france(models: dict[str, Path], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps(["The capital of France is"]))

    (answer,) = json.loads(succeed(NAME, "models", "--reference", str(prompts), "--tokens", "8"))

    assert answer["prompt"] == "The capital of France is"
    assert "Paris" in answer["text"]
    assert len(answer["token_ids"]) == len(answer["gaps"]) == 8
    assert min(answer["gaps"]) > 0


def test_the_tiny_model_is_the_same_when_it_is_made_again(
    models: dict[str, Path], tmp_path: Path
) -> None:
    engine.run_script("make_tiny_llama.py", str(models[SMOLLM2]), str(tmp_path / "again"))

    again = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert again == {path.name: path.read_bytes() for path in models[TINY_LLAMA].iterdir()}


def test_a_model_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text("[]")

    refused = localkube(NAME, "models", "--reference", str(prompts), "--model", "org/unknown")

    assert refused.returncode == 1
    assert f"choose one of {SMOLLM2}, {TINY_LLAMA}." in refused.stderr
