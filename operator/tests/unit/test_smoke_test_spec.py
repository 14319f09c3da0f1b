from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import Context, build_all
from llmservice_operator.workload import resolve_pin
from operator_support.services import SETTINGS, a_body, a_service, one

DEFAULT: dict[str, Any] = {"enabled": True, "timeoutSeconds": 60}
VARIABLES = {
    names.SMOKE_TEST_ENV,
    names.SMOKE_TEST_PROMPT_ENV,
    names.SMOKE_TEST_EXPECT_ENV,
    names.SMOKE_TEST_TIMEOUT_SECONDS_ENV,
}


@pytest.mark.parametrize(
    ("test", "variables"),
    [
        # The server tests itself by default, so pods of an earlier operator need no restart.
        (DEFAULT, {}),
        ({"timeoutSeconds": 61}, {names.SMOKE_TEST_TIMEOUT_SECONDS_ENV: "61"}),
        ({"enabled": False}, {names.SMOKE_TEST_ENV: "false"}),
        ({"enabled": False, "prompt": "Hi", "expect": "x"}, {names.SMOKE_TEST_ENV: "false"}),
        (
            # The kubelet would replace $(HF_TOKEN) with the value of the variable.
            {"prompt": "$(HF_TOKEN)", "expect": "^4$"},
            {
                names.SMOKE_TEST_PROMPT_ENV: "$$(HF_TOKEN)",
                names.SMOKE_TEST_EXPECT_ENV: "^4$$",
            },
        ),
    ],
)
def test_the_server_gets_only_settings_that_differ_from_its_default_test(
    test: dict[str, Any], variables: dict[str, str]
) -> None:
    service = a_service({"smokeTest": test})
    pin = resolve_pin(service, None, SETTINGS)
    workload = one("Deployment", build_all(Context.of(service, SETTINGS, pin)))
    (server,) = workload["spec"]["template"]["spec"]["containers"]
    found = {each["name"]: each.get("value") for each in server["env"]}
    assert {name: value for name, value in found.items() if name in VARIABLES} == variables


@pytest.mark.parametrize("pattern", ["(paris", "(?=a)", r"(a)\1", "a{1001}"])
def test_a_pattern_that_re2_cannot_read_is_refused(pattern: str) -> None:
    (found,) = LLMService.problems(a_body({"smokeTest": {"expect": pattern}}))
    assert str(found) == (
        "spec.smokeTest.expect: must be a regular expression in the syntax of RE2"
    )
