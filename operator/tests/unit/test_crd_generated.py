"""Tests that the committed CRD is up to date, and that Kubernetes accepts every part of it."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import BaseModel, Field

from llmservice_operator.api.crd import build_crd, render_crd, structural_schema
from llmservice_operator.api.fields import Fields
from operator_support.services import REPOSITORY
from operator_support.spec_fields import ROOT, rules_of

VERSION = build_crd()["spec"]["versions"][0]


def walk(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from walk(schema["additionalProperties"], f"{path}{{}}")


FIELDS = [*walk(ROOT["properties"]["spec"], "spec"), *walk(ROOT["properties"]["status"], "status")]


def test_the_committed_crd_is_the_generated_one() -> None:
    committed = (REPOSITORY / "crds" / "llmservice.yaml").read_text()
    assert committed == render_crd(), (
        "crds/llmservice.yaml is not what the code says: run `make generate` and review the "
        "difference"
    )


@pytest.mark.parametrize(("path", "schema"), FIELDS, ids=[path for path, _ in FIELDS])
def test_every_field_is_structural_and_bounded(path: str, schema: dict[str, Any]) -> None:
    forbidden = {"$ref", "oneOf", "allOf", "not", "const", "title", "nullable", "prefixItems"}
    assert not forbidden & schema.keys()
    if schema.get("x-kubernetes-int-or-string"):
        assert schema["anyOf"] == [{"type": "integer"}, {"type": "string"}]
        assert "type" not in schema
        assert schema["maxLength"] > 0
        return
    assert "anyOf" not in schema
    match schema["type"]:
        case "object":
            assert ("properties" in schema) != ("additionalProperties" in schema)
            assert "properties" in schema or schema["maxProperties"] > 0
            assert set(schema.get("required", [])) <= schema.get("properties", {}).keys()
        case "array":
            assert schema["maxItems"] > 0
            assert schema["x-kubernetes-list-type"] in ("atomic", "map")
        case "string":
            assert "enum" in schema or "format" in schema or schema["maxLength"] > 0
        case "integer":
            assert "minimum" in schema
            assert "maximum" in schema or path.startswith("status")
        case "number":
            # A number with a fraction may only be in a field that users neither read nor write.
            assert "minimum" in schema
            assert path.startswith("status.autoscaling.calibration")
        case "boolean":
            assert schema.keys() <= {"type", "description", "default"}
        case other:
            pytest.fail(f"{path} is a {other}")


@pytest.mark.parametrize(
    ("path", "schema"),
    [field for field in FIELDS if field[0][-1] not in "]}" and field[0] != "status"],
    ids=[path for path, _ in FIELDS if path[-1] not in "]}" and path != "status"],
)
def test_every_field_is_described(path: str, schema: dict[str, Any]) -> None:
    description = schema["description"]
    assert len(description) > 10
    assert description.endswith(".")
    assert "\n" not in description


def test_every_rule_points_at_a_field_that_exists() -> None:
    rules = 0
    for path, schema in [*FIELDS, ("", ROOT)]:
        for rule in schema.get("x-kubernetes-validations", []):
            rules += 1
            assert rule["message"], path
            field: Mapping[str, Any] = schema
            for name in rule.get("fieldPath", ".").split(".")[1:]:
                field = field["properties"][name] if name else field
    assert rules > 15


@pytest.mark.parametrize("rule", [rule["rule"] for rule in rules_of(ROOT)])
def test_a_rule_stays_within_what_python_and_re2_read_alike(rule: str) -> None:
    assert "\\" not in rule
    assert "(?" not in rule


def test_only_what_a_user_should_see_has_a_default() -> None:
    assert {path: schema["default"] for path, schema in FIELDS if "default" in schema} == {
        "spec.accelerator": {"type": "nvidia"},
        "spec.accelerator.type": "nvidia",
        "spec.model.credentialsSecretRef.key": "HF_TOKEN",
        "spec.model.trustRemoteCode": False,
        "spec.model.offline": False,
        "spec.autoscaling.metric": "EffectiveGPUUtilization",
        "spec.autoscaling.idle.afterSeconds": 900,
        "spec.autoscaling.minReplicas": 1,
        "spec.autoscaling.mode": "Active",
        "spec.autoscaling.forecast": "Auto",
        "spec.autoscaling.provider": "Auto",
        "spec.autoscaling.targetGPUUtilization": 85,
        "spec.slo.objectivePercent": 95,
        "spec.engine.parallelism.pipeline": 1,
        "spec.engine.speculativeDecoding.ngram.promptLookupMin": 1,
        "spec.engine.parallelism.data": 1,
        "spec.engine.parallelism.expert": False,
        "spec.service": {"type": "ClusterIP", "port": 80},
        "spec.service.type": "ClusterIP",
        "spec.service.port": 80,
        "spec.router.mode": "Proxy",
        "spec.router.replicas": 2,
        "spec.router.holdTimeoutSeconds": 300,
        "spec.router.maxHeldRequests": 1000,
        "spec.router.policy": "LeastWork",
        "spec.router.heartbeatSeconds": 10,
        "spec.serving": {"engineHangSeconds": 120},
        "spec.serving.engineHangSeconds": 120,
        "spec.startup": {"timeoutSeconds": 1800},
        "spec.startup.timeoutSeconds": 1800,
        "spec.smokeTest": {"enabled": True, "timeoutSeconds": 60},
        "spec.smokeTest.enabled": True,
        "spec.smokeTest.timeoutSeconds": 60,
        "spec.termination": {"preStopSeconds": 5, "drainTimeoutSeconds": 600},
        "spec.termination.preStopSeconds": 5,
        "spec.termination.drainTimeoutSeconds": 600,
        "spec.rolloutStrategy": {"type": "Auto", "autoRollback": False},
        "spec.rolloutStrategy.type": "Auto",
        "spec.rolloutStrategy.autoRollback": False,
        "spec.networkPolicy": {"enabled": True, "mesh": "None"},
        "spec.auth.isolatePrefixCache": False,
        "spec.networkPolicy.enabled": True,
        "spec.networkPolicy.mesh": "None",
        "spec.suspend": False,
    } | {
        path: schema["default"]
        for path, schema in FIELDS
        if path.startswith("status") and "default" in schema
    }


def test_no_default_is_inside_an_atomic_list() -> None:
    atomic = [path for path, each in FIELDS if each.get("x-kubernetes-list-type") == "atomic"]
    assert "spec.networkPolicy.to[].ports" in atomic
    inside = tuple(f"{path}[]" for path in atomic)
    assert [path for path, each in FIELDS if path.startswith(inside) and "default" in each] == []


def test_conditions_are_merged_by_type() -> None:
    conditions = ROOT["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert "default" not in conditions["items"]["properties"]["type"]
    assert "type" in conditions["items"]["required"]


def test_kubectl_scale_and_get_find_what_they_show() -> None:
    scale = VERSION["subresources"]["scale"]
    columns = VERSION["additionalPrinterColumns"]
    assert [column["name"] for column in columns if not column.get("priority")] == [
        *("Model", "Ready", "GPUs", "Reason", "URL", "Age")
    ]
    known = {path for path, _ in FIELDS} | {"metadata.creationTimestamp"}
    paths = [column["jsonPath"] for column in columns] + list(scale.values())
    for path in paths:
        assert path.split("[")[0].lstrip(".") in known, path


class _Union(BaseModel):
    field: int | str


class _Tuple(BaseModel):
    field: tuple[int, str]


class _Constant(BaseModel):
    field: Annotated[float, Field(gt=0)]


@pytest.mark.parametrize("model", [_Union, _Tuple, _Constant])
def test_a_type_without_structural_form_is_an_error(model: type[BaseModel]) -> None:
    with pytest.raises(ValueError, match="has no structural form"):
        structural_schema(model)


def test_a_model_without_rules_publishes_none() -> None:
    class Plain(Fields):
        rules: ClassVar = ()

    assert "x-kubernetes-validations" not in structural_schema(Plain)
