"""Tests `kubectl llm` as a user runs it: through kubectl, on a service that the operator runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES, PODS
from operator_support.processes import (
    Api,
    OperatorProcess,
    make_pods_ready,
    make_service,
    until_pods,
)
from shared_support.waiting import eventually


def llm(*arguments: str, kubeconfig: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run `kubectl llm` with the plugin of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["kubectl", "llm", *arguments],
        env={**os.environ, "PATH": path, **({"KUBECONFIG": kubeconfig} if kubeconfig else {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def running(api: Api, operator: OperatorProcess, served: str, name: str) -> str:
    """Name of a service whose replica is ready, as far as the API server knows."""
    api.create(LLMSERVICES, make_service(name, served))
    until_pods(api, served, name, 1)
    make_pods_ready(api, served, name)

    def is_serving() -> bool:
        status = api.get(LLMSERVICES, served, name)["status"]
        return bool(status["conditions"][0]["reason"] == "Serving")

    eventually(is_serving)
    return name


def test_status_shows_the_service_as_text_and_as_json(served: str, running: str) -> None:
    shown = llm("status", running, "-n", served)
    assert shown.returncode == 0, shown.stderr
    first, *_ = shown.stdout.splitlines()
    assert first.startswith(f"{served}/{running}  Ready: Serving")
    assert f"http://{running}.{served}.svc" in shown.stdout

    told = json.loads(llm("status", "-n", served, running, "-o", "json").stdout)
    assert (told["ready"]["status"], told["readyReplicas"]) == ("True", "1/1")
    assert [each["state"] for each in told["replicas"]] == ["Ready"]


def test_a_missing_service_and_a_missing_context_are_named(served: str, api: Api) -> None:
    missing = llm("status", "nobody", "-n", served)
    assert missing.returncode == 1
    assert '"nobody" not found' in missing.stderr
    assert "kubectl get llm -A" in missing.stderr
    elsewhere = llm("status", "nobody", "--context", "elsewhere")
    assert (elsewhere.returncode, elsewhere.stdout) == (1, "")
    assert "context: elsewhere" in elsewhere.stderr


def test_logs_says_why_there_are_none(api: Api, served: str, running: str) -> None:
    assert "no container server" in llm("logs", running, "-n", served, "--previous").stderr
    assert "has no router pods" in llm("logs", running, "-n", served, "--router").stderr
    (pod,) = api.list_all(PODS, served, labelSelector=f"llmservice.dev/name={running}")
    known = llm("logs", running, "-n", served, "--pod", "other").stderr
    assert f"choose one of {pod['metadata']['name']}" in known
    # No kubelet runs here, so the log of the pod is empty.
    asked = llm("logs", running, "-n", served)
    assert (asked.returncode, asked.stdout) == (0, "")


def test_restart_replaces_the_pods_once_and_a_second_one_waits_for_its_end(
    api: Api, served: str, running: str
) -> None:
    (before,) = api.list_all(PODS, served, labelSelector=f"llmservice.dev/name={running}")
    begun = llm("restart", running, "-n", served, "--timeout=1s")
    assert begun.stdout.startswith(f"{running} restarts 1 replica\n"), begun.stderr
    assert "has not ended within 1 s" in begun.stderr

    # The rollout creates the new replica before it ends the old one.
    until_pods(api, served, running, 2)
    again = llm("restart", running, "-n", served, "--timeout=0")
    assert again.returncode == 1
    assert "pass --force" in again.stderr

    make_pods_ready(api, served, running)
    selector = f"llmservice.dev/name={running}"

    def is_replaced() -> bool:
        pods = api.list_all(PODS, served, labelSelector=selector)
        return [each["metadata"]["name"] for each in pods] != [before["metadata"]["name"]] and (
            len(pods) == 1
        )

    eventually(is_replaced)
    annotations = api.get(DEPLOYMENTS, served, running)["spec"]["template"]["metadata"]
    assert "kubectl.kubernetes.io/restartedAt" in annotations["annotations"]
