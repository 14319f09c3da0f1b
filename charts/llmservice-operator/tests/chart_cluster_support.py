"""Runs kubectl and helm on the cluster that KUBECONFIG names."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

from chart_support import Manifest
from rights_table import Right, rights_of

MISSING = (
    "the install tests need a cluster: run them by `make tier T=api`, or by `uv run localkube exec"
    " -- pytest charts`, or set KUBECONFIG and put kubectl on PATH"
)


class NoCluster(Exception):
    """Says how to get a cluster for these tests."""


def require_cluster() -> None:
    """Raise NoCluster unless KUBECONFIG and kubectl are here."""
    if shutil.which("kubectl") is None or not os.environ.get("KUBECONFIG"):
        raise NoCluster(MISSING)


def kubectl(*args: str, stdin: Manifest | list[Manifest] | None = None) -> str:
    """Run kubectl on the objects, if any, and return its output; fail with its message."""
    if isinstance(stdin, list):
        stdin = {"apiVersion": "v1", "kind": "List", "items": stdin}
    text = json.dumps(stdin) if stdin is not None else None
    done = subprocess.run(
        ["kubectl", *args], input=text, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"kubectl {' '.join(args)}: {done.stderr}"
    return done.stdout


def read(*args: str) -> Any:
    """What `kubectl get` answers, as JSON; None where the object does not exist."""
    text = kubectl("get", *args, "--ignore-not-found", "--output=json")
    return json.loads(text) if text else None


def rights(user: str, namespace: str) -> set[Right]:
    """What the API server's authorizer lets this user do in a namespace, by its own account."""
    review = kubectl(
        *("create", f"--as={user}", "--validate=ignore", "--output=json", "-f-"),
        stdin={
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        },
    )
    return rights_of(json.loads(review)["status"]["resourceRules"])


def eventually(holds: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Wait until the condition holds; fail with `what` when it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"after {seconds:.0f} s still not: {what}"
        time.sleep(0.2)
