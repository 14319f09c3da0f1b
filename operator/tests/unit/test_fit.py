from typing import Any

import pytest

from llmservice_operator.api.spec import LLMServiceSpec
from llmservice_operator.fit import Checkpoint, Plan, UnknownShape, Verdict, plan_fit, read_shape
from llmservice_operator.fit.kv_cache import StateStorage, request_bytes
from llmservice_operator.fit.weights import weight_bytes
from operator_support.services import a_service
from operator_support.shapes import CONFIGS

GIB = 2**30
LLAMA = CONFIGS["llama-8b"]
WEIGHTS = Checkpoint({"BF16": 8_030_261_248})


def spec_of(engine: dict[str, Any] | None = None, gpus: int = 1) -> LLMServiceSpec:
    return a_service({"engine": engine or {}, "accelerator": {"count": gpus}}).spec


def plan(gpu_gib: float, engine: dict[str, Any] | None = None, gpus: int = 1) -> Plan:
    return plan_fit(spec_of(engine, gpus), read_shape(LLAMA), WEIGHTS, int(gpu_gib * GIB))


UNCACHED = StateStorage(2, 2, caches_prefixes=False)
CACHED = StateStorage(2, 2, caches_prefixes=True)


def kv_bytes(name: str, tokens: int, *, storage: StateStorage = UNCACHED, **options: int) -> int:
    settings = {"in_flight_tokens": 2048, "element_bytes": 2, **options}
    return request_bytes(read_shape(CONFIGS[name]), tokens, storage=storage, **settings)


def test_each_token_has_a_key_and_a_value_in_each_kv_head_of_each_layer() -> None:
    assert kv_bytes("llama-8b", 16) == 16 * 32 * 2 * 8 * 128 * 2


def test_a_request_takes_whole_blocks() -> None:
    assert kv_bytes("llama-8b", 17) == kv_bytes("llama-8b", 32)


def test_eight_bits_halve_the_kv_cache() -> None:
    assert 2 * kv_bytes("llama-8b", 4096, element_bytes=1) == kv_bytes("llama-8b", 4096)


def test_gpus_share_the_kv_heads_until_each_has_one() -> None:
    whole = kv_bytes("llama-8b", 4096)
    assert kv_bytes("llama-8b", 4096, tensor=8) == whole // 8
    assert kv_bytes("llama-8b", 4096, tensor=32) == whole // 8


def test_every_gpu_keeps_the_whole_latent_vector() -> None:
    assert kv_bytes("deepseek-v3", 4096, tensor=8) == kv_bytes("deepseek-v3", 4096)
    assert kv_bytes("deepseek-v3", 16) == 16 * 61 * (512 + 64) * 2


def test_a_pipeline_stage_keeps_its_own_layers_only() -> None:
    assert kv_bytes("llama-8b", 4096, pipeline=2) == kv_bytes("llama-8b", 4096) // 2


def bytes_of_state(name: str, *, element_bytes: int = 2, **options: int) -> int:
    return kv_bytes(name, 1, storage=StateStorage(2, element_bytes, False), **options)


def test_a_mamba_layer_keeps_the_inputs_of_its_convolution_and_the_state_of_its_channels() -> None:
    assert bytes_of_state("falcon-mamba-7b") == 64 * 8192 * (3 + 16) * 2
    inputs, channels = 3 * (8192 + 2 * 8 * 128), 128 * 64 * 128
    assert bytes_of_state("mamba-codestral-7b") == 64 * (inputs + channels) * 2
    assert bytes_of_state("mamba-codestral-7b", element_bytes=4) == 64 * (inputs + 2 * channels) * 2


