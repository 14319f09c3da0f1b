"""Tests the operator's engine arguments with the pinned vLLM's own parser."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import flag_tables
from engine_asking import Ask
from llmservice_operator.api.extra_args import SAFE_VALUES
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.engine_args import build_engine_args
from llmservice_operator.desired.engine_flags import accepted_flags
from llmservice_operator.desired.flag_tables import TABLES, FlagKind
from llmservice_operator.desired.gone_flags import GONE_VARIABLES
from llmservice_operator.settings import ENGINE_VERSION
from llmservice_operator.workload import resolve_pin
from operator_support.examples import EXAMPLES
from operator_support.services import SETTINGS, a_service

pytest_plugins = ("engine_fixtures",)

Parse = Callable[[list[list[str]]], list[str | None]]


@pytest.fixture(scope="module")
def parse(ask: Ask) -> Parse:
    """Return a function that takes lists of arguments, and returns the parser's complaint about
    each list, or None for an accepted list.
    """
    return functools.partial(ask, "parse")


def test_the_table_of_the_pinned_version_matches_its_parser(ask: Ask) -> None:
    (flags,) = ask("flags", [[]])
    committed = flag_tables.table_path(ENGINE_VERSION).read_text()
    assert committed == flag_tables.render_table(flags)


def test_the_engine_reads_no_variable_that_is_listed_as_removed(engine_python: Path) -> None:
    (package,) = engine_python.parents[1].glob("lib/python*/site-packages/vllm")
    known = (package / "envs.py").read_text()
    assert '"VLLM_LOGGING_LEVEL"' in known
    assert [variable for variable in GONE_VARIABLES if f'"{variable}"' in known] == []


def compiled(path: Path) -> list[str]:
    service = LLMService.parse(yaml.safe_load(path.read_text()))
    return build_engine_args(service, resolve_pin(service, None, SETTINGS).version)


def switches() -> list[list[str]]:
    """Both states of every accepted switch, and the first choice of every flag with choices."""
    table = TABLES[ENGINE_VERSION]
    extra = []
    for flag in accepted_flags(table):
        if table[flag].kind is not FlagKind.VALUE:
            extra += [f"{flag}=true", f"{flag}=false"]
        elif choices := SAFE_VALUES.get(flag, table[flag].choices):
            extra.append(f"{flag}={choices[0]}")
    return [
        build_engine_args(a_service({"engine": {"extraArgs": [each]}}), ENGINE_VERSION)
        for each in extra
    ]


def test_the_parser_takes_every_example_and_every_accepted_switch_and_choice(parse: Parse) -> None:
    cases = [*map(compiled, EXAMPLES), *switches()]
    said = dict(zip(map(tuple, cases), parse(cases), strict=True))
    assert len(cases) > 100
    assert {args: complaint for args, complaint in said.items() if complaint} == {}


def test_the_parser_reads_the_values_of_the_spec_unchanged(ask: Ask) -> None:
    template = "{%- for m in messages %}\n{{ m['role'] }}: \\n --x=1 \"é\" $5\n{%- endfor %}"
    service = a_service(
        {
            "model": {"uri": "hf://org/model", "aliases": ["gpt-4.1", "org/chat"]},
            "engine": {
                "chatTemplate": {"inline": template},
                "toolCalling": {"parser": "llama3_json"},
                "reasoningParser": "deepseek_r1",
            },
        }
    )
    # The kubelet replaces $$ by $ in the arguments.
    args = [arg.replace("$$", "$") for arg in build_engine_args(service, ENGINE_VERSION)]
    assert ask("read", [args]) == [
        {
            "model": "org/model",
            "served_model_name": ["qwen", "gpt-4.1", "org/chat"],
            "chat_template": template,
            "enable_auto_tool_choice": True,
            "tool_call_parser": "llama3_json",
            "reasoning_parser": "deepseek_r1",
        }
    ]


def test_the_parser_reads_a_context_length_that_depends_on_the_memory(ask: Ask) -> None:
    service = a_service({"engine": {"maxModelLen": "Auto"}})
    (read,) = ask("read", [build_engine_args(service, ENGINE_VERSION)])
    assert read["max_model_len"] == -1


def test_the_parser_reads_every_value_of_a_list(ask: Ask) -> None:
    engine = {
        "runner": "Pooling",
        "convert": "Embed",
        "allowedMediaDomains": ["a.example", "b.example"],
    }
    others = {"logitsProcessors": ["vllm.a:B", "vllm.c:D"]}
    lines = [
        build_engine_args(a_service({"engine": it}), ENGINE_VERSION) for it in (engine, others)
    ]
    read, other = ask("read", lines)
    assert read["runner"] == "pooling"
    assert read["convert"] == "embed"
    assert read["allowed_media_domains"] == ["a.example", "b.example"]
    assert other["logits_processors"] == ["vllm.a:B", "vllm.c:D"]


def test_the_parser_refuses_an_unknown_flag_and_a_wrong_value(parse: Parse) -> None:
    said = parse([["--model=a/b", "--no-such-flag=1"], ["--model=a/b", "--max-num-seqs=many"]])
    assert said[0] is not None
    assert "--no-such-flag=1" in said[0]
    assert said[1] is not None
    assert "--max-num-seqs" in said[1]
