from llmservice_operator.router.deadly import REFUSED_SECONDS, DeadlyRequests


def test_a_request_is_refused_after_two_replicas_ended_with_it() -> None:
    deadly = DeadlyRequests()
    assert not deadly.add(b"a", 1, now=0)
    assert deadly.seconds_refused(b"a", now=1) == 0
    assert deadly.add(b"a", 1, now=2)
    assert deadly.seconds_refused(b"a", now=2) == REFUSED_SECONDS
    assert deadly.seconds_refused(b"b", now=2) == 0
    assert deadly.seconds_refused(b"a", now=2 + REFUSED_SECONDS) == 0


def test_an_old_death_does_not_count() -> None:
    deadly = DeadlyRequests()
    deadly.add(b"a", 1, now=0)
    assert not deadly.add(b"a", 1, now=REFUSED_SECONDS + 1)


def test_the_oldest_deadly_request_is_forgotten() -> None:
    deadly = DeadlyRequests(capacity=2)
    for digest in (b"a", b"b", b"c"):
        deadly.add(digest, 2, now=0)
    assert len(deadly) == 2
    assert deadly.seconds_refused(b"a", now=0) == 0
    assert deadly.seconds_refused(b"c", now=0)


def test_the_refused_requests_are_known_with_the_time_that_is_left() -> None:
    deadly = DeadlyRequests()
    deadly.add(b"a", 2, now=0)
    deadly.add(b"once", 1, now=100)
    deadly.add(b"b", 2, now=100)
    assert deadly.refused(now=150) == [(b"a", 450), (b"b", 550)]
    assert deadly.refused(now=REFUSED_SECONDS) == [(b"b", 100)]