def test_gpus_share_the_state_and_copy_a_single_group_of_heads() -> None:
    whole = bytes_of_state("mamba-codestral-7b")
    assert bytes_of_state("mamba-codestral-7b", tensor=8) == whole // 8
    assert bytes_of_state("mamba-codestral-7b", pipeline=2) == whole // 2
    inputs, channels = 3 * (1536 // 8 + 2 * 128), 1536 // 8 * 128
    assert bytes_of_state("mamba2-130m", tensor=8) == 24 * (inputs + channels) * 2


QWEN_3_5 = {
    **CONFIGS["qwen3-next-80b"],
    "model_type": "qwen3_5_moe_text",
    "mamba_ssm_dtype": "float32",
}


def test_a_block_of_a_hybrid_model_has_as_many_tokens_as_the_state_of_a_layer_needs() -> None:
    inputs, channels = 3 * (2 * 16 * 128 + 32 * 128), 32 * 128 * 128
    tokens = 16 * 34
    assert 16 * 33 < (inputs + channels) * 2 / (2 * 2 * 256 * 2) < tokens
    # A block contains 12 layers: all layers with attention, or a third of those with a state.
    block = 12 * tokens * 2 * 2 * 256 * 2
    assert kv_bytes("qwen3-next-80b", tokens) == (1 + 3) * block
    assert kv_bytes("qwen3-next-80b", tokens + 1, storage=CACHED) == (2 + 2 * 3) * block


def test_eight_bits_put_twice_as_many_tokens_into_a_block_with_a_state() -> None:
    whole = kv_bytes("qwen3-next-80b", 262_144, storage=CACHED)
    assert 0.5 < kv_bytes("qwen3-next-80b", 262_144, storage=CACHED, element_bytes=1) / whole < 0.52


def test_a_small_state_leaves_the_block_as_it_is() -> None:
    # 6 layers have attention and 10 are convolutions.
    assert kv_bytes("lfm2-1.2b", 16) == (1 + 2) * 6 * 16 * 2 * 8 * 64 * 2


def test_a_layer_with_attention_beside_a_state_takes_blocks_for_both() -> None:
    inputs, channels = 3 * (3072 + 2 * 2 * 256), 3072 * 256
    tokens = 16 * -(-(inputs + channels) * 2 // (16 * 2 * 2 * 128 * 2))
    assert kv_bytes("falcon-h1-7b", tokens) == 2 * 44 * tokens * 2 * 2 * 128 * 2


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("qwen3-next-80b", "12 layers with attention and 36 with a state"),
        ("jamba-3b", "2 layers with attention and 26 with a state"),
        ("granite-4-h-micro", "4 layers with attention and 36 with a state"),
        ("nemotron-h-8b", "4 layers with attention and 24 with a state"),
        ("falcon-h1-7b", "44 layers with attention and 44 with a state"),
        ("lfm2-1.2b", "6 layers with attention and 10 with a state"),
    ],
)
def test_the_layers_with_attention_and_with_a_state_are_counted(name: str, layers: str) -> None:
    assert read_shape(CONFIGS[name]).layers == layers


@pytest.mark.parametrize(
    ("config", "element_bytes"),
    [
        (CONFIGS["nemotron-h-8b"], 4),
        ({**CONFIGS["nemotron-h-8b"], "mamba_ssm_cache_dtype": "bfloat16"}, 2),
        (QWEN_3_5, 4),
        (CONFIGS["qwen3-next-80b"], None),
    ],
    ids=["Nemotron-H", "Nemotron-H with another format", "Qwen3.5", "Qwen3-Next"],
)
def test_a_model_may_choose_the_number_format_of_its_state(
    config: dict[str, Any], element_bytes: int | None
) -> None:
    state = read_shape(config).state
    assert state is not None
    assert state.element_bytes == element_bytes


def test_a_hybrid_model_caches_prefixes_unless_the_spec_switches_that_off() -> None:
    def planned(engine: dict[str, Any]) -> int:
        shape = read_shape(CONFIGS["granite-4-h-micro"])
        return plan_fit(spec_of(engine), shape, Checkpoint({}), 24 * GIB).request

    assert planned({}) == planned({"prefixCaching": {"enabled": True}})
    assert planned({"prefixCaching": {"enabled": False}}) < planned({})
    assert planned({"extraArgs": ["--mamba-ssm-cache-dtype=float32"]}) > planned({})


def test_gpus_share_both_the_attention_heads_and_the_heads_of_the_state() -> None:
    found = plan_fit(spec_of(gpus=32), read_shape(CONFIGS["nemotron-h-8b"]), Checkpoint({}), GIB)
    assert found.refusal == (
        "32 GPUs cannot share the model's 32 attention heads, 8 KV heads and 128 state-space heads "
        "in 8 groups: set engine.parallelism.tensor to one of 1, 2, 4, 8"
    )


def test_layers_that_are_listed_by_a_period_or_by_their_places_are_the_same_layers() -> None:
    listed = ["conv", "conv", "full_attention"] * 5 + ["conv"]
    lfm = {**CONFIGS["lfm2-1.2b"], "full_attn_idxs": [2, 5, 8, 11, 14]}
    assert read_shape({**lfm, "layer_types": listed}) == read_shape(lfm)
    qwen = {**CONFIGS["qwen3-next-80b"], "full_attention_interval": None}
    period = (["linear_attention"] * 3 + ["full_attention"]) * 12
    assert read_shape({**qwen, "layer_types": period}) == read_shape(qwen)


