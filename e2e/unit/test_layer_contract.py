"""The layer contract is alive: it fails when somebody breaks it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("operator/src", "server_image/src", "e2e/cluster/src")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for source in SOURCES:
        shutil.copytree(ROOT / source, tmp_path / source)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(root / source) for source in SOURCES)
    return subprocess.run(
        ["lint-imports", "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def test_the_contracts_hold(copy: Path) -> None:
    done = lint_imports(copy)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        pytest.param("observe.py", "import time", "reads no clock", id="core imports time"),
        pytest.param(
            "scaling/demand.py", "import time", "reads no clock", id="scaling reads a clock"
        ),
        pytest.param(
            "scaling/demand.py", "import numpy", "reads no clock", id="scaling needs numpy"
        ),
        pytest.param("desired/service.py", "import kopf", "reads no clock", id="core imports kopf"),
        pytest.param(
            "names.py", "from llmservice_operator import reconcile", "Operator layers", id="upwards"
        ),
        pytest.param(
            "status.py", "import llmservice_server", "share no code", id="across distributions"
        ),
        pytest.param("helpers.py", "VALUE = 1", "Operator layers", id="a module without a layer"),
    ],
)
def test_a_broken_contract_is_reported(copy: Path, module: str, line: str, complaint: str) -> None:
    target = copy / "operator/src/llmservice_operator" / module
    text = target.read_text() if target.exists() else '"""A module."""\n'
    target.write_text(f"{text}\n{line}\n")

    done = lint_imports(copy)

    assert done.returncode != 0
    assert complaint in done.stdout + done.stderr
