"""Runs kubectl and helm on the cluster that KUBECONFIG names."""

import json
import os
import shutil
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chart_support.helm import CHART, REGISTRY, Manifest, Values, helm
from operator_support.processes import OperatorProcess
from rights_table import Right, rights_of

MISSING = (
    "the install tests need a cluster: run them by `make tier T=api`, or by `uv run localkube exec"
    " -- pytest charts`, or set KUBECONFIG and put kubectl on PATH"
)

CRD = "llmservices.llmservice.dev"
SMALLEST: Manifest = {
    "apiVersion": "llmservice.dev/v1alpha1",
    "kind": "LLMService",
    "metadata": {"name": "smollm2"},
    "spec": {"model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"}},
}

ADOPT = "--take-ownership"
"""Helm option that adopts objects of another release, such as the CRD of an earlier test."""


class NoCluster(Exception):
    """No cluster is reachable; the message says how to start one for these tests."""


def require_cluster() -> None:
    """Raise NoCluster unless KUBECONFIG is set and kubectl is installed."""
    if shutil.which("kubectl") is None or not os.environ.get("KUBECONFIG"):
        raise NoCluster(MISSING)


def kubectl(*args: str, stdin: Manifest | list[Manifest] | None = None) -> str:
    """Run kubectl with the objects, if any, as input. Return its output; fail with its message."""
    done = _kubectl(*args, stdin=stdin)
    assert done.returncode == 0, f"kubectl {' '.join(args)}: {done.stderr}"
    return done.stdout


def refusal(*args: str, stdin: Manifest | None = None) -> str:
    """Return kubectl's error message, or an empty string if the command succeeds."""
    done = _kubectl(*args, stdin=stdin)
    return done.stderr.strip() if done.returncode != 0 else ""


def _kubectl(
    *args: str, stdin: Manifest | list[Manifest] | None
) -> subprocess.CompletedProcess[str]:
    if isinstance(stdin, list):
        stdin = {"apiVersion": "v1", "kind": "List", "items": stdin}
    text = json.dumps(stdin) if stdin is not None else None
    return subprocess.run(
        ["kubectl", *args], input=text, capture_output=True, text=True, timeout=120
    )


def read(*args: str) -> Any:
    """Return the parsed output of `kubectl get`; None when the object does not exist."""
    text = kubectl("get", *args, "--ignore-not-found", "--output=json")
    return json.loads(text) if text else None


def read_all(*args: str) -> list[Manifest]:
    """Return the objects that `kubectl get` lists, for which it prints nothing if there is none."""
    found: list[Manifest] = (read(*args) or {"items": []})["items"]
    return found


def rights(user: str, namespace: str) -> set[Right]:
    """Return the rights of a user in a namespace, as the API server's authorizer lists them."""
    review = kubectl(
        *("create", f"--as={user}", "--validate=ignore", "--output=json", "-f-"),
        stdin={
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        },
    )
    return rights_of(json.loads(review)["status"]["resourceRules"])


@dataclass
class Release:
    """One release of the chart, and its namespaces. The test removes both at the end."""

    name: str = field(default_factory=lambda: f"chart-{uuid.uuid4().hex[:8]}")
    namespaces: list[str] = field(default_factory=list)

    @property
    def full_name(self) -> str:
        return f"{self.name}-llmservice-operator"

    @property
    def account(self) -> str:
        return f"system:serviceaccount:{self.name}:{self.full_name}"

    def make_namespace(self, name: str) -> str:
        """Create a namespace that admits only restricted pods; return its name."""
        label = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = {"name": name, "labels": label}
        kubectl(
            "create", "-f-", stdin={"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        )
        self.namespaces.append(name)
        return name

    def install(
        self,
        values: Values | None = None,
        *options: str,
        chart: Path = CHART,
        verb: str = "install",
    ) -> str:
        return helm(
            *(verb, self.name, str(chart), "--namespace", self.name),
            *("--values", str(REGISTRY), "--values", "-", *options),
            stdin=json.dumps(values or {}),
        )

    def uninstall(self) -> None:
        helm("uninstall", self.name, "--namespace", self.name, "--ignore-not-found")

    def deployment(self) -> Manifest | None:
        found: Manifest | None = read("deployment", self.full_name, "--namespace", self.name)
        return found


def operator_of(release: Release, log: Path) -> OperatorProcess:
    """Start the operator as a process, with the settings of the installed Deployment except the
    health port."""
    deployment = release.deployment()
    assert deployment is not None
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    settings = {
        each["name"].removeprefix("LLMSERVICE_OPERATOR_"): each["value"]
        for each in container["env"]
        if "value" in each
    }
    del settings["HEALTH_PORT"]  # several operators share this machine
    return OperatorProcess(log, release.name, **settings)
