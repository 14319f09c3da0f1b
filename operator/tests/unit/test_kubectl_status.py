"""Tests the screen of `kubectl llm status` on statuses that the operator's own code builds."""

import difflib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llmservice_operator.api import Manifest
from llmservice_operator.api.autoscaling import ScalingProvider
from llmservice_operator.desired import Autoscaler
from llmservice_operator.desired.provider import ProviderPlan
from llmservice_operator.kubectl_plugin.screen import as_json, console_for, printable, show
from llmservice_operator.kubectl_plugin.status import status_screen
from llmservice_operator.kubectl_plugin.story import Story, tell_story
from llmservice_operator.load_status import LoadView
from llmservice_operator.status import build_status
from llmservice_operator.workload import EnginePin, Observation, observe_service
from operator_support.pods import RUNNING, ago
from operator_support.report import a_report
from operator_support.services import NOW, a_body, a_deployment, a_pod, a_service

SCREENS = Path(__file__).with_name("screens")
PIN = EnginePin("registry/gpu:1", "0.32.0", "nvidia")
NO_NODE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


def loaded() -> Story:
    """A service under more load than its maximum sustains, with a router and a price."""
    spec = {
        "accelerator": {"type": "nvidia", "class": "H100", "count": 2},
        "autoscaling": {"minReplicas": 1, "maxReplicas": 2, "metric": "EffectiveGPUUtilization"},
        "slo": {"ttftMilliseconds": 500, "itlMilliseconds": 50, "objectivePercent": 95},
    }
    decisions = [
        {"time": ago(90), "fromReplicas": 1, "toReplicas": 2, "reason": "The load was 170 %."},
        {"time": ago(9000), "fromReplicas": 2, "toReplicas": 1, "reason": "The load was 40 %."},
    ]
    before = {
        "autoscaling": {"desiredReplicas": 2, "current": 40, "decisions": decisions},
        "router": {"phase": "Serving", "since": ago(3600), "ready": "2/2"},
    }
    report = a_report(
        at=NOW.timestamp(),
        demand_percent=301.0,
        attainment_percent=82.0,
        ttft_p95_milliseconds=1234.0,
        itl_p95_milliseconds=31.0,
    )
    seen = Observation(
        desired=2,
        replicas=2,
        updated_replicas=2,
        ready_replicas=2,
        is_rolled_out=True,
        has_loaded_model=True,
    )
    view = LoadView(ProviderPlan(Autoscaler(ScalingProvider.EXTERNAL)), report)
    service = a_service(spec, status=before)
    built = build_status(service, PIN, seen, NOW, view=view, gpu_price=Decimal("2.5"))
    status = {**built.status, "router": before["router"]}
    pods = [a_pod(RUNNING, ready=True, template=each, restartCount=each == "a") for each in "ab"]
    return story(spec, status, pods)


def without_a_gpu() -> Story:
    pods = [a_pod(unscheduled=NO_NODE, created=ago(700))]
    service = a_service()
    seen = observe_service(service, a_deployment(1, 1, 0), pods, None, NOW)
    return story({}, build_status(service, PIN, seen, NOW).status, pods)


def unseen() -> Story:
    return story({}, {}, [])


def suspended() -> Story:
    spec = {"suspend": True}
    service = a_service(spec)
    seen = observe_service(service, a_deployment(0, 0, 0, desired=0), [], None, NOW)
    return story(spec, build_status(service, PIN, seen, NOW).status, [])


def changed_a_moment_ago() -> Story:
    service = a_service()
    seen = observe_service(service, a_deployment(1, 1, 1), [], None, NOW)
    status = {**build_status(service, PIN, seen, NOW).status, "observedGeneration": 2}
    return story({}, status, [a_pod(RUNNING, ready=True)])


def story(spec: dict[str, Any], status: dict[str, Any], pods: list[Manifest]) -> Story:
    defaults = {"slo": spec["slo"]} if "slo" in spec else {}
    return tell_story(a_body({**spec, **defaults}, status=status), pods)


