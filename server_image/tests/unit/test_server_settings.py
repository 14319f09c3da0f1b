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
            "LLMSERVICE_CA_BUNDLE": "/ca.crt",
            "LLMSERVICE_SHARED_CACHE_DIRECTORY": "/shared",
            "LLMSERVICE_CACHE_TAKEOVER_SECONDS": "7.5",
            "LLMSERVICE_ADMINISTRATION_ROUTES": "true",
            "LLMSERVICE_SLO_TTFT_MILLISECONDS": "500",
            "LLMSERVICE_SLO_ITL_MILLISECONDS": "40.5",
            "LLMSERVICE_SMOKE_TEST": "false",
            "LLMSERVICE_SMOKE_TEST_PROMPT": "2 + 2 =",
            "LLMSERVICE_SMOKE_TEST_EXPECT": "^ ?4",
            "LLMSERVICE_SMOKE_TEST_TIMEOUT_SECONDS": "20",
            "LLMSERVICE_REPLICA_NAMESPACE": "models",
            "LLMSERVICE_REPLICA_SERVICE": "chat",
            "LLMSERVICE_REPLICA_POD": "chat-1",
            "LLMSERVICE_REPLICA_UID": "u-1",
            "LLMSERVICE_TERMINATION_LOG": "/tmp/why",
        }
    )
    assert settings == ServerSettings(
        api_port=1,
        management_port=2,
        pre_stop_seconds=0.5,
        drain_timeout_seconds=4.0,
        request_timeout_seconds=0.0,
        engine_hang_seconds=2.5,
        max_body_bytes=100,
        max_choices=3,
        api_keys_directory=Path("/keys"),
        ca_bundle=Path("/ca.crt"),
        shared_cache_directory=Path("/shared"),
        cache_takeover_seconds=7.5,
        administration_routes=True,
        slo_ttft_milliseconds=500.0,
        slo_itl_milliseconds=40.5,
        smoke_test=False,
        smoke_test_prompt="2 + 2 =",
        smoke_test_expect="^ ?4",
        smoke_test_timeout_seconds=20.0,
        replica_namespace="models",
        replica_service="chat",
        replica_pod="chat-1",
        replica_uid="u-1",
        termination_log=Path("/tmp/why"),
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
            {"LLMSERVICE_API_PORT": "9" * 5000},
            f"LLMSERVICE_API_PORT is {'9' * 5000}; it must be between 0 and 65535",
        ),
        (
            {"LLMSERVICE_DRAIN_TIMEOUT_SECONDS": "inf"},
            "LLMSERVICE_DRAIN_TIMEOUT_SECONDS is inf; it must be between 0 and 86400",
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


def test_every_wrong_variable_is_named_at_once() -> None:
    with pytest.raises(InvalidSetting) as refused:
        ServerSettings.from_environment(
            {"LLMSERVICE_API_PORT": "http", "LLMSERVICE_MAX_CHOICES": "0"}
        )
    assert str(refused.value) == (
        "LLMSERVICE_API_PORT is 'http'; it must be a number; "
        "LLMSERVICE_MAX_CHOICES is 0; it must be between 1 and 16384"
    )


def test_only_from_environment_reads_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSERVICE_API_PORT", "1")
    assert ServerSettings().api_port == 8000
    assert ServerSettings.from_environment({}).api_port == 8000


def test_other_variables_of_the_pod_are_not_settings() -> None:
    environment = {
        "LLMSERVICE_ENGINE_ERROR_FILE": "/e",
        "API_PORT": "1",
        "llmservice_api_port": "2",
    }
    assert ServerSettings.from_environment(environment) == ServerSettings()


def test_a_server_that_does_not_know_its_whole_identity_has_none() -> None:
    assert ServerSettings().identity is None
    assert ServerSettings(replica_pod="chat-1", replica_uid="u-1").identity is None
