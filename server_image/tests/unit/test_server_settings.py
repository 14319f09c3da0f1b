from pathlib import Path

import pytest

from llmservice_server.settings import InvalidSetting, ServerSettings


def test_an_empty_environment_gives_the_defaults() -> None:
    assert ServerSettings.from_environment({}) == ServerSettings()
    assert ServerSettings.from_environment({"LLMSERVICE_API_PORT": ""}).api_port == 8000


def test_reads_every_setting_from_its_variable() -> None:
    settings = ServerSettings.from_environment(
        {
            "LLMSERVICE_API_PORT": "1",
            "LLMSERVICE_MANAGEMENT_PORT": "2",
            "LLMSERVICE_PRE_STOP_SECONDS": "0.5",
            "LLMSERVICE_DRAIN_TIMEOUT_SECONDS": "4",
            "LLMSERVICE_REQUEST_TIMEOUT_SECONDS": "0",
            "LLMSERVICE_ENGINE_HANG_SECONDS": "2.5",
            "LLMSERVICE_MAX_BODY_BYTES": "100",
            "LLMSERVICE_MAX_CHOICES": "3",
            "LLMSERVICE_API_KEYS_DIRECTORY": "/keys",
            "LLMSERVICE_SHARED_CACHE_DIRECTORY": "/shared",
            "LLMSERVICE_CACHE_TAKEOVER_SECONDS": "7.5",
            "LLMSERVICE_ADMINISTRATION_ROUTES": "true",
            "LLMSERVICE_SLO_TTFT_MILLISECONDS": "500",
            "LLMSERVICE_SLO_ITL_MILLISECONDS": "40.5",
            "LLMSERVICE_TERMINATION_LOG": "/tmp/why",
        }
    )
    assert settings == ServerSettings(
        *(1, 2, 0.5, 4.0, 0.0, 2.5, 100, 3, Path("/keys"), Path("/shared"), 7.5, True),
        *(500.0, 40.5, Path("/tmp/why")),
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"LLMSERVICE_API_PORT": "http"},
            "LLMSERVICE_API_PORT is 'http'; it must be a number",
        ),
        (
            {"LLMSERVICE_API_PORT": "70000"},
            "LLMSERVICE_API_PORT is 70000; it must be between 0 and 65535",
        ),
        (
            {"LLMSERVICE_PRE_STOP_SECONDS": "nan"},
            "LLMSERVICE_PRE_STOP_SECONDS is nan; it must be between 0 and 86400",
        ),
        (
            {"LLMSERVICE_ENGINE_HANG_SECONDS": "0"},
            "LLMSERVICE_ENGINE_HANG_SECONDS is 0; it must be between 0.5 and 86400",
        ),
        (
            {"LLMSERVICE_MAX_BODY_BYTES": "0"},
            "LLMSERVICE_MAX_BODY_BYTES is 0; it must be between 1 and 1099511627776",
        ),
        (
            {"LLMSERVICE_ADMINISTRATION_ROUTES": "yes"},
            "LLMSERVICE_ADMINISTRATION_ROUTES is 'yes'; it must be true or false",
        ),
        (
            {"LLMSERVICE_API_PORT": "9090"},
            "LLMSERVICE_API_PORT and LLMSERVICE_MANAGEMENT_PORT are both 9090; "
            "give them different ports",
        ),
    ],
)
def test_says_which_variable_is_wrong_and_what_it_may_be(
    environment: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidSetting) as refused:
        ServerSettings.from_environment(environment)
    assert str(refused.value) == message