def plan_of_mamba(engine: dict[str, Any] | None = None, gpus: int = 1, gpu_gib: float = 24) -> Plan:
    shape = read_shape(CONFIGS["mamba-codestral-7b"])
    weights = Checkpoint({"BF16": 7_285_403_648})
    return plan_fit(spec_of(engine, gpus), shape, weights, int(gpu_gib * GIB))


def test_a_prefix_cache_and_the_number_formats_change_the_state_and_fp8_does_not() -> None:
    state = plan_of_mamba().request
    assert plan_of_mamba({"kvCache": {"dtype": "FP8"}}).request == state
    assert plan_of_mamba({"maxModelLen": 100_000}).request == state
    assert plan_of_mamba({"prefixCaching": {"enabled": True}}).request == 3 * state
    assert plan_of_mamba({"prefixCaching": {"enabled": False}}).request == state
    older = {"prefixCaching": {"enabled": True}, "version": "0.31.0"}
    assert plan_of_mamba(older).request == 2 * state
    whole = plan_of_mamba({"extraArgs": ["--mamba-cache-dtype=float32"]}).request
    assert whole == 2 * state
    formats = ["--mamba-cache-dtype=float32", "--mamba-ssm-cache-dtype=bfloat16"]
    assert state < plan_of_mamba({"extraArgs": formats}).request < whole


def test_a_mamba_model_that_does_not_fit_needs_more_gpus_or_another_one() -> None:
    assert plan_of_mamba(gpu_gib=16).advice == ("set accelerator.count to 2",)
    assert plan_of_mamba(gpu_gib=1).advice == (
        "choose a GPU with more memory, or a quantized model",
    )


@pytest.mark.parametrize(
    ("name", "parts", "possible"),
    [
        ("mamba-codestral-7b", "128 state-space heads in 8 groups", "1, 2, 4, 8"),
        ("mamba2-130m", "24 state-space heads", "1, 2, 3, 4, 6, 8, 12, 24"),
        ("mamba-2.8b", "5120 state-space channels", "1, 2, 4, 5, 8, 10, 16, 20, 32, 40, 64"),
    ],
)
def test_gpus_that_cannot_share_the_state_are_refused(name: str, parts: str, possible: str) -> None:
    found = plan_fit(spec_of(gpus=7), read_shape(CONFIGS[name]), Checkpoint({}), 80 * GIB)
    assert found.refusal == (
        f"7 GPUs cannot share the model's {parts}: set engine.parallelism.tensor to one of "
        f"{possible}"
    )


def test_speculative_decoding_with_a_mamba_model_is_not_computed() -> None:
    with pytest.raises(UnknownShape, match="speculative decoding is not known"):
        plan_of_mamba({"speculativeDecoding": {"method": "Ngram", "numSpeculativeTokens": 2}})


def test_a_windowed_layer_keeps_no_more_than_its_window_and_the_tokens_in_flight() -> None:
    long, longer = (kv_bytes("mistral-7b-window", tokens) for tokens in (16_384, 32_768))
    assert long == longer
    assert kv_bytes("mistral-7b-window", 1024) < long


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_hidden_layers": None}, "config.json has no num_hidden_layers"),
        ({"vocab_size": "many"}, "config.json has no vocab_size"),
        (
            {"ssm_cfg": {"layer": "Mamba2"}},
            "the model has state-space layers (ssm_cfg), whose memory is not known here",
        ),
        (
            {"linear_attn_config": {"num_heads": 32}},
            "the model has linear attention (linear_attn_config), whose memory is not known here",
        ),
        (
            {"mamba_d_state": 128},
            "the model has state-space layers (mamba_d_state), whose memory is not known here",
        ),
        (
            {"attn_type_list": [0, 1] * 16},
            "the model has linear attention (attn_type_list), whose memory is not known here",
        ),
        (
            {"layer_types": ["full_attention", "linear_attention"] * 16},
            "the model has layers of the kind linear_attention, whose memory is not known here",
        ),
        ({"text_config": [1]}, "config.json has a text_config that is not an object"),
    ],
    ids=[
        *("no layers", "no number", "state space", "linear layers", "state beside attention"),
        *("list of linear layers", "linear attention", "no object"),
    ],
)
def test_a_model_that_the_formulas_do_not_cover_is_refused(
    change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UnknownShape) as refused:
        read_shape({**LLAMA, **change})
    assert str(refused.value) == sentence


def test_a_list_of_layers_that_all_have_attention_changes_nothing() -> None:
    assert read_shape({**LLAMA, "attn_type_list": [1] * 32}) == read_shape(LLAMA)


