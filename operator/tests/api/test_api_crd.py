import pytest

from llmservice_operator.cluster import LLMSERVICES
from operator_support import EXAMPLES, Api, kubectl, make_service

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


def test_a_server_side_dry_run_shows_the_defaults_and_stores_nothing(
    api: Api, namespace: str
) -> None:
    service = make_service("dry", namespace)
    del service["spec"]["accelerator"]
    stored = api.create(LLMSERVICES, service, dryRun="All")
    assert stored["spec"]["accelerator"]["type"] == "nvidia"
    assert api.read(LLMSERVICES, namespace, "dry") is None
