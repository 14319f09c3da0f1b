from datetime import datetime, timedelta, timezone

from llmservice_operator.api.fields import timestamp


def test_a_moment_of_another_time_zone_is_written_in_utc_to_the_second() -> None:
    summer = timezone(timedelta(hours=2))

    assert timestamp(datetime(2026, 1, 1, 1, 30, 15, 999_999, summer)) == "2025-12-31T23:30:15Z"
