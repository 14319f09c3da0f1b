"""Tests that the layer contract fails when a module breaks it."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("operator/src", "server_image/src", "e2e/cluster/src")
PACKAGE = "llmservice_operator"

NEW = "helpers"
"""Name of a module that does not exist."""

BREACHES = {
    "core imports time": ("refusals.py", "time", "reads no clock"),
    "scaling reads a clock": ("scaling/demand.py", "time", "reads no clock"),
    "scaling needs numpy": ("scaling/demand.py", "numpy", "reads no clock"),
    "core imports Kopf": ("desired/engine_args.py", "kopf", "reads no clock"),
    "an entry imports Kopf": ("render.py", "kopf", "knows Kopf"),
    "a new module imports Kopf": (f"{NEW}.py", "kopf", "knows Kopf"),
    "another module of the adapter imports Kopf": ("cluster/lease.py", "kopf", "knows Kopf"),
    "a new module of a package imports the client": (
        f"metrics_server/{NEW}.py",
        "kubernetes",
        "knows Kopf",
    ),
    "upwards": ("names.py", f"{PACKAGE}.reconcile", "Operator layers"),
    "across distributions": ("status.py", "llmservice_server", "share no code"),
}
"""Breach -> module, import that is added to the module, and part of the broken contract's name."""


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(root / source) for source in SOURCES)
    return subprocess.run(
        ["lint-imports", "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Contract name -> complaint of lint-imports about a tree that contains every breach."""
    root = tmp_path_factory.mktemp("broken")
    for source in SOURCES:
        shutil.copytree(ROOT / source, root / source, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for module, imported, _ in BREACHES.values():
        target = root / SOURCES[0] / PACKAGE / module
        assert target.exists() or target.stem == NEW, f"{module} is gone: name another one"
        with target.open("a") as text:
            text.write(f"\nimport {imported}\n")

    done = lint_imports(root)

    assert done.returncode != 0
    _, *parts = re.split(r"(?m)^(.+)\n-{5,}\n", done.stdout.partition("Broken contracts")[2])
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_contracts_hold() -> None:
    done = lint_imports(ROOT)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_is_reported_under_its_contract(complaints: dict[str, str], breach: str) -> None:
    module, imported, contract = BREACHES[breach]
    importer = f"{PACKAGE}.{module.removesuffix('.py').replace('/', '.')}"
    found = next(text for name, text in complaints.items() if contract in name)
    assert f"{importer} -> {imported} " in found


def test_a_module_without_a_layer_is_reported(complaints: dict[str, str]) -> None:
    assert NEW in next(text for name, text in complaints.items() if "layers" in name)
