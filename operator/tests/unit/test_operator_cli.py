import io
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llmservice_operator.__main__ import main
from llmservice_operator.reference import PAGES
from operator_support.examples import STALE_GOLDEN, example_text, golden_objects
from operator_support.services import REPOSITORY

SERVICE = """
apiVersion: llmservice.dev/v1alpha1
kind: LLMService
metadata: {name: llama, namespace: team}
spec: {model: {uri: "hf://org/model"}, accelerator: {type: cpu}}
"""


def test_render_prints_the_objects_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(example_text("minimal"))
    assert main(["render", "-f", str(file)]) == 0
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    assert printed == golden_objects("minimal"), STALE_GOLDEN


def test_render_reads_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(SERVICE))
    assert main(["render", "-f", "-"]) == 0
    assert "kind: Deployment" in capsys.readouterr().out


def test_render_uses_the_image_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLMSERVICE_OPERATOR_SERVER_IMAGE_CPU", "registry.example/cpu:9")
    file = tmp_path / "service.yaml"
    file.write_text(SERVICE)
    assert main(["render", "-f", str(file)]) == 0
    assert "image: registry.example/cpu:9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spec", "message", "lines"),
    [
        ("{model: {uri: org/model}}", "must start with hf://, pvc:// or s3://", 1),
        ("{modle: {uri: hf://org/model}}", "2 problems:\n  spec.model: is required\n", 3),
    ],
)
def test_render_refuses_a_wrong_spec_with_a_line_for_each_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: str, message: str, lines: int
) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(SERVICE.partition("spec:")[0] + f"spec: {spec}\n")
    assert main(["render", "-f", str(file)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("llmservice-operator: ")
    assert message in error
    assert error.count("\n") == lines


def test_render_says_which_file_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "-f", "no-such.yaml"]) == 1
    assert "no-such.yaml" in capsys.readouterr().err


def test_crd_prints_the_definition(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crd"]) == 0
    crd = yaml.safe_load(capsys.readouterr().out)
    assert crd["metadata"]["name"] == "llmservices.llmservice.dev"


def test_a_wrong_setting_is_named_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLMSERVICE_OPERATOR_HEALTH_PORT", "eighty")
    assert main(["run"]) == 1
    assert "LLMSERVICE_OPERATOR_HEALTH_PORT is 'eighty'" in capsys.readouterr().err


def test_the_running_operator_loads_nothing_that_only_other_commands_need() -> None:
    asked = (
        "import sys, llmservice_operator.commands, llmservice_operator.process;"
        "print({each.split('.')[0] for each in sys.modules}"
        " & {'cryptography', 'huggingface_hub', 'grpc', 'envoy', 'uvloop'});"
        "print('llmservice_operator.metrics_server' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["set()", "False"]


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("start", {"aiohttp", "pydantic", "uvloop"}),
        ("picker", {"envoy", "grpc", "pydantic", "uvloop"}),
    ],
)
def test_the_processes_of_a_router_load_only_the_libraries_that_they_use(
    module: str, allowed: set[str]
) -> None:
    asked = (
        f"import sys, llmservice_operator.__main__, llmservice_operator.router.{module};"
        "print(*({each.split('.')[0] for each in sys.modules}"
        " & {'aiohttp', 'cryptography', 'envoy', 'grpc', 'huggingface_hub', 'kopf', 'kubernetes',"
        " 'pydantic', 'pydantic_settings', 're2', 'uvloop', 'yaml'}));"
        "print(*(each for each in sys.modules if each.endswith(('api.spec', '.commands'))))"
    )
    ran = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    libraries, own = ran.stdout.splitlines()
    assert set(libraries.split()) <= allowed
    assert own == ""


def test_an_unknown_command_shows_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve"])
    error = capsys.readouterr().err
    for command in ("run", "render", "crd"):
        assert command in error


@pytest.mark.parametrize("page", PAGES)
def test_a_reference_page_in_docs_is_the_generated_one(
    page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reference", page]) == 0
    committed = (REPOSITORY / "docs" / f"{page}.md").read_text()
    assert committed == capsys.readouterr().out, (
        f"docs/{page}.md is not what the code says: run `make generate` and review the difference"
    )
