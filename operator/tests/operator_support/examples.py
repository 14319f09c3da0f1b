"""The examples of the CRD, and the objects of each example from its golden file."""

from typing import Final

import yaml

from llmservice_operator.api import Manifest
from operator_support.services import REPOSITORY

EXAMPLES: Final = sorted((REPOSITORY / "crds" / "examples").glob("*.yaml"))
EXAMPLE_SPECS: Final = {path.stem: yaml.safe_load(path.read_text())["spec"] for path in EXAMPLES}
"""Spec of each example by the example's name. An API server accepts each spec."""
GOLDEN: Final = REPOSITORY / "operator" / "tests" / "golden"

STALE_GOLDEN: Final = (
    "operator/tests/golden may be stale: run `make golden` and review the difference"
)


def example_text(name: str) -> str:
    return (REPOSITORY / "crds" / "examples" / f"{name}.yaml").read_text()


def golden_objects(name: str) -> list[Manifest]:
    """Return the objects of an example in the order in which they are applied."""
    return objects_in((GOLDEN / f"{name}.yaml").read_text())


def objects_in(text: str) -> list[Manifest]:
    """Return the objects of a YAML text, read by the loader in C, which is ten times as fast."""
    return list(yaml.load_all(text, yaml.CSafeLoader))
