"""Tests the refusals of LLMService.parse with their exact messages.

tests/api tests the messages of the API server.
"""

from typing import Any

import pytest

from llmservice_operator.api.accelerator import AcceleratorType
from llmservice_operator.api.model_source import ClaimModel, HubModel
from llmservice_operator.api.spec import LLMService
from llmservice_operator.errors import InvalidSpec
from operator_support.services import a_body, a_service, refusal_of

GPUS_ONLY = "requires GPUs: remove it, or set accelerator.type to nvidia or amd"


HUB_FORM = (
    "must have the form hf://ORGANISATION/NAME, such as hf://HuggingFaceTB/SmolLM2-135M-Instruct; "
    "write a revision into the field revision"
)


CLAIM_FORM = (
    "must have the form pvc://CLAIM or pvc://CLAIM/PATH, such as pvc://models/llama; each part of "
    "PATH consists of letters, digits and . _ - and starts with a letter, digit or _"
)


NEEDS_A_CLAIM = (
    "a pod can mount a folder of a node or of a file server only through a claim: let an "
    "administrator create a PersistentVolume for it, such as one of type nfs or local, and a "
    "PersistentVolumeClaim"
)


IDLE_GPUS = (
    "must equal tensor x pipeline x data of engine.parallelism or, if tensor is unset, be a "
    "multiple of pipeline x data: change one of them, or remove count"
)


def model(**fields: Any) -> dict[str, Any]:
    return {"model": {"uri": "hf://org/model", **fields}}


