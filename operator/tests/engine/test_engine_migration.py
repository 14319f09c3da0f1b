"""Tests that vLLM reads the same values from a foreign command line and from its translation."""

from typing import Final

import pytest

from engine_asking import Ask
from migration.cases import Case
from migration.judge import judge
from migration.messages import follow
from translation import flags_of

pytest_plugins = ("engine_fixtures",)

LINES: Final = {
    "usual flags": "--max-model-len 4096 --gpu-memory-utilization 0.85 --kv-cache-dtype fp8 "
    "--enable-auto-tool-choice --tool-call-parser hermes --reasoning-parser qwen3",
    "underscores and a short name": "--tokenizer_mode mistral --config_format mistral "
    "--load_format mistral -tp 2",
    "parts of an object": "--limit-mm-per-prompt.video 0 --speculative-config.method mtp "
    "--speculative-config.num_speculative_tokens 2",
    "an object": '--speculative-config {"model":"o/d","method":"dflash",'
    '"num_speculative_tokens":7,"attention_backend":"FLASH_ATTN"}',
    "switches": "--no-enable-prefix-caching --async-scheduling --enforce-eager",
    "a template in a file": "--chat-template template.jinja",
    "several names": "--served-model-name a b",
}
PASTED: Final = (
    "--max-num-batched-token=8192 --disable-log-requests --num-scheduler-steps=8 --swap-space=8 "
    "--max-seq-len-to-capture=16384 --enable-chunked-prefill=false --load_format=tensorizer "
    "--distributed-executor-backend=ray --max-model-len=4096 "
    '--compilation-config={"mode":3,"use_inductor":false}'
)


def case(line: str) -> Case:
    return Case("entry", "", "org/model", flags_of(line.split()))


def test_vllm_reads_a_command_line_and_its_spec_alike(ask: Ask) -> None:
    verdicts = judge(map(case, LINES.values()), ask)
    assert {name: it.reasons for name, it in zip(LINES, verdicts, strict=True)} == dict.fromkeys(
        LINES, ()
    )


def test_the_messages_lead_an_old_command_line_to_an_equivalent_one(ask: Ask) -> None:
    pasted = case(PASTED)
    (before,) = judge([pasted], ask)
    followed, changes = follow(pasted)
    (after,) = judge([followed], ask)
    assert not before.is_expressible
    assert after.reasons == ()
    assert {change.before: change.after for change in changes} == {
        "--max-num-batched-token": "--max-num-batched-tokens",
        "--disable-log-requests": "",
        "--num-scheduler-steps": "",
        "--swap-space": "--kv-offloading-size",
        "--max-seq-len-to-capture": "--max-cudagraph-capture-size",
        "--load-format": "",
        "--distributed-executor-backend": "",
        "--compilation-config": "--compilation-config",
    }


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("--middleware x.Y", "--middleware: is set by the operator or unsafe"),
        ("--speculative-config.method custom_class", "has the method custom_class"),
        ("--block-size many", "refuses the case's own line"),
        ("-tp 8 -pp 2", "needs 16 GPUs, more than a node has"),
    ],
)
def test_a_command_line_that_no_spec_expresses_has_a_reason(
    ask: Ask, line: str, reason: str
) -> None:
    (verdict,) = judge([case(line)], ask)
    assert not verdict.is_expressible
    assert reason in verdict.reasons[0]


def test_a_value_that_vllm_reads_differently_is_a_reason(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"model": {"uri": "hf://org/model"}, "engine": {"batching": {"maxNumSeqs": 9}}}
    monkeypatch.setattr("migration.judge.spec_of", lambda *_: other)
    (verdict,) = judge([case("--max-num-seqs 8")], ask)
    assert verdict.reasons == ("vLLM reads max_num_seqs as 9 instead of 8",)
