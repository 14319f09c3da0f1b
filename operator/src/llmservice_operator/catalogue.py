"""`llmservice-operator new`: prints an LLMService for a well-known model.

For each model, the catalogue contains its id and the fields that the recipes of the vLLM project
recommend. The number of GPUs comes from the plan, because it depends on the GPU that the user
names. operator/make_catalogue.py writes the catalogue.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import yaml

from llmservice_operator import api
from llmservice_operator.errors import OperatorError
from llmservice_operator.fit import Verdict
from llmservice_operator.plan import Plans
from llmservice_operator.render import commented
from llmservice_operator.scaling.hardware import is_amd

FILE: Final = Path(__file__).with_name("catalogue.json")
MODELS: Final[Mapping[str, Mapping[str, Any]]] = (
    json.loads(FILE.read_text())["models"] if FILE.exists() else {}
)
"""Mapping from the catalogue's name of a model to the fields of its spec."""

COUNTS: Final = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of GPUs to try, in this order."""

Planner = Callable[[str], Plans]
"""Function that returns the plans of the services in a YAML text."""


class NotInCatalogue(OperatorError):
    """The catalogue has no model of this name."""

    def __init__(self, name: str) -> None:
        near = get_close_matches(name.lower(), MODELS, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        super().__init__(f"{name} is not in the catalogue: {hint}`new --list` lists all models")


def service_of(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of an LLMService with this name and spec."""
    return {
        "apiVersion": api.API_VERSION,
        "kind": api.KIND,
        "metadata": {"name": name},
        "spec": deepcopy(dict(spec)),
    }


def new_service(name: str, gpu: str, plan: Planner) -> str:
    """Return the YAML of an LLMService for a model of the catalogue, with its plan as comments.

    The number of GPUs is the smallest one in COUNTS on which the model certainly fits, or the
    largest one in COUNTS if there is no such number. If the plan for a number has no verdict, the
    search stops at that number, and the comments say why. For example, it stops at one GPU if the
    model's files cannot be read.

    Raises NotInCatalogue if the catalogue has no model of this name.
    """
    if name not in MODELS:
        raise NotInCatalogue(name)
    for count in COUNTS:
        text = _with_gpus(name, gpu, count)
        plans = plan(text)
        if plans.verdicts in {(None,), (Verdict.FITS,)}:
            break
    return commented(plans.text) + text


def _with_gpus(name: str, gpu: str, count: int) -> str:
    service = service_of(name, MODELS[name])
    maker = {"type": "amd"} if is_amd(gpu) else {}
    service["spec"]["accelerator"] = {**maker, "class": gpu, "count": count}
    return yaml.safe_dump(service, sort_keys=False, width=100)
