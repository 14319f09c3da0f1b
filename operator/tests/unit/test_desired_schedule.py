"""Tests which minimum number of replicas the schedule of a service requires, and until when."""

import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from cronsim import CronSim, CronSimError
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmservice_operator.api.schedule import ScheduledReplicas
from llmservice_operator.desired import schedule as module
from llmservice_operator.desired.schedule import Floor, floor_of

LEAD = 600.0
"""Seconds that replicas need until they are ready."""


def window(start: str, end: str, zone: str = "UTC", replicas: int = 2) -> ScheduledReplicas:
    return ScheduledReplicas(start=start, end=end, time_zone=zone, min_replicas=replicas)


DAY = window("0 8 * * *", "0 18 * * *")
NIGHT = window("0 22 * * *", "0 6 * * *")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def floor(now: str, *schedule: ScheduledReplicas, lead: float = LEAD) -> Floor:
    return floor_of(schedule, at(now), lead)


def test_without_a_schedule_there_is_no_floor() -> None:
    assert floor("2026-06-01 12:00") == Floor()
    assert Floor().look_again_seconds(at("2026-06-01 12:00")) is None


@pytest.mark.parametrize(
    ("now", "replicas", "changes"),
    [
        ("2026-06-01 07:49:59", 0, "2026-06-01 07:50"),
        ("2026-06-01 07:50:00", 2, "2026-06-01 08:00"),
        ("2026-06-01 08:00:00", 2, "2026-06-01 18:00"),
        ("2026-06-01 17:59:59", 2, "2026-06-01 18:00"),
        ("2026-06-01 18:00:00", 0, "2026-06-02 07:50"),
    ],
)
def test_replicas_run_from_a_cold_start_before_the_window_until_its_end(
    now: str, replicas: int, changes: str
) -> None:
    found = floor(now, DAY)
    assert found.replicas == replicas
    assert found.changes_at == at(changes)
    assert found.look_again_seconds(at(now)) == max((at(changes) - at(now)).total_seconds(), 1)


def test_the_floor_says_when_the_window_begins_and_when_it_ends() -> None:
    early, during, after = (floor(f"2026-06-01 {it}", DAY) for it in ("07:55", "09:00", "19:00"))
    assert (early.starts, early.ends) == (at("2026-06-01 08:00"), at("2026-06-01 18:00"))
    assert (during.starts, during.ends) == (None, at("2026-06-01 18:00"))
    assert (after.starts, after.ends) == (None, None)
    assert after.next_start == during.next_start == at("2026-06-02 08:00")


def test_replicas_that_have_started_for_a_window_stay_when_the_cold_start_becomes_shorter() -> None:
    early = floor("2026-06-01 07:55", DAY)
    assert early.started == at("2026-06-01 08:00")
    kept = floor_of([DAY], at("2026-06-01 07:56"), 0.0, early.started)
    assert (kept.replicas, kept.started) == (2, early.started)
    assert floor_of([DAY], at("2026-06-01 07:56"), 0.0).replicas == 0
    opened = floor_of([DAY], at("2026-06-01 08:00"), 0.0, early.started)
    assert (opened.replicas, opened.started) == (2, None)
    # The begin of an earlier window does not start replicas for the next one.
    assert floor_of([DAY], at("2026-06-02 07:49"), LEAD, early.started).replicas == 0


def test_all_windows_for_which_replicas_have_started_are_kept() -> None:
    later = window("5 8 * * *", "0 20 * * *", replicas=1)
    early = floor("2026-06-01 07:57", DAY, later)
    assert (early.starts, early.started) == (at("2026-06-01 08:00"), at("2026-06-01 08:05"))
    kept = floor_of([DAY, later], at("2026-06-01 07:58"), 0.0, early.started)
    assert (kept.replicas, kept.started) == (2, early.started)


def test_a_window_may_last_until_the_next_day() -> None:
    hours = [hour for hour in range(24) if floor(f"2026-06-01 {hour:02}:00", NIGHT).replicas]
    assert hours == [0, 1, 2, 3, 4, 5, 22, 23]


def test_a_window_that_begins_twice_stays_open() -> None:
    found = floor("2026-06-01 08:30", window("0 8,9 * * *", "0 18 * * *"))
    assert (found.replicas, found.ends) == (2, at("2026-06-01 18:00"))


def test_a_window_that_begins_when_another_one_ends_leaves_no_gap() -> None:
    found = floor("2026-06-01 08:00", window("0 8 * * *", "0 8,18 * * *"))
    assert found.replicas == 2


def test_the_window_with_the_most_replicas_counts() -> None:
    many = window("0 12 * * *", "0 13 * * *", replicas=5)
    found = floor("2026-06-01 12:30", DAY, many, NIGHT)
    assert (found.replicas, found.ends) == (5, at("2026-06-01 13:00"))
    assert floor("2026-06-01 13:30", DAY, many).replicas == 2
    assert found.next_start == at("2026-06-01 22:00")


def test_a_window_on_a_day_that_never_comes_requires_nothing() -> None:
    assert floor("2026-06-01 12:00", window("0 8 30 2 *", "0 18 * * *")) == Floor()


def test_a_window_whose_end_never_comes_stays_open() -> None:
    found = floor("2026-06-01 12:00", window("0 8 * * *", "0 8 30 2 *"))
    assert (found.replicas, found.ends) == (2, None)