def test_the_text_model_of_a_multimodal_model_decides() -> None:
    assert read_shape({"model_type": "llava", "text_config": LLAMA}) == read_shape(LLAMA)


def test_scaled_positions_lengthen_the_context() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    assert read_shape({**LLAMA, "rope_scaling": scaling}).longest == 131_072
    llama3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    assert read_shape({**LLAMA, "rope_scaling": llama3}).longest == 131_072


def test_weights_are_converted_to_the_format_that_the_engine_computes_in() -> None:
    stored = Checkpoint({"F32": 1000, "BF16": 1000})
    assert weight_bytes(stored, read_shape(LLAMA), 2, None) == 4000
    assert weight_bytes(stored, read_shape(LLAMA), 4, None) == 8000


def test_the_weights_of_a_quantized_model_stay_as_they_are_stored() -> None:
    stored = Checkpoint({"I32": 1000, "F16": 500, "F8_E4M3": 8})
    shape = read_shape(CONFIGS["qwen2-7b-awq"])
    assert weight_bytes(stored, shape, 2, "awq") == 4000 + 1000 + 8


def test_quantizing_at_load_halves_all_but_embeddings_and_output() -> None:
    outside = 2 * LLAMA["vocab_size"] * LLAMA["hidden_size"]
    linear = WEIGHTS.total - outside
    assert weight_bytes(WEIGHTS, read_shape(LLAMA), 2, "fp8") == 2 * outside + linear


@pytest.mark.parametrize(
    ("gpu_gib", "verdict"),
    [(80, Verdict.FITS), (39, Verdict.WITHIN_10_PERCENT), (24, Verdict.DOES_NOT_FIT)],
)
def test_the_verdict_compares_what_one_longest_request_needs_with_the_gpu(
    gpu_gib: float, verdict: Verdict
) -> None:
    found = plan(gpu_gib)
    assert found.verdict is verdict
    assert found.needed == found.weights + found.reserve + 16 * GIB
    assert found.budget == found.gpu * 92 // 100


def test_the_spec_decides_how_much_of_the_gpu_the_engine_uses() -> None:
    assert plan(80, {"gpuMemoryUtilizationPercent": 50}).budget == 40 * GIB


def test_the_rest_of_the_memory_holds_further_requests() -> None:
    found = plan(80, {"maxModelLen": 8192})
    assert found.request == GIB
    assert found.requests == (found.budget - found.weights - found.reserve) // GIB
    assert plan(24).requests == 0


def test_each_advice_makes_the_model_fit() -> None:
    advice = plan(24).advice
    assert advice == ("set engine.maxModelLen to at most 21,504", "set accelerator.count to 2")
    assert plan(24, {"maxModelLen": 21_504}).verdict is Verdict.FITS
    assert plan(24, {"maxModelLen": 22_528}).verdict is not Verdict.FITS
    assert plan(24, gpus=2).verdict is Verdict.FITS


def test_requests_that_the_engine_shortens_are_as_long_as_surely_fits() -> None:
    shortened = plan(24, {"maxModelLen": "Auto"})
    assert (shortened.verdict, shortened.longest) == (Verdict.FITS, 21_504)
    assert plan(80, {"maxModelLen": "Auto"}) == plan(80)
    assert plan(1, {"maxModelLen": "Auto"}).verdict is Verdict.DOES_NOT_FIT


def test_an_eight_bit_cache_is_advised_where_it_is_enough() -> None:
    engine = {"maxModelLen": 32_768}
    assert "set engine.kvCache.dtype to FP8" in plan(24, engine).advice
    assert plan(24, {**engine, "kvCache": {"dtype": "FP8"}}).verdict is Verdict.FITS
    assert plan(80, engine).advice == ()


def test_a_model_that_nothing_makes_fit_needs_another_gpu() -> None:
    found = plan(1)
    assert found.advice == ("choose a GPU with more memory, or a quantized model",)


@pytest.mark.parametrize("gpus", [3, 5, 6, 64])
def test_gpus_that_cannot_share_the_heads_are_refused_with_the_numbers_that_can(gpus: int) -> None:
    found = plan(80, gpus=gpus)
    assert found.verdict is Verdict.DOES_NOT_FIT
    assert found.refusal == (
        f"{gpus} GPUs cannot share the model's 32 attention heads and 8 KV heads: set "
        "engine.parallelism.tensor to one of 1, 2, 4, 8, 16, 32"
    )
    assert found.advice == ()


def test_a_multiple_of_the_kv_heads_can_share_the_heads() -> None:
    assert plan(80, gpus=16).refusal is None
