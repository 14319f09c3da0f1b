"""Tests the information that a user sees with kubectl alone."""

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES
from operator_support.processes import (
    CPU_IMAGE,
    EXAMPLES,
    Api,
    OperatorProcess,
    condition,
    kubectl,
    make_pods_ready,
    make_service,
    until_pods,
)
from shared_support.waiting import eventually


def test_wait_ends_when_the_service_is_ready_and_get_shows_it(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, served))
    until_pods(api, served, name, 1)
    waiting = subprocess.Popen(
        ["kubectl", "-n", served, "wait", "--for=condition=Ready", f"llm/{name}", "--timeout=120s"],
        stdout=subprocess.PIPE,
        text=True,
    )
    make_pods_ready(api, served, name)
    printed, _ = waiting.communicate(timeout=130)
    assert printed.strip() == f"llmservice.llmservice.dev/{name} condition met"

    shown = {
        "NAME": name,
        "MODEL": "hf://llmservice-test/tiny-random-llama",
        "READY": "1/1",
        "GPUS": "0",
        "REASON": "Serving",
        "URL": f"http://{name}.{served}.svc",
    }
    row = table(kubectl("-n", served, "get", "llm", name))
    assert list(row) == [*shown, "AGE"]
    assert shown.items() <= row.items()
    version = api.get(LLMSERVICES, served, name)["status"]["engine"]["version"]
    wide = table(kubectl("-n", served, "get", "llm", name, "-o", "wide"))
    assert {**shown, "ENGINE": version, "IMAGE": CPU_IMAGE}.items() <= wide.items()
    everything = kubectl("-n", served, "get", "all").splitlines()
    assert any(line.startswith(f"llmservice.llmservice.dev/{name} ") for line in everything)


def table(printed: str) -> dict[str, str]:
    """Return the only row of a table that kubectl printed. A cell may be empty."""
    head, row = printed.splitlines()
    columns = list(re.finditer(r"\S+", head))
    ends = [column.start() for column in columns[1:]] + [None]
    return {
        column[0]: row[column.start() : end].strip()
        for column, end in zip(columns, ends, strict=True)
    }


@pytest.mark.causes("ScaledToZero")
def test_scale_works_when_replicas_is_unset_and_down_to_none(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    service = make_service(name, served)
    assert "replicas" not in service["spec"]
    api.create(LLMSERVICES, service)
    until_pods(api, served, name, 1)

    kubectl("-n", served, "scale", f"llm/{name}", "--replicas=3")
    eventually(lambda: api.get(DEPLOYMENTS, served, name)["spec"]["replicas"] == 3, 5)
    until_pods(api, served, name, 3)
    scale = api.request("GET", LLMSERVICES.path(served, name, "scale"))
    assert scale["status"]["selector"] == f"llmservice.dev/name={name}"

    kubectl("-n", served, "scale", f"llm/{name}", "--replicas=0")
    until_pods(api, served, name, 0)

    def stopped() -> bool:
        ready = condition(api.get(LLMSERVICES, served, name), "Ready")
        assert ready["reason"] == "ScaledToZero", ready
        return bool(ready["status"] == "False")

    eventually(stopped)


@pytest.mark.parametrize(
    ("options", "path"),
    [(("--server-side",), EXAMPLES), ((), EXAMPLES / "private-70b.yaml")],
    ids=["server-side", "client-side"],
)
def test_a_second_apply_changes_nothing_and_diff_finds_nothing(
    api: Api, operator: OperatorProcess, served: str, options: tuple[str, ...], path: Path
) -> None:
    command = (*options, "-n", served, "-f", str(path))
    files = path.iterdir() if path.is_dir() else [path]
    names = [yaml.safe_load(file.read_text())["metadata"]["name"] for file in files]
    kubectl("apply", *command)
    eventually(lambda: all(condition(it, "Ready") for it in live(api, served, names)))
    before = live(api, served, names)

    assert kubectl("diff", *command) == ""
    again = kubectl("apply", *command).splitlines()
    assert len(again) == len(names)
    assert all(line.endswith(("unchanged", "serverside-applied")) for line in again), again
    after = live(api, served, names)
    assert [it["metadata"]["generation"] for it in after] == [1] * len(names)
    assert [it["spec"] for it in after] == [it["spec"] for it in before]
    for name in names:
        api.delete(LLMSERVICES, served, name)


def live(api: Api, namespace: str, names: list[str]) -> list[dict[str, Any]]:
    return [api.get(LLMSERVICES, namespace, name) for name in names]


def test_explain_has_a_text_and_a_bound_for_every_field(api: Api) -> None:
    document = api.request("GET", "/openapi/v3/apis/llmservice.dev/v1alpha1")
    schema = document["components"]["schemas"]["dev.llmservice.v1alpha1.LLMService"]
    described = [
        *fields(schema["properties"]["spec"], "spec"),
        *fields(schema["properties"]["status"], "status"),
    ]
    assert len(described) > 100
    for path, field in described:
        text = field.get("description", "")
        assert len(text) > 10, path
        assert text.endswith("."), path
        assert is_bounded(path, field), path
    printed = kubectl("explain", "llmservice.spec.model.uri")
    assert "pvc://CLAIM/PATH" in printed
    recursive = kubectl("explain", "llm", "--recursive")
    assert all(path.rpartition(".")[2].removesuffix("[]") in recursive for path, _ in described)


def fields(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from fields(field, f"{path}.{name}")
        yield from fields(field.get("items", {}), f"{path}.{name}[]")


def is_bounded(path: str, field: Mapping[str, Any]) -> bool:
    """Return whether the schema limits the size of the field's values."""
    match field.get("type"):
        case "integer" | "number":
            # A count in the status is bounded by the number of pods.
            return "minimum" in field and ("maximum" in field or path.startswith("status."))
        case "array":
            return "maxItems" in field
        case "object":
            return "properties" in field or "maxProperties" in field
        case "boolean":
            return True
        case _:
            return bool({"maxLength", "enum", "format"} & field.keys())
