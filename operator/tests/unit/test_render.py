import pytest
import yaml

from llmservice_operator.errors import InvalidFile, InvalidSpec
from llmservice_operator.render import render_file
from llmservice_operator.settings import OperatorSettings
from operator_support.examples import STALE_GOLDEN, example_text, golden_objects
from operator_support.services import SETTINGS

HEAD = "apiVersion: llmservice.dev/v1alpha1\nkind: LLMService\nmetadata: {name: qwen}\n"
GOOD = HEAD + "spec: {model: {uri: 'hf://org/model'}}\n"


def test_every_service_of_a_file_is_rendered_in_order() -> None:
    text = f"{example_text('smollm2-cpu')}---\n---\n{example_text('minimal')}"
    rendered = list(yaml.safe_load_all(render_file(text, OperatorSettings())))
    expected = golden_objects("smollm2-cpu") + golden_objects("minimal")
    assert rendered == expected, STALE_GOLDEN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file: holds no LLMService"),
        ("just text", "the file: must hold objects with apiVersion, kind, metadata and spec"),
        (
            GOOD.replace("v1alpha1", "v2"),
            "apiVersion: must be llmservice.dev/v1alpha1, not 'llmservice.dev/v2'",
        ),
        (GOOD.replace("LLMService", "Pod"), "kind: must be LLMService, not 'Pod'"),
        (HEAD, "spec: is required"),
        (
            HEAD + "spec: {model: {uri: 'hf://org/model'}, replica: 2}",
            "spec.replica: is not a field of an LLMService: did you mean replicas?",
        ),
        (
            GOOD + "  engine: x",
            "the file: is not valid YAML: ",
        ),
    ],
    ids=["empty", "no object", "version", "kind", "no spec", "unknown field", "no YAML"],
)
def test_a_file_that_cannot_be_rendered_is_refused_with_the_remedy(text: str, message: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        render_file(text, SETTINGS)
    if message.endswith(": "):
        assert str(refused.value).startswith(message)
    else:
        assert str(refused.value) == message


def test_every_error_of_a_file_is_reported_at_once() -> None:
    one = HEAD + "spec: {model: {uri: 'x://org/model'}, replica: 2}\n"
    with pytest.raises(InvalidFile) as refused:
        render_file(f"{one}---\n{GOOD}---\n{{kind: Pod}}\n", SETTINGS)
    lines = str(refused.value).splitlines()
    assert lines[0] == "3 problems:"
    assert [line.split(" ")[2:4] for line in lines[1:]] == [
        ["qwen:", "spec.model.uri:"],
        ["qwen:", "spec.replica:"],
        ["document", "3:"],
    ]


def test_a_file_says_which_services_cannot_be_built() -> None:
    engine = "engine: {version: 0.1.0, image: 'mine:1'}"
    bad = HEAD + f"spec: {{model: {{uri: 'hf://org/model'}}, {engine}}}\n"
    with pytest.raises(InvalidFile) as refused:
        render_file(f"{bad}---\n{GOOD}---\n{bad}", SETTINGS)
    assert str(refused.value).startswith("2 problems:\n  qwen: spec.engine.version: ")


def test_a_variable_that_has_no_effect_is_reported_before_the_objects() -> None:
    engine = "engine: {env: [{name: VLLM_ATTENTION_BACKEND, value: FLASHINFER}]}"
    text = HEAD + f"spec: {{model: {{uri: 'hf://org/model'}}, {engine}}}\n"
    comment, *objects = render_file(text, SETTINGS).splitlines()
    assert comment == (
        "# qwen: spec.engine.env[0]: VLLM_ATTENTION_BACKEND has no effect, because vLLM no longer "
        "reads it: write --attention-backend in extraArgs instead."
    )
    assert objects[0].startswith("apiVersion: ")
