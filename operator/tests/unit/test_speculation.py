"""Tests the JSON argument of spec.engine.speculativeDecoding, and the volume of a claim."""

import json
from typing import Any

import pytest

from llmservice_operator.api import Manifest
from llmservice_operator.children import Context, build_all
from llmservice_operator.desired.engine_args import build_engine_args
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.workload import resolve_pin
from operator_support.services import SETTINGS, a_service, one

DRAFT = {"uri": "hf://org/draft"}


def speculating(method: str, **fields: Any) -> dict[str, Any]:
    return {"method": method, "numSpeculativeTokens": 3, **fields}


def pod(speculative_decoding: dict[str, Any], **spec: Any) -> Manifest:
    engine = {"image": "mine:1", "speculativeDecoding": speculative_decoding}
    service = a_service({**spec, "engine": engine})
    manifests = build_all(Context.of(service, SETTINGS, resolve_pin(service, None, SETTINGS)))
    found: Manifest = one("Deployment", manifests)["spec"]["template"]["spec"]
    return found


def config(speculative_decoding: dict[str, Any], **spec: Any) -> dict[str, Any]:
    *_, argument = pod(speculative_decoding, **spec)["containers"][0]["args"]
    text = argument.removeprefix("--speculative-config=")
    found: dict[str, Any] = json.loads(text)
    assert text == json.dumps(found, sort_keys=True, separators=(",", ":"))
    return found


@pytest.mark.parametrize(
    ("method", "name"), [("Ngram", "ngram"), ("Suffix", "suffix"), ("MTP", "mtp")]
)
def test_a_method_without_a_draft_model_is_named_alone(method: str, name: str) -> None:
    assert config(speculating(method)) == {"method": name, "num_speculative_tokens": 3}


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("DraftModel", "draft_model"),
        ("Eagle", "eagle"),
        ("Eagle3", "eagle3"),
        ("Medusa", "medusa"),
        ("DFlash", "dflash"),
        ("DSpark", "dspark"),
        ("MTP", "mtp"),
    ],
)
def test_a_method_with_a_draft_model_names_both(method: str, name: str) -> None:
    assert config(speculating(method, draftModel=DRAFT)) == {
        "method": name,
        "num_speculative_tokens": 3,
        "model": "org/draft",
    }


def test_a_method_that_the_version_lacks_is_refused_with_the_versions_that_have_it() -> None:
    service = a_service(
        {"engine": {"speculativeDecoding": speculating("Medusa", draftModel=DRAFT)}}
    )
    with pytest.raises(InvalidSpec) as refused:
        build_engine_args(service, "0.33.0")
    assert refused.value.field == "spec.engine.speculativeDecoding.method"
    assert refused.value.message == (
        "vLLM 0.33.0 does not have Medusa: set another method, or run an engine.version that has "
        "it: 0.30.0, 0.31.0 or 0.32.0"
    )


def test_a_draft_model_has_a_revision_a_quantization_and_a_width_of_its_own() -> None:
    draft = {**DRAFT, "revision": "abc", "quantization": "fp8", "tensorParallelSize": 1}
    assert config(speculating("Eagle", draftModel=draft), accelerator={"count": 4}) == {
        "method": "eagle",
        "num_speculative_tokens": 3,
        "model": "org/draft",
        "revision": "abc",
        "quantization": "fp8",
        "draft_tensor_parallel_size": 1,
    }


def test_the_tuning_of_a_draft_is_written_in_the_engines_words() -> None:
    tuning = {
        "maxModelLen": 65536,
        "draftSampling": "Probabilistic",
        "rejectionSampling": "Block",
        "moeBackend": "triton",
        "attentionBackend": "FLASH_ATTN",
        "enforceEager": False,
    }
    assert config(speculating("MTP", **tuning)) == {
        "method": "mtp",
        "num_speculative_tokens": 3,
        "max_model_len": 65536,
        "draft_sample_method": "probabilistic",
        "rejection_sample_method": "block",
        "moe_backend": "triton",
        "attention_backend": "FLASH_ATTN",
        "enforce_eager": False,
    }


def test_ngrams_and_a_schedule_are_written_in_the_engines_words_and_in_order() -> None:
    steps = [(5, 8, 1), (1, 4, 3), (9, 99, 0)]
    keys = ("minBatchSize", "maxBatchSize", "numSpeculativeTokens")
    schedule = [dict(zip(keys, step, strict=True)) for step in steps]
    ngram = {"promptLookupMax": 4, "promptLookupMin": 2}
    assert config(speculating("Ngram", ngram=ngram, schedule=schedule)) == {
        "method": "ngram",
        "num_speculative_tokens": 3,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 4,
        "num_speculative_tokens_per_batch_size": [[1, 4, 3], [5, 8, 1], [9, 99, 0]],
    }


@pytest.mark.parametrize(
    ("method", "accelerator", "width", "allowed"),
    [
        ("Eagle", {"count": 4}, 2, "1 or 4"),
        ("Eagle", {"type": "cpu"}, 2, "1"),
        # vLLM 0.32 would refuse the first case when it starts, after the download.
        ("DraftModel", {"count": 4}, 1, "4"),
        ("DraftModel", {"type": "cpu"}, 2, "1"),
    ],
)
def test_a_draft_model_is_split_as_the_model_or_where_it_can_be_not_at_all(
    method: str, accelerator: dict[str, Any], width: int, allowed: str
) -> None:
    draft = {**DRAFT, "tensorParallelSize": width}
    with pytest.raises(InvalidSpec) as refused:
        pod(speculating(method, draftModel=draft), accelerator=accelerator)
    assert refused.value.message == (
        f"must be {allowed}, to match the split of the model: set that number, or remove the field"
    )
    assert refused.value.field == ("spec.engine.speculativeDecoding.draftModel.tensorParallelSize")


@pytest.mark.parametrize(
    ("model", "draft", "claims", "location"),
    [
        ("hf://org/model", "pvc://drafts/d", {"/draft-models": "drafts"}, "/draft-models/d"),
        ("pvc://models/m", "pvc://models/d", {"/models": "models"}, "/models/d"),
        (
            "pvc://models/m",
            "pvc://drafts",
            {"/models": "models", "/draft-models": "drafts"},
            "/draft-models",
        ),
        ("pvc://models/m", "hf://org/draft", {"/models": "models"}, "org/draft"),
    ],
)
def test_the_claim_of_a_draft_model_is_mounted_read_only_and_never_twice(
    model: str, draft: str, claims: dict[str, str], location: str
) -> None:
    speculation = speculating("Eagle", draftModel={"uri": draft})
    spec = pod(speculation, model={"uri": model})
    volumes = {
        volume["name"]: volume["persistentVolumeClaim"]
        for volume in spec["volumes"]
        if "persistentVolumeClaim" in volume
    }
    mounts = {
        mount["mountPath"]: mount["name"]
        for mount in spec["containers"][0]["volumeMounts"]
        if mount.get("readOnly")
    }
    assert {path: volumes[name]["claimName"] for path, name in mounts.items()} == claims
    assert all(volume["readOnly"] for volume in volumes.values())
    assert config(speculation, model={"uri": model})["model"] == location


def test_kernels_of_a_draft_that_the_engine_lacks_are_refused_with_those_it_has() -> None:
    with pytest.raises(InvalidSpec, match="house is not a value of --moe-backend") as refused:
        config(speculating("MTP", moeBackend="house"))
    assert refused.value.field == "spec.engine.speculativeDecoding.moeBackend"