REFUSED = {
    "uri without scheme": (
        model(uri="org/model"),
        "spec.model.uri: must start with hf://, pvc:// or s3://: write hf://ORGANISATION/NAME "
        "for a model on the Hugging Face Hub, or pvc://CLAIM/PATH for a folder on a "
        "PersistentVolumeClaim, or s3://BUCKET/PATH for an object store with an S3 API, such as "
        "that of Google Cloud Storage",
    ),
    "bucket of Google Cloud Storage": (
        model(uri="gs://weights/llama"),
        "spec.model.uri: names a bucket of Google Cloud Storage, which the replicas can read only "
        "through its S3 API: write s3://BUCKET/PATH, and set objectStore.endpoint to "
        "https://storage.googleapis.com and objectStore.credentialsSecretRef to a Secret with an "
        "HMAC key",
    ),
    "hub model without organisation": (model(uri="hf://gpt2"), f"spec.model.uri: {HUB_FORM}"),
    "hub model with a revision": (model(uri="hf://a/b@main"), f"spec.model.uri: {HUB_FORM}"),
    "claim path that climbs out": (model(uri="pvc://c/../x"), f"spec.model.uri: {CLAIM_FORM}"),
    "claim without a name": (model(uri="pvc://"), f"spec.model.uri: {CLAIM_FORM}"),
    "served name with a blank": (
        model(name="a b"),
        "spec.model.name: must start with a letter or digit and contain only letters, digits and "
        ". _ : / -",
    ),
    "revision that looks like an option": (
        model(revision="--x"),
        "spec.model.revision: must be a branch, tag or commit, such as main or a 40-digit commit",
    ),
    "revision of a claim": (
        model(uri="pvc://c", revision="main"),
        "spec.model.revision: applies to hf:// models only: remove it, because a folder has "
        "no revision",
    ),
    "token for a claim": (
        model(uri="pvc://c", credentialsSecretRef={"name": "t"}),
        "spec.model.credentialsSecretRef: applies to hf:// models, draft models and adapters only: "
        "remove it, because a claim needs no token, and an s3:// model has "
        "objectStore.credentialsSecretRef",
    ),
    "secret name in capitals": (
        model(credentialsSecretRef={"name": "Token"}),
        "spec.model.credentialsSecretRef.name: must be the name of a Secret, such as hub-token",
    ),
    "secret key with a blank": (
        model(credentialsSecretRef={"name": "t", "key": "a b"}),
        "spec.model.credentialsSecretRef.key: must be a key of a Secret, such as HF_TOKEN",
    ),
    "negative replicas": (
        {"replicas": -1},
        "spec.replicas: should be greater than or equal to 0, not -1",
    ),
    "too many replicas": (
        {"replicas": 1001},
        "spec.replicas: should be less than or equal to 1000, not 1001",
    ),
    "replicas as a word": (
        {"replicas": "two"},
        "spec.replicas: should be a valid integer, unable to parse string as an integer, not 'two'",
    ),
    "replicas beside autoscaling": (
        {"replicas": 2, "autoscaling": {"maxReplicas": 3}},
        "spec.replicas: cannot be set with autoscaling: set autoscaling.minReplicas and "
        "autoscaling.maxReplicas instead, or remove autoscaling",
    ),
    "autoscaling without a maximum": (
        {"autoscaling": {"minReplicas": 2}},
        "spec.autoscaling.maxReplicas: is required",
    ),
    "scaling to less than zero": (
        {"autoscaling": {"minReplicas": -1, "maxReplicas": 3}},
        "spec.autoscaling.minReplicas: should be greater than or equal to 0, not -1",
    ),
    "minimum above the maximum": (
        {"autoscaling": {"minReplicas": 4, "maxReplicas": 3}},
        "spec.autoscaling.minReplicas: must be at most maxReplicas: lower it or raise maxReplicas",
    ),
    "target beyond what a replica sustains": (
        {"autoscaling": {"maxReplicas": 3, "targetGPUUtilization": 101}},
        "spec.autoscaling.targetGPUUtilization: should be less than or equal to 100, not 101",
    ),
    "queue length for another metric": (
        {"autoscaling": {"maxReplicas": 3, "targetRequestsWaiting": 3}},
        "spec.autoscaling.targetRequestsWaiting: requires the metric RequestsWaiting: remove it, "
        "or choose that metric",
    ),
    "unknown accelerator": (
        {"accelerator": {"type": "tpu"}},
        "spec.accelerator.type: should be 'nvidia', 'amd' or 'cpu', not 'tpu'",
    ),
    "GPUs on a CPU": (
        {"accelerator": {"type": "cpu", "count": 1}},
        f"spec.accelerator.count: {GPUS_ONLY}",
    ),
    "GPU class on a CPU": (
        {"accelerator": {"type": "cpu", "class": "H100"}},
        f"spec.accelerator.class: {GPUS_ONLY}",
    ),
    "GPU class with a blank": (
        {"accelerator": {"class": "H100 SXM"}},
        "spec.accelerator.class: must be an accelerator class, or a GPU as in the node label "
        "nvidia.com/gpu.product, such as H100",
    ),
    "GPU resource on a CPU": (
        {"accelerator": {"type": "cpu", "resourceName": "nvidia.com/gpu"}},
        f"spec.accelerator.resourceName: {GPUS_ONLY}",
    ),
    "no GPU at all": (
        {"accelerator": {"count": 0}},
        "spec.accelerator.count: should be greater than or equal to 1, not 0",
    ),
    "GPU resource without a domain": (
        {"accelerator": {"resourceName": "gpu"}},
        "spec.accelerator.resourceName: must have the form DOMAIN/NAME, as in a node's "
        "status.allocatable, such as nvidia.com/gpu",
    ),
    "a cache that the limit of the disk would end": (
        {
            "model": {"uri": "hf://org/model", "cache": {"type": "Ephemeral", "size": "10Gi"}},
            "resources": {"limits": {"ephemeral-storage": "9Gi"}},
        },
        "spec.model.cache.size: exceeds resources.limits.ephemeral-storage, at which the kubelet "
        "evicts a replica: raise that limit or lower the size",
    ),
    "GPUs that would be idle": (
        {"accelerator": {"count": 8}, "engine": {"parallelism": {"tensor": 4}}},
        f"spec.accelerator.count: {IDLE_GPUS}",
    ),
    "GPUs that cannot be shared out": (
        {"accelerator": {"count": 8}, "engine": {"parallelism": {"pipeline": 3}}},
        f"spec.accelerator.count: {IDLE_GPUS}",
    ),
    "alias twice": (
        model(aliases=["a", "b", "a"]),
        "spec.model.aliases: must not repeat a name: remove the duplicate",
    ),
    "alias that is the name": (
        model(name="a", aliases=["a"]),
        "spec.model.aliases: must not repeat a name: remove the duplicate",
    ),
    "alias that looks like an option": (
        model(aliases=["--x"]),
        "spec.model.aliases[0]: must start with a letter or digit and contain only letters, "
        "digits and . _ : / -",
    ),
    "offline without a place for the model": (
        model(offline=True),
        "spec.model.offline: leaves no source for an hf:// model: set cache to a claim that "
        "already holds the model, or remove offline",
    ),
    "cache on the node with a storage class": (
        model(cache={"type": "Ephemeral", "storageClassName": "fast"}),
        "spec.model.cache.type: must be PersistentVolumeClaim when a field other than size is "
        "set: set that type, or remove the other fields",
    ),
    "cache without a type": (model(cache={"size": "10Gi"}), "spec.model.cache.type: is required"),
    "claim that is neither made nor named": (
        model(cache={"type": "PersistentVolumeClaim"}),
        "spec.model.cache.size: is an alternative to claimName: set exactly one of the two",
    ),
    "claim that is made and named": (
        model(cache={"type": "PersistentVolumeClaim", "size": "10Gi", "claimName": "a"}),
        "spec.model.cache.size: is an alternative to claimName: set exactly one of the two",
    ),
    "claim of somebody's that is to be deleted": (
        model(
            cache={"type": "PersistentVolumeClaim", "claimName": "a", "retentionPolicy": "Delete"}
        ),
        "spec.model.cache.claimName: names an existing claim: remove storageClassName, "
        "accessModes and retentionPolicy, or set size instead, so that the operator "
        "creates a claim",
    ),
    "claim for next to nothing": (
        model(cache={"type": "PersistentVolumeClaim", "size": "1G"}),
        "spec.model.cache.size: must be at least 1Gi: no model fits into less",
    ),
    "suspended by a word": (
        {"suspend": "maybe"},
        "spec.suspend: should be a valid boolean, unable to interpret input, not 'maybe'",
    ),
    "no model": ({"model": None}, "spec.model: must be an object with fields, not None"),
    "no uri": ({"model": {}}, "spec.model.uri: is required"),
}


