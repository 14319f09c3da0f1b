import json
from pathlib import Path

import pytest

from llmservice_operator.__main__ import main
from llmservice_operator.api.spec import LLMService
from llmservice_operator.api.speculation import DraftModel
from llmservice_operator.errors import OperatorError
from llmservice_operator.fit import Checkpoint, Verdict
from llmservice_operator.model_files import ModelFiles
from llmservice_operator.plan import plan_file
from operator_support.services import SETTINGS
from operator_support.shapes import CONFIGS

SERVICE = """
apiVersion: llmservice.dev/v1alpha1
kind: LLMService
metadata: {name: %s}
spec: {model: {uri: "%s"}, accelerator: %s}
"""


def text(accelerator: str, name: str = "chat", uri: str = "hf://org/model") -> str:
    return SERVICE % (name, uri, accelerator)


def read_llama(service: LLMService, draft: DraftModel | None) -> ModelFiles:
    if draft is not None and draft.uri == "hf://org/unreadable":
        raise OperatorError("the hub sleeps")
    if draft is not None:
        return CONFIGS["llama-1b-tied"], Checkpoint({"BF16": 1_235_814_400})
    if service.name == "unreadable":
        raise OperatorError("the hub sleeps")
    return CONFIGS["llama-8b"], Checkpoint({"BF16": 8_030_261_248})


def planned(accelerator: str, gpu_memory: int | None = None) -> str:
    return plan_file(text(accelerator), SETTINGS, read_llama, gpu_memory).text


def test_a_plan_shows_every_part_of_the_memory() -> None:
    assert planned("{class: H100}") == (
        "chat: fits\n"
        "  model      hf://org/model: 32 layers, 32 attention heads, 8 KV heads\n"
        "  GPU        1 GPU of 79.6 GiB, of which the engine uses 73.3 GiB\n"
        "  weights    15.0 GiB on each GPU\n"
        "  estimate   4.3 GiB for activations, CUDA graphs and libraries\n"
        "  KV cache   128.0 KiB per token, 16.0 GiB for one request of 131,072 tokens\n"
        "  room       3 requests of 131,072 tokens at a time\n"
    )


def test_the_plan_of_a_mamba_model_shows_the_state_of_a_request_of_any_length() -> None:
    def read_mamba(_service: LLMService, _draft: DraftModel | None) -> ModelFiles:
        return CONFIGS["falcon-mamba-7b"], Checkpoint({"BF16": 7_272_665_088})

    lines = plan_file(text("{class: L4}"), SETTINGS, read_mamba, None).text.splitlines()
    assert lines[0] == "chat: fits"
    assert lines[1] == "  model      hf://org/model: 64 layers, 8192 state-space channels"
    assert lines[-2:] == [
        "  state      19.0 MiB for one request of any length",
        "  room       280 requests at a time",
    ]


def test_a_plan_for_amd_gpus_says_that_its_estimate_is_untried() -> None:
    lines = planned("{type: amd, class: MI300X}").splitlines()
    assert lines[0] == "chat: fits"
    assert "  GPU        1 GPU of 192.0 GiB, of which the engine uses 176.6 GiB" in lines
    assert "  untried    on AMD GPUs: the estimate is that of NVIDIA GPUs" in lines


def test_a_plan_that_does_not_fit_says_what_to_change() -> None:
    lines = planned("{class: L4}").splitlines()
    assert lines[0] == "chat: does not fit: needs 33.2 GiB, has 20.7 GiB"
    assert lines[-2:] == [
        "  to fit     set engine.maxModelLen to at most 11,264",
        "  or         set accelerator.count to 2",
    ]


def test_a_plan_near_the_limit_says_that_the_estimate_decides() -> None:
    assert planned("{class: L40S}", gpu_memory=38 * 2**30).splitlines()[0] == (
        "chat: within 10 %: needs 33.2 GiB, has 35.0 GiB, and the estimate decides"
    )


def test_more_gpus_than_a_node_has_get_no_verdict() -> None:
    (line,) = planned("{class: H100, count: 16}").splitlines()
    assert line.startswith(
        "chat: no verdict: spec.accelerator.count: makes a replica of 16 GPUs, and a replica runs "
        "on one node, which has at most 8"
    )


def test_gpus_that_cannot_share_the_heads_do_not_fit() -> None:
    assert planned("{class: H100, count: 3}").splitlines()[0] == (
        "chat: does not fit: 3 GPUs cannot share the model's 32 attention heads and 8 KV heads: "
        "set engine.parallelism.tensor to one of 1, 2, 4, 8, 16, 32"
    )


def test_a_slice_of_a_gpu_has_the_memory_in_its_name() -> None:
    found = planned("{resourceName: nvidia.com/mig-3g.40gb}")
    assert "1 GPU of 38.0 GiB" in found


def test_the_memory_of_the_command_line_replaces_that_of_the_spec() -> None:
    assert "1 GPU of 24.0 GiB" in planned("{class: H100}", gpu_memory=24 * 2**30)


@pytest.mark.parametrize(
    ("accelerator", "sentence"),
    [
        (
            "{}",
            "spec.accelerator.class: names no GPU with a known memory: set it to one such as H100,"
            " or pass --gpu-memory",
        ),
        (
            "{type: cpu}",
            "spec.accelerator.type: is cpu, where the container's memory limit holds the model: a "
            "plan is for GPUs only",
        ),
    ],
    ids=["no GPU", "a CPU"],
)
def test_a_spec_without_a_known_gpu_has_no_verdict(accelerator: str, sentence: str) -> None:
    assert planned(accelerator) == f"chat: no verdict: {sentence}\n"


