"""Tests that the image's information about model classes reaches the folder that vLLM reads."""

import logging
from pathlib import Path

import pytest

from llmservice_server.model_infos import lay_out


@pytest.fixture
def baked(tmp_path: Path) -> Path:
    folder = tmp_path / "baked"
    folder.mkdir()
    (folder / "llama.json").write_text("llama")
    (folder / "qwen.json").write_text("qwen")
    return folder


def laid_out(cache: Path) -> dict[str, str]:
    return {
        path.relative_to(cache).as_posix(): path.read_text()
        for path in cache.rglob("*")
        if path.is_file()
    }


def test_fills_an_empty_cache(tmp_path: Path, baked: Path) -> None:
    lay_out(tmp_path / "cache", baked)

    assert laid_out(tmp_path / "cache") == {
        "modelinfos/llama.json": "llama",
        "modelinfos/qwen.json": "qwen",
    }


def test_keeps_what_vllm_has_found_out_itself(tmp_path: Path, baked: Path) -> None:
    known = tmp_path / "cache" / "modelinfos"
    known.mkdir(parents=True)
    (known / "llama.json").write_text("newer")

    lay_out(tmp_path / "cache", baked)

    assert laid_out(known) == {"llama.json": "newer", "qwen.json": "qwen"}


def test_a_cache_that_cannot_be_written_is_told_and_stops_nothing(
    tmp_path: Path, baked: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("no folder")

    with caplog.at_level(logging.WARNING):
        lay_out(tmp_path / "cache", baked)

    assert "slower" in caplog.text


def test_an_image_without_them_changes_nothing(tmp_path: Path) -> None:
    lay_out(tmp_path / "cache", tmp_path / "absent")

    assert not (tmp_path / "cache").exists()
