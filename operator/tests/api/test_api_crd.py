from typing import Any

import pytest

from llmservice_operator.cluster import LLMSERVICES
from operator_support import EXAMPLES, Api, ApiError, kubectl, make_service

CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/llmservices.llmservice.dev"


def test_the_crd_is_established_and_structural(api: Api) -> None:
    status = api.request("GET", CRD_PATH)["status"]
    conditions = {each["type"]: each["status"] for each in status["conditions"]}
    assert conditions["Established"] == "True"
    assert conditions["NamesAccepted"] == "True"
    assert conditions.get("NonStructuralSchema", "False") == "False"
    assert status["acceptedNames"]["shortNames"] == ["llmsvc", "llm"]


@pytest.mark.parametrize(
    "example", sorted(path.name for path in EXAMPLES.glob("*.yaml")) or ["none found"]
)
def test_every_example_is_accepted_strictly(example: str, namespace: str) -> None:
    printed = kubectl(
        *("create", "--validate=strict", "--dry-run=server", "-n", namespace, "-o", "name"),
        *("-f", str(EXAMPLES / example)),
    )
    assert printed.startswith("llmservice.llmservice.dev/")


def with_model(**model: Any) -> dict[str, Any]:
    return {"model": {"uri": "hf://org/model", **model}}


REFUSED = [
    pytest.param({"spec": {"modle": {}}}, 'unknown field "spec.modle"', id="unknown field"),
    pytest.param({"spec": {"replicas": -1}}, "should be greater than or equal to 0", id="negative"),
    pytest.param({"spec": {"replicas": "two"}}, "must be of type integer", id="wrong type"),
    pytest.param(
        {"spec": {"model": {"uri": "org/model"}}},
        "must start with hf:// or pvc://: write hf://ORGANISATION/NAME for a model on the Hugging"
        " Face hub, pvc://CLAIM/PATH for a folder on a PersistentVolumeClaim",
        id="uri without a scheme",
    ),
    pytest.param(
        {"spec": {"model": {"uri": "hf://model"}}},
        "after hf:// must stand ORGANISATION/NAME",
        id="hub uri without an organisation",
    ),
    pytest.param(
        {"spec": {"model": {"uri": "pvc://claim/../secret"}}},
        "after pvc:// must stand CLAIM or CLAIM/PATH",
        id="path that leaves the claim",
    ),
    pytest.param(
        {"spec": {"model": {"uri": "pvc://claim/m", "revision": "main"}}},
        "belongs to hf:// models only: remove it",
        id="revision of a claim",
    ),
    pytest.param({"spec": {"model": None}}, "spec.model", id="no model"),
    pytest.param(
        {"spec": {"resources": {"limits": {"cpu": 0.5}}}},
        "spec.resources.limits.cpu in body must be of type integer,string",
        id="fraction that is no text",
    ),
    pytest.param(
        {"spec": {"accelerator": {"type": "cpu", "count": 1}}},
        "belongs to accelerator.type nvidia only",
        id="GPUs on a CPU",
    ),
    pytest.param(
        {"spec": {"accelerator": {"type": "tpu"}}},
        'supported values: "nvidia", "cpu"',
        id="unknown accelerator",
    ),
    pytest.param(
        {"spec": {"engine": {"extraArgs": ["--enforce-eager"]}}},
        "must be --flag=value",
        id="flag without a value",
    ),
    pytest.param(
        {"spec": {"podDisruptionBudget": {"minAvailable": "1%"}}},
        "must be less than the replicas, or no node with one could ever be drained",
        id="budget that blocks every drain",
    ),
    pytest.param(
        {"spec": {"networkPolicy": {"from": [{"ipBlock": {"cidr": "10.0.0.300/8"}}]}}},
        "must be a range of addresses such as 10.0.0.0/8",
        id="addresses that are none",
    ),
    pytest.param(
        {
            "spec": {
                "networkPolicy": {
                    "from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}]
                }
            }
        },
        "must be parts of cidr, each smaller than the whole",
        id="exception as large as the whole",
    ),
    pytest.param(
        {"metadata": {"name": "7b-model"}},
        "must be usable as the name of a Service",
        id="name that starts with a digit",
    ),
    pytest.param(
        {"metadata": {"name": "a.b"}}, "must be usable as the name of a Service", id="dotted name"
    ),
    pytest.param(
        {"metadata": {"name": "m" * 64}},
        "must be usable as the name of a Service",
        id="name of 64 characters",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refuses_a_wrong_spec_and_says_what_to_write_instead(
    api: Api, namespace: str, change: dict[str, Any], message: str
) -> None:
    service = make_service("valid", namespace)
    for part, fields in change.items():
        service[part] = {**service[part], **fields}
    with pytest.raises(ApiError) as refused:
        api.create(LLMSERVICES, service, fieldValidation="Strict", dryRun="All")
    assert message.lower() in refused.value.message.lower()


def test_the_spec_that_the_refused_ones_are_made_from_is_accepted(api: Api, namespace: str) -> None:
    service = make_service("valid", namespace)
    api.create(LLMSERVICES, service, fieldValidation="Strict", dryRun="All")


def test_a_server_side_dry_run_shows_the_defaults_and_stores_nothing(
    api: Api, namespace: str
) -> None:
    service = make_service("dry", namespace)
    del service["spec"]["accelerator"]
    stored = api.create(LLMSERVICES, service, dryRun="All")
    assert stored["spec"]["accelerator"]["type"] == "nvidia"
    assert api.read(LLMSERVICES, namespace, "dry") is None