@pytest.mark.parametrize(("spec", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_spec_is_refused_with_what_to_write_instead(
    spec: dict[str, Any], message: str
) -> None:
    assert refusal_of(spec) == message


@pytest.mark.parametrize("name", ["7b", "a.b", "Qwen", "a_b", "-a", "a-", "a" * 64, ""])
def test_a_name_that_no_service_object_can_have_is_refused(name: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        LLMService.parse(a_body(metadata={"name": name}))
    assert str(refused.value) == (
        "metadata.name: must be a valid Service name: at most 63 lower-case letters, digits and "
        "'-', starting with a letter and ending with a letter or digit, such as qwen-7b"
    )


@pytest.mark.parametrize("name", ["a", "qwen-7b", "a" * 63])
def test_a_name_that_a_service_object_can_have_is_taken(name: str) -> None:
    assert LLMService.parse(a_body(metadata={"name": name})).name == name


@pytest.mark.parametrize("field", ["volumes", "volumeMounts", "hostPath"])
def test_a_field_that_would_mount_a_folder_is_refused_with_the_claim_to_use(field: str) -> None:
    (problem,) = LLMService.problems(a_body({"template": {field: []}}))
    assert str(problem) == (
        f"spec.template.{field}: is not a field of an LLMService, and {NEEDS_A_CLAIM}, and set "
        "model.uri to pvc://CLAIM/PATH"
    )


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("model.uri", model(uri="/mnt/llama")),
        ("model.adapters[0].uri", model(adapters=[{"name": "a", "uri": "/mnt/adapter"}])),
        (
            "engine.speculativeDecoding.draftModel.uri",
            {
                "engine": {
                    "speculativeDecoding": {
                        "method": "DraftModel",
                        "numSpeculativeTokens": 3,
                        "draftModel": {"uri": "/mnt/draft"},
                    }
                }
            },
        ),
    ],
)
def test_a_folder_is_refused_with_the_claim_to_set_in_its_own_field(
    field: str, spec: dict[str, Any]
) -> None:
    assert refusal_of(spec) == (
        f"spec.{field}: names a folder, and {NEEDS_A_CLAIM}, and set this field to pvc://CLAIM/PATH"
    )


def test_an_unknown_field_is_refused_where_no_api_server_did_it_before() -> None:
    body = a_body({"engine": {"maxModelLength": 1}})
    (problem,) = LLMService.problems(body)
    assert str(problem) == (
        "spec.engine.maxModelLength: is not a field of an LLMService: did you mean "
        "engine.maxModelLen?"
    )


def test_every_error_is_found_at_once() -> None:
    template = {"nodeSelector": {"-x": "v"}}
    accelerator = {"type": "cpu", "class": "H100", "count": 2}
    spec = {"replicas": -1, "accelerator": accelerator, "template": template, "extra": 1}
    assert [each.field for each in LLMService.problems(a_body(spec))] == [
        "spec.replicas",
        "spec.accelerator.class",
        "spec.accelerator.count",
        "spec.template.nodeSelector",
        "spec.extra",
    ]


def test_an_unknown_field_of_a_newer_crd_is_ignored() -> None:
    assert a_service({"engine": {"maxModelLength": 1}}).spec.engine.max_model_len is None


def test_a_status_that_cannot_be_read_is_forgotten() -> None:
    service = a_service(status={"replicas": -1, "conditions": "?"})
    assert service.status.conditions == ()


def test_a_minimal_spec_requests_one_replica_on_one_gpu() -> None:
    spec = a_service().spec
    assert spec.desired_replicas == 1
    assert spec.accelerator.type is AcceleratorType.NVIDIA
    assert (spec.gpus, spec.accelerator.gpu_resource) == (1, "nvidia.com/gpu")


def test_a_whole_number_is_a_quantity() -> None:
    limits = a_service({"resources": {"limits": {"cpu": 2, "memory": 1.5e9}}}).spec.resources.limits
    assert limits is not None
    assert (limits.cpu, limits.memory) == ("2", "1500000000")


def test_no_replicas_is_something_else_than_unset_replicas() -> None:
    assert a_service({"replicas": 0}).spec.desired_replicas == 0


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("hf://org/model", HubModel("org/model")),
        ("pvc://claim", ClaimModel("claim", "")),
        ("pvc://claim/a/b.c", ClaimModel("claim", "a/b.c")),
    ],
)
def test_a_uri_says_where_the_model_is(uri: str, source: HubModel | ClaimModel) -> None:
    assert a_service(model(uri=uri)).spec.model.source == source


@pytest.mark.parametrize(
    ("count", "parallelism", "gpus", "tensor"),
    [
        (None, None, 1, 1),
        (4, None, 4, 4),
        (None, {"tensor": 2}, 2, 2),
        (None, {"tensor": 2, "pipeline": 3, "data": 2}, 12, 2),
        (8, {"pipeline": 2}, 8, 4),
        (8, {"data": 8, "expert": True}, 8, 1),
    ],
)
def test_gpus_follow_from_the_count_and_from_how_the_model_is_split(
    count: int | None, parallelism: dict[str, Any] | None, gpus: int, tensor: int
) -> None:
    accelerator = {} if count is None else {"count": count}
    engine = {} if parallelism is None else {"parallelism": parallelism}
    spec = a_service({"accelerator": accelerator, "engine": engine}).spec
    assert (spec.gpus, spec.tensor_parallelism) == (gpus, tensor)
