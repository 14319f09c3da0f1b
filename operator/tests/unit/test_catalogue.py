from pathlib import Path

import pytest
import yaml

import make_catalogue
from llmservice_operator.__main__ import main
from llmservice_operator.catalogue import MODELS, NotInCatalogue, new_service, service_of
from llmservice_operator.fit import Verdict
from llmservice_operator.plan import Plans
from translation import Inexpressible, refusals


def planned(*fitting_counts: int, verdict: Verdict | None = Verdict.DOES_NOT_FIT) -> "Planner":
    return Planner(fitting_counts, verdict)


class Planner:
    """Returns `Verdict.FITS` for the numbers of GPUs in `fitting_counts`, and else `otherwise`."""

    def __init__(self, fitting_counts: tuple[int, ...], otherwise: Verdict | None) -> None:
        self.fitting_counts = fitting_counts
        self.otherwise = otherwise
        self.tried: list[int] = []

    def __call__(self, text: str) -> Plans:
        count = yaml.safe_load(text)["spec"]["accelerator"]["count"]
        self.tried.append(count)
        verdict = Verdict.FITS if count in self.fitting_counts else self.otherwise
        return Plans(f"on {count}: {verdict}\n", (verdict,))


def test_the_catalogue_knows_a_hundred_models() -> None:
    assert len(MODELS) >= 100


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_catalogue_becomes_a_service_that_the_engine_accepts(name: str) -> None:
    assert refusals(MODELS[name]) == []
    assert service_of(name, MODELS[name])["metadata"]["name"] == name


def test_a_service_gets_the_fewest_gpus_on_which_its_model_fits() -> None:
    plan = planned(4, 8)
    text = new_service("qwen3-8b", "L4", plan)
    assert plan.tried == [1, 2, 4]
    assert text.startswith("# on 4: fits\napiVersion: llmservice.dev/v1alpha1\n")
    service = yaml.safe_load(text)
    assert service["spec"]["accelerator"] == {"class": "L4", "count": 4}
    assert service["spec"]["model"] == {"uri": "hf://Qwen/Qwen3-8B"}


def test_a_model_whose_files_cannot_be_read_is_not_planned_again() -> None:
    plan = planned(verdict=None)
    text = new_service("qwen3-8b", "L4", plan)
    assert plan.tried == [1]
    assert text.startswith("# on 1: None\n")


def test_a_model_that_fits_nowhere_has_the_plan_for_the_most_gpus() -> None:
    text = new_service("qwen3-8b", "L4", planned())
    assert text.startswith("# on 64: does not fit\n")


def test_a_name_that_is_not_in_the_catalogue_gets_near_names() -> None:
    with pytest.raises(NotInCatalogue) as refused:
        new_service("Qwen3_8B", "L4", planned(1))
    assert str(refused.value).startswith(
        "Qwen3_8B is not in the catalogue: did you mean qwen3-8b or "
    )
    with pytest.raises(NotInCatalogue, match="zzz is not in the catalogue: `new --list`"):
        new_service("zzz", "L4", planned(1))


def test_the_command_lists_and_prints_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == list(MODELS)
    assert main(["new", "qwen3-8b", "--model-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# qwen3-8b: no verdict: ")
    assert "holds no model in the safetensors format" in printed
    assert yaml.safe_load(printed)["spec"]["accelerator"] == {"class": "H100", "count": 1}


def test_a_model_that_needs_an_object_of_its_own_is_left_out() -> None:
    with pytest.raises(Inexpressible, match="--chat-template needs an object of its own"):
        make_catalogue.entry_flags(["--chat-template=x.jinja"])


def test_an_entry_has_no_flag_that_new_computes() -> None:
    arguments = ["--tensor-parallel-size", "8", "--max-model-len", "4096"]
    assert make_catalogue.entry_flags(arguments) == {"--max-model-len": "4096"}
