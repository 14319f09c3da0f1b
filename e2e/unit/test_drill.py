"""Tests what somebody on call reads in a drill, and that the pictures have panels to draw."""

from chart_support import dashboards
from drill import FAULTS, text_of
from pictures import PICTURES


def test_an_alert_is_printed_with_its_texts_and_the_link_to_its_runbook() -> None:
    alert = {
        "labels": {"severity": "critical", "alertname": "LLMServiceDown", "namespace": "ml"},
        "annotations": {"summary": "Down.", "description": "Since.", "runbook_url": "docs/a.md"},
    }
    _, _, text = text_of(alert).partition("  ")
    assert text == "CRITICAL LLMServiceDown\n  Down.\n  Since.\n  docs/a.md\n"


def test_every_drill_tells_its_cause() -> None:
    assert all(fault.__doc__ and fault.__doc__.endswith(".") for fault in FAULTS.values())


def test_every_picture_shows_panels_of_a_dashboard() -> None:
    titles = {it.stem: {each["title"] for each in dashboards.panels(it)} for it in dashboards.FILES}
    for dashboard, chosen in PICTURES.items():
        assert set(chosen) <= titles[dashboard]