def test_a_window_follows_the_clocks_of_its_time_zone() -> None:
    berlin = window("0 8 * * MON-FRI", "0 18 * * MON-FRI", "Europe/Berlin")
    # Friday is before the change of the clocks of 29 March, and Monday after it.
    opens = [now for now in hours_of("2026-03-27", 96) if floor_of([berlin], now, 0).replicas]
    assert (opens[0], opens[9]) == (at("2026-03-27 07:00"), at("2026-03-27 16:00"))
    assert (opens[10], opens[-1]) == (at("2026-03-30 06:00"), at("2026-03-30 15:00"))
    assert len(opens) == 20


def hours_of(day: str, number: int) -> Iterator[datetime]:
    return (at(day) + timedelta(hours=hour) for hour in range(number))


def test_a_time_that_the_clocks_skip_counts_as_the_next_moment() -> None:
    # On this day, 02:00 CET is 03:00 CEST.
    skipped = window("30 2 * * *", "0 4 * * *", "Europe/Berlin")
    assert floor("2026-03-29 00:59:59", skipped, lead=0).replicas == 0
    assert floor("2026-03-29 01:00", skipped, lead=0).replicas == 2
    assert floor("2026-03-29 02:00", skipped, lead=0).replicas == 0
    found = floor("2026-03-29 00:55", skipped)
    assert found.starts is not None
    assert found.starts.isoformat() == "2026-03-29T03:00:00+02:00"


def test_a_time_that_comes_twice_counts_once() -> None:
    # On this day, 03:00 CEST is 02:00 CET.
    twice = window("30 2 * * *", "0 4 * * *", "Europe/Berlin")
    moments = [at("2026-10-25 00:00") + timedelta(minutes=minute) for minute in range(240)]
    opens = [moment for moment in moments if floor_of([twice], moment, 0).replicas]
    assert (opens[0], opens[-1]) == (at("2026-10-25 00:30"), at("2026-10-25 02:59"))
    assert len(opens) == 150
    ends = window("0 1 * * *", "30 2 * * *", "Europe/Berlin")
    closes = [it for it in moments if not floor_of([ends], it, 0).replicas]
    assert (closes[0], len(closes)) == (at("2026-10-25 00:30"), 210)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Lord_Howe", "America/New_York"])
def test_the_time_until_the_next_look_is_never_too_long(zone: str) -> None:
    schedule = [window("30 1 * * *", "15 2,7 * * *", zone), window("*/40 5 * * *", "0 6 * * *")]
    for begin in ("2026-03-08", "2026-03-29", "2026-04-05", "2026-10-04", "2026-10-25"):
        moments = [at(begin) + timedelta(minutes=15 * it - 720) for it in range(144)]
        last = floor_of(schedule, moments[0], LEAD)
        for now in moments[1:]:
            found = floor_of(schedule, now, LEAD)
            assert last.changes_at is not None
            if found.replicas != last.replicas:
                assert last.changes_at <= now
            last = found


def test_a_window_that_begins_every_minute_is_found_in_few_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[str] = []

    class Counted(CronSim):
        def __next__(self) -> datetime:
            steps.append(" ".join(self.parts))
            return super().__next__()

    monkeypatch.setattr(module, "CronSim", Counted)
    schedule = [window("* * * * *", "*/2 * * * *", zone) for zone in ("UTC", "Europe/Berlin")]
    floor_of(schedule, at("2026-06-01 12:00"), LEAD)
    # The next and the last begin and end of each window are one step away.
    assert len(steps) == 8


def test_the_time_zones_come_with_the_package() -> None:
    zoneinfo.reset_tzpath(to=())
    try:
        zoneinfo.ZoneInfo.clear_cache()
        assert window("0 8 * * *", "0 9 * * *", "Asia/Kathmandu").time_zone == "Asia/Kathmandu"
        with pytest.raises(ValidationError, match="IANA"):
            window("0 8 * * *", "0 9 * * *", "Europe/Atlantis")
    finally:
        zoneinfo.reset_tzpath()


def parts(least: int, most: int) -> st.SearchStrategy[str]:
    """Return fields of a cron expression whose numbers are in these bounds, or just outside."""
    number = st.integers(max(least - 1, 0), most + 1).map(str)
    ends = st.tuples(number, number).map("-".join)
    steps = st.tuples(st.one_of(st.just("*"), ends), st.integers(0, 9).map(str)).map("/".join)
    return st.lists(st.one_of(number, ends, steps), min_size=1, max_size=2).map(",".join)


@given(st.tuples(parts(0, 59), parts(0, 23), parts(1, 31), parts(1, 12), parts(0, 7)).map(" ".join))
def test_a_cron_expression_is_accepted_exactly_if_it_can_be_read(text: str) -> None:
    end = "0 0 1 1 0"
    # A window does not end when it begins.
    assume(text != end)
    try:
        CronSim(text, at("2026-06-01"))
        is_read = True
    except CronSimError as error:
        is_read = "day-of-month" in str(error) and has_a_month_without_this_day(text)
    try:
        window(text, end)
        is_accepted = True
    except ValidationError:
        is_accepted = False
    assert is_accepted == is_read


def has_a_month_without_this_day(text: str) -> bool:
    """Return whether the expression is only refused because its day never comes."""
    minute, hour, day, _, _ = text.split()
    try:
        CronSim(f"{minute} {hour} {day} * *", at("2026-06-01"))
    except CronSimError:
        return False
    return True