STORIES = (loaded, without_a_gpu, unseen, suspended, changed_a_moment_ago)


def plain(story: Story) -> str:
    file = io.StringIO()
    show(status_screen(story, NOW), console_for(file))
    return file.getvalue()


@pytest.mark.parametrize("tell", STORIES, ids=lambda each: each.__name__)
def test_the_screen_of_a_status_is_the_golden_one(
    tell: Callable[[], Story], update_golden: bool
) -> None:
    golden = SCREENS / f"{tell.__name__}.txt"
    printed = plain(tell())
    if update_golden:
        golden.write_text(printed)
    difference = difflib.unified_diff(
        golden.read_text().splitlines(), printed.splitlines(), "golden", "printed", lineterm=""
    )
    assert not list(difference), f"run `make golden` and review the difference of {golden.name}"


def test_every_screen_is_of_a_story() -> None:
    assert {path.stem for path in SCREENS.iterdir()} == {each.__name__ for each in STORIES}


def test_plain_output_has_no_colours_and_no_spaces_at_the_end_of_a_line() -> None:
    printed = plain(loaded())
    assert "\x1b" not in printed
    assert printed == "".join(f"{line.rstrip()}\n" for line in printed.splitlines())


def test_a_terminal_gets_colours_and_lines_of_its_width() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60, color_system="standard")
    show(status_screen(without_a_gpu(), NOW), console)
    assert "\x1b[31mNot ready" in file.getvalue()
    console = Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None)
    with console.capture() as captured:
        show(status_screen(without_a_gpu(), NOW), console)
    assert max(map(len, captured.get().splitlines())) <= 60


def test_a_narrow_terminal_folds_the_names_of_replicas_and_cuts_none() -> None:
    pods = [a_pod(RUNNING, ready=True, template="695d748cfb-with-a-long-name")]
    console = Console(file=io.StringIO(), force_terminal=True, width=50, color_system=None)
    with console.capture() as captured:
        show(status_screen(story({}, {}, pods), NOW), console)
    shown = captured.get()
    assert pods[0]["metadata"]["name"] not in shown
    assert "…" not in shown


def test_the_json_of_a_status_has_the_names_of_kubernetes_and_null_for_the_unknown() -> None:
    told = json.loads(json.dumps(as_json(loaded())))
    assert told["ready"]["reason"] == "Serving"
    assert told["readyReplicas"] == "2/2"
    assert told["slo"]["ttftP95"] == 1234
    assert told["decisions"][0]["toReplicas"] == 2
    assert told["dollarsPerHour"] == "10"
    assert json.loads(json.dumps(as_json(unseen())))["gpus"] is None


def test_a_message_with_control_characters_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\tc\n\x9bd") == "a[2Jb\tc\nd"
    spec: dict[str, Any] = {"model": {"uri": "hf://org/\x1b]0;title\x07model"}}
    assert "hf://org/]0;titlemodel" in plain(story(spec, {}, []))


def test_the_advice_of_a_reason_is_the_next_step_and_not_a_part_of_the_message() -> None:
    ready = without_a_gpu().ready
    assert ready.reason == "WaitingForGPU"
    assert NO_NODE.rstrip(".") in ready.message
    assert ready.next_step is not None
    assert ready.next_step.startswith("Add GPU nodes")
    assert ready.next_step not in ready.message


def test_status_imports_nothing_that_only_other_subcommands_need() -> None:
    asked = (
        "import sys, llmservice_operator.kubectl_plugin.command_line,"
        " llmservice_operator.kubectl_plugin.status;"
        "print(*({each.split('.')[0] for each in sys.modules}"
        " & {'aiohttp', 'cryptography', 'grpc', 'huggingface_hub', 'kopf', 'kubernetes',"
        " 'prometheus_client', 'pydantic', 're2', 'yaml'}))"
    )
    ran = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
