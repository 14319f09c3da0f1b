"""Tests that the series of a metric are found and added."""

from shared_support.scrape import metric_of

SCRAPE = """\
# HELP requests_total Requests
requests_total{method="GET",code="200"} 3.0
requests_total{method="GET",code="500"} 1
requests_total{method="PUT",code="200"} 2
requests_total_created 100.0
vllm:running{engine="0"} 4.0
up 1
"""


def test_the_series_of_a_metric_are_added() -> None:
    assert metric_of(SCRAPE, "requests_total") == 6
    assert metric_of(SCRAPE, "requests_total", method="GET") == 4
    assert metric_of(SCRAPE, "requests_total", method="GET", code="500") == 1
    assert metric_of(SCRAPE, "up") == 1


def test_a_name_may_contain_a_colon() -> None:
    assert metric_of(SCRAPE, "vllm:running") == 4


def test_a_metric_without_series_is_zero() -> None:
    assert metric_of(SCRAPE, "absent") == 0
