import pytest

import spec_page


def test_the_page_shows_the_type_the_limits_and_an_example_of_a_field() -> None:
    row = next(line for line in spec_page.page() if line.startswith("| `maxReplicas`"))

    assert "| integer; required; 1 to 1,000 |" in row
    assert "`maxReplicas: " in row
    assert "](../crds/examples/" in row


def test_a_field_that_no_spec_sets_is_an_error() -> None:
    field = spec_page.FieldOfSpec(("engine", "newField"), {"type": "string"}, is_required=False)

    with pytest.raises(LookupError, match=r"no example sets engine\.newField"):
        spec_page.example(field, spec_page.examples())
