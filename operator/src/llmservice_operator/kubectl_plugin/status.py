"""`kubectl llm status`: the state of a service on one screen."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from llmservice_operator.kubectl_plugin.kubectl import Kubectl
from llmservice_operator.kubectl_plugin.objects import read_service_and_replicas
from llmservice_operator.kubectl_plugin.screen import (
    age,
    cell,
    console_for,
    facts,
    show,
    show_json,
    table,
)
from llmservice_operator.kubectl_plugin.story import Finding, Slo, Story, tell_story

SHOWN_REPLICAS: Final = 20
"""Replicas that fit on one screen. Those that are not ready come first."""
SHOWN_DECISIONS: Final = 5

_STYLES: Final = {"True": "green", "False": "red"}


def show_status(kubectl: Kubectl, name: str, *, as_json: bool) -> None:
    """Print the state of a service. Raises KubectlFailed."""
    story = tell_story(*read_service_and_replicas(kubectl, name))
    if as_json:
        show_json(story)
    else:
        show(status_screen(story, datetime.now(UTC)), console_for())


def status_screen(story: Story, now: datetime) -> RenderableType:
    """Return the screen of a service."""
    return Group(*_parts(story, now))


def _parts(story: Story, now: datetime) -> Iterator[RenderableType]:
    ready = story.ready
    word = {"True": "Ready", "False": "Not ready"}.get(ready.status, "Unknown")
    yield Text.assemble(
        (f"{story.namespace}/{story.name}", "bold"),
        "  ",
        (word, _STYLES.get(ready.status, "yellow")),
        f": {ready.reason}" + (f" for {age(ready.since, now)}" if ready.since else ""),
    )
    yield Text()
    yield facts(_facts(story))
    for other in story.others:
        yield Text()
        yield facts(_of_condition(other))
    yield from _recommendations(story)
    yield from _decisions(story, now)
    yield from _replicas(story, now)


def _facts(story: Story) -> Iterator[tuple[str, Text | None]]:
    ready = story.ready
    yield ("State" if ready.status == "True" else "Waits for"), cell(ready.message)
    yield "Next step", _optional(ready.next_step)
    if not story.is_current and ready.since is not None:
        yield "Note", Text("The operator has not handled the latest change of the spec yet.")
    yield "Replicas", cell(_counts(story))
    yield "Load", _optional(_load(story))
    yield "SLO", _slo(story.slo)
    yield "Router", _optional(story.router)
    yield "Cost", _optional(_cost(story))
    yield "Model", cell(story.model)
    yield "Engine", _optional(story.engine_version and f"vLLM {story.engine_version}")
    yield "Image", _optional(story.image)
    yield "URL", _optional(story.url)


def _optional(text: str | None) -> Text | None:
    return None if not text else cell(text)


def _counts(story: Story) -> str:
    parts = [f"{story.ready_replicas or '?'} ready"]
    if story.updated_replicas is not None:
        parts.append(f"{story.updated_replicas} of the present spec")
    if story.max_replicas is not None:
        parts.append(f"{story.min_replicas} to {story.max_replicas} with the load")
    if story.scaled_by is not None:
        parts.append(f"scaled by {story.scaled_by}")
    return ", ".join(parts)


def _load(story: Story) -> str | None:
    if story.load is None:
        return None
    return f"{story.load} of {story.metric} per replica (current/target)"


def _cost(story: Story) -> str | None:
    if not story.gpus:
        return None
    gpus = f"{story.gpus} GPU{'' if story.gpus == 1 else 's'}"
    if story.dollars_per_hour is None:
        return f"{gpus}; the accelerator class has no pricePerHour"
    return f"{gpus}, ${story.dollars_per_hour} per hour (${story.dollars_per_gpu_hour} per GPU)"


def _slo(slo: Slo | None) -> Text | None:
    if slo is None:
        return None
    if slo.attainment_percent is None:
        text = "not measured yet"
    else:
        text = f"{slo.attainment_percent} % of the requests within the limits"
    parts = [f"{text}, objective {slo.objective_percent} %"]
    latencies = (("TTFT", slo.ttft_p95, slo.ttft_limit), ("ITL", slo.itl_p95, slo.itl_limit))
    for name, measured, limit in latencies:
        if limit is not None:
            value = "?" if measured is None else measured
            parts.append(f"{name} p95 {value} ms, limit {limit} ms")
    style = {True: "green", False: "red"}.get(slo.met, "") if slo.met is not None else ""
    return Text("; ".join(parts), style=style)


def _of_condition(finding: Finding) -> Iterator[tuple[str, Text | None]]:
    yield finding.type, Text(f"{finding.status}: {finding.reason}", style="yellow")
    yield "", cell(finding.message)
    yield "Next step", _optional(finding.next_step)


def _recommendations(story: Story) -> Iterator[RenderableType]:
    if story.recommendations:
        yield Text()
        yield table(
            ("RECOMMENDATION", "VALUE", "REASON"),
            [(each["field"], each["value"], each["reason"]) for each in story.recommendations],
        )


def _decisions(story: Story, now: datetime) -> Iterator[RenderableType]:
    if story.decisions:
        yield Text()
        yield table(
            ("DECISION", "REPLICAS", "REASON"),
            [
                (
                    f"{age(each['time'], now)} ago",
                    f"{each['fromReplicas']} -> {each['toReplicas']}",
                    each["reason"],
                )
                for each in story.decisions[:SHOWN_DECISIONS]
            ],
        )


def _replicas(story: Story, now: datetime) -> Iterator[RenderableType]:
    if not story.replicas:
        return
    shown = sorted(story.replicas, key=lambda each: each.ready)[:SHOWN_REPLICAS]
    yield Text()
    yield table(
        ("REPLICA", "STATE", "RESTARTS", "AGE", "NODE"),
        [
            (
                each.name,
                cell(each.state, "green" if each.ready else "yellow"),
                each.restarts,
                age(each.created, now),
                each.node,
            )
            for each in shown
        ],
    )
    if len(shown) < len(story.replicas):
        yield Text(f"and {len(story.replicas) - len(shown)} more replicas")
