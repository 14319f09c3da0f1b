import difflib
from pathlib import Path

import pytest

from llmservice_operator.render import render_file
from llmservice_operator.settings import OperatorSettings
from operator_support.examples import EXAMPLES, GOLDEN, example_text, objects_in

MEAN_ALL = {"podSelector", "namespaceSelector"}
"""Selectors that the API server keeps even if empty, because an empty one selects everything."""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_becomes_the_objects_of_its_golden_file(
    example: Path, update_golden: bool
) -> None:
    rendered = render_file(example.read_text(), OperatorSettings())
    golden = GOLDEN / example.name
    if update_golden:
        golden.write_text(rendered)
    difference = difflib.unified_diff(
        golden.read_text().splitlines(), rendered.splitlines(), "golden", "rendered", lineterm=""
    )
    assert not list(difference), (
        f"operator/tests/golden/{example.name} is not what the code builds of the example: run "
        "`make golden` and review the difference"
    )


def test_every_golden_file_has_an_example() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {path.name for path in EXAMPLES}


def test_the_minimal_example_is_five_lines_long() -> None:
    lines = example_text("minimal").splitlines()
    assert len([line for line in lines if not line.startswith("#")]) == 5


def test_every_example_names_its_purpose() -> None:
    for example in EXAMPLES:
        lines = example.read_text().splitlines()
        assert lines[0].startswith("# For "), example
        assert lines[1].startswith("# "), example


def test_no_object_holds_an_empty_list_or_mapping_that_the_api_server_would_drop() -> None:
    def empties(value: object, path: str = "") -> list[str]:
        children = value.items() if isinstance(value, dict) else enumerate(value)  # type: ignore[arg-type]
        found: list[str] = []
        for key, child in children:
            if isinstance(child, dict | list) and key not in MEAN_ALL:
                found += empties(child, f"{path}.{key}") if child else [f"{path}.{key}"]
        return found

    for example in EXAMPLES:
        for manifest in objects_in(render_file(example.read_text(), OperatorSettings())):
            assert empties(manifest) == []