def test_a_model_that_cannot_be_read_hides_no_other() -> None:
    both = text("{class: H100}", "unreadable") + "---" + text("{class: H100}")
    found = plan_file(both, SETTINGS, read_llama, None)
    assert found.verdicts == (None, Verdict.FITS)
    assert not found.may_fit
    assert found.text.startswith("unreadable: no verdict: the hub sleeps\n\nchat: fits\n")


@pytest.mark.parametrize(("method", "is_left_out"), [("MTP", True), ("Ngram", False)])
def test_a_draft_with_weights_is_said_to_be_left_out(method: str, is_left_out: bool) -> None:
    speculation = f"{{method: {method}, numSpeculativeTokens: 2}}"
    engine = f"{{class: H100}}, engine: {{speculativeDecoding: {speculation}}}"
    line = "  left out   the draft of the speculative decoding, which needs memory of its own\n"
    assert (line in planned(engine)) is is_left_out


def with_a_draft(uri: str) -> list[str]:
    draft = f"{{method: DraftModel, numSpeculativeTokens: 2, draftModel: {{uri: '{uri}'}}}}"
    return planned(f"{{class: H100}}, engine: {{speculativeDecoding: {draft}}}").splitlines()


def test_a_draft_model_adds_its_weights_and_its_kv_cache() -> None:
    lines = with_a_draft("hf://org/draft")
    assert "  weights    15.0 GiB on each GPU" in lines
    assert "  draft      2.3 GiB of weights on each GPU" in lines
    # The model has 32 layers with 8 heads of 128 numbers: 128 KiB per token. The draft model has
    # 16 layers with 8 heads of 64 numbers: 32 KiB per token.
    assert "  KV cache   160.0 KiB per token, 20.0 GiB for one request of 131,072 tokens" in lines
    assert "  room       2 requests of 131,072 tokens at a time" in lines
    assert not [line for line in lines if "left out" in line]


def test_a_draft_model_that_cannot_be_read_is_left_out_with_the_reason() -> None:
    assert with_a_draft("hf://org/unreadable")[-1] == (
        "  left out   the draft of the speculative decoding, which needs memory of its own: the "
        "hub sleeps"
    )
    assert with_a_draft("pvc://drafts/small")[0] == "chat: fits"


def test_the_command_reads_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.joinpath("config.json").write_text(json.dumps(CONFIGS["qwen2.5-0.5b-tied"]))
    header = b'{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    weights = len(header).to_bytes(8, "little") + header + bytes(4)
    tmp_path.joinpath("model.safetensors").write_bytes(weights)
    service = tmp_path / "service.yaml"
    service.write_text(text("{}", uri="pvc://models/qwen"))
    arguments = ["plan", "-f", str(service), "--model-dir", str(tmp_path), "--gpu-memory", "24Gi"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("chat: fits\n")


def test_the_command_reads_the_folder_of_a_draft(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("model", "draft"):
        folder = tmp_path / name
        folder.mkdir()
        folder.joinpath("config.json").write_text(json.dumps(CONFIGS["qwen2.5-0.5b-tied"]))
        header = b'{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
        weights = len(header).to_bytes(8, "little") + header + bytes(4)
        folder.joinpath("model.safetensors").write_bytes(weights)
    draft = "{method: DraftModel, numSpeculativeTokens: 2, draftModel: {uri: 'pvc://models/d'}}"
    service = tmp_path / "service.yaml"
    accelerator = f"{{class: L4}}, engine: {{speculativeDecoding: {draft}}}"
    service.write_text(text(accelerator, uri="pvc://models/m"))
    arguments = ["plan", "-f", str(service), "--model-dir", str(tmp_path / "model")]
    assert main(arguments) == 0
    assert "pass the folder with --draft-dir" in capsys.readouterr().out
    assert main([*arguments, "--draft-dir", str(tmp_path / "draft")]) == 0
    planned = capsys.readouterr().out
    assert "left out" not in planned
    # Model and draft model have 24 layers each, with 2 heads of 64 numbers.
    assert "KV cache   24.0 KiB per token" in planned


def test_the_plan_stands_as_comments_before_the_rendered_objects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = tmp_path / "service.yaml"
    service.write_text(text("{class: H100}", uri="pvc://models/qwen"))
    assert main(["render", "-f", str(service)]) == 0
    objects = capsys.readouterr().out
    assert main(["render", "--plan", "-f", str(service)]) == 0
    planned = capsys.readouterr().out
    assert planned.startswith("# chat: no verdict: spec.model.uri: is a folder on a claim")
    assert planned.endswith(objects)


def test_a_claim_needs_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = tmp_path / "service.yaml"
    service.write_text(text("{class: H100}", uri="pvc://models/qwen"))
    assert main(["plan", "-f", str(service)]) == 1
    assert capsys.readouterr().out == (
        "chat: no verdict: spec.model.uri: is a folder on a claim: copy its config.json and "
        "safetensors files, or mount the claim, and pass the folder with --model-dir\n"
    )


def test_a_memory_that_is_no_quantity_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = tmp_path / "service.yaml"
    service.write_text(text("{class: H100}"))
    assert main(["plan", "-f", str(service), "--gpu-memory", "much"]) == 1
    assert "--gpu-memory: must be an amount of memory, such as 24Gi" in capsys.readouterr().err


def test_an_object_store_needs_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = tmp_path / "service.yaml"
    service.write_text(text("{class: H100}", uri="s3://weights/qwen"))
    assert main(["plan", "-f", str(service)]) == 1
    assert capsys.readouterr().out == (
        "chat: no verdict: spec.model.uri: is in an object store: copy its config.json and "
        "safetensors files, and pass the folder with --model-dir\n"
    )
