"""Gives the end-to-end tests and the demo access to a cluster: kubectl, helm, waiting and HTTP.

Objects are read and written with the command-line clients, as users do.
"""

import atexit
import json
import os
import re
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shared_support.waiting import eventually

ROOT = Path(__file__).resolve().parent.parent
Object = dict[str, Any]

PATIENCE = 300.0
"""Time limit in seconds of a wait that does not test speed. A server may start slowly."""


class CommandFailed(AssertionError):
    """A command failed, or did not have the expected effect. The message explains the failure."""


@dataclass(frozen=True)
class Cluster:
    """Access to a cluster by kubectl and helm."""

    prefix: tuple[str, ...] = ()
    """Command that runs other commands in the cluster's network; empty if it is not needed."""

    def run(self, *command: str, stdin: str | None = None) -> str:
        """Run a command in the cluster's network; return its standard output.

        Raises:
            CommandFailed: the command failed. The message contains its output.

        """
        done = subprocess.run(
            [*self.prefix, *command], cwd=ROOT, input=stdin, capture_output=True, text=True
        )
        if done.returncode:
            raise CommandFailed(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def show(self, *command: str) -> None:
        """Run a command in the cluster's network. Its output goes to the terminal at once.

        Raises:
            CommandFailed: the command failed.

        """
        status = subprocess.run([*self.prefix, *command], cwd=ROOT, check=False).returncode
        if status:
            raise CommandFailed(f"{' '.join(command)}: ended with status {status}")

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl; return its standard output."""
        return self.run("kubectl", *arguments, stdin=stdin)

    def read(self, kind: str, name: str, namespace: str) -> Object | None:
        """Return one object, or None if it does not exist."""
        text = self.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def list(self, kind: str, namespace: str, selector: str = "") -> list[Object]:
        """Return all objects of a kind in a namespace, in the API server's order."""
        text = self.kubectl("get", kind, "-n", namespace, "-l", selector, "-o", "json")
        items: list[Object] = json.loads(text)["items"]
        return items

    def apply(self, manifest: Mapping[str, Any] | Path, namespace: str) -> None:
        """Apply a file or an object as `kubectl apply` does."""
        if isinstance(manifest, Path):
            self.kubectl("apply", "-n", namespace, "-f", str(manifest))
        else:
            self.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(manifest))

    def patch_spec(self, name: str, namespace: str, spec: Mapping[str, Any]) -> None:
        """Merge these fields into the spec of an LLMService. None removes a field."""
        patch = json.dumps({"spec": spec})
        self.kubectl("patch", "llm", name, "-n", namespace, "--type=merge", f"--patch={patch}")

    def wait_until_no_pods(self, namespace: str) -> None:
        """Wait until the pods of a namespace are gone.

        Raises:
            CommandFailed: some still exist after PATIENCE seconds.

        """
        options = ("-n", namespace, "--for=delete", f"--timeout={PATIENCE:g}s")
        self.kubectl("wait", "pods", "--all", *options)

    def create_namespace(self, name: str) -> None:
        """Create a namespace that admits only pods of the restricted Pod Security Standard."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = {"name": name, "labels": labels}
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def address_of(self, name: str, namespace: str) -> str:
        """Return a URL of a Service object, with its cluster address or a forwarded port.

        A port is forwarded if this process is outside the cluster's network. Inside the network,
        wait until the address accepts connections. kube-proxy updates a node once a second, so a
        pod may be Ready before its Service object is reachable.
        """
        found = self.read("service", name, namespace)
        assert found is not None, f"no Service object {namespace}/{name}"
        if not self.prefix and "LOCALKUBE_NAME" not in os.environ:
            return forward_port(name, namespace)
        host, port = found["spec"]["clusterIP"], found["spec"]["ports"][0]["port"]
        if not self.prefix:
            eventually(
                partial(accepts_connections, host, port),
                within=30,
                describe=f"somebody answers for service {namespace}/{name}",
            )
        return f"http://{host}:{port}"


def accepts_connections(host: str, port: int) -> bool:
    """Return True when a connection succeeds; raise OSError when nothing listens."""
    with socket.create_connection((host, port), timeout=5):
        return True


def forward_port(name: str, namespace: str) -> str:
    """Forward a local port to a Service object; return its URL, valid until this process ends.

    Raises:
        CommandFailed: kubectl forwarded no port.

    """
    command = ["kubectl", "port-forward", "-n", namespace, f"service/{name}", ":80"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    atexit.register(process.terminate)
    assert process.stdout is not None
    line = process.stdout.readline()
    port = re.search(r"127\.0\.0\.1:(\d+)", line)
    if port is None:
        raise CommandFailed(f"{' '.join(command)}: {line or 'no port was forwarded'}")
    return f"http://127.0.0.1:{port[1]}"


def conditions(found: Object | None) -> dict[str, Object]:
    """Return type -> condition of an LLMService or a pod; empty while it has none."""
    status = (found or {}).get("status", {})
    return {condition["type"]: condition for condition in status.get("conditions", [])}


def is_ready(service: Object | None) -> bool:
    """Return whether the condition Ready is True for the present spec."""
    if service is None:
        return False
    ready = conditions(service).get("Ready", {})
    current = ready.get("observedGeneration") == service["metadata"]["generation"]
    return current and ready.get("status") == "True"


def serves(pod: Object) -> bool:
    """Return whether a pod is ready and is not being deleted."""
    return "deletionTimestamp" not in pod["metadata"] and (
        conditions(pod).get("Ready", {}).get("status") == "True"
    )


def wait_ready(cluster: Cluster, name: str, namespace: str, within: float = PATIENCE) -> Object:
    """Wait until an LLMService is Ready for its present spec, and return it.

    Raises:
        AssertionError: it is not Ready in time. The message contains its last conditions.

    """
    return _wait_for(cluster, name, namespace, "condition=Ready", within)


def until_reason(cluster: Cluster, name: str, namespace: str, reason: str) -> str:
    """Wait until the condition Ready of an LLMService has this reason; return its message.

    Raises:
        AssertionError: it does not have the reason in time. The message contains its last
            conditions.

    """
    state = f'jsonpath={{.status.conditions[?(@.type=="Ready")].reason}}={reason}'
    service = _wait_for(cluster, name, namespace, state, PATIENCE)
    message: str = conditions(service)["Ready"]["message"]
    return message


def _wait_for(cluster: Cluster, name: str, namespace: str, state: str, within: float) -> Object:
    """Wait until an LLMService reaches a state that `kubectl wait --for` knows; return it.

    `kubectl wait` watches the object. Each start of kubectl to read it again would take a tenth of
    a second of CPU time.
    """
    options = ("-n", namespace, f"--for={state}", f"--timeout={within:g}s", "-o", "json")
    try:
        found: Object = json.loads(cluster.kubectl("wait", f"llmservice/{name}", *options))
    except CommandFailed as late:
        last = json.dumps(conditions(cluster.read("llmservice", name, namespace)), indent=1)
        raise AssertionError(f"LLMService {namespace}/{name} without {state}: {last}") from late
    return found


def ask(
    url: str,
    body: Mapping[str, Any] | None = None,
    timeout: float = 120,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """Send an HTTP request, and return the JSON of the response. A request with a body is a POST.

    Raises:
        AssertionError: the response has an error status. The message has the status and the body.

    """
    return json.loads(read(url, body, timeout, headers))


def read(
    url: str,
    body: Mapping[str, Any] | None = None,
    timeout: float = 120,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """Send a request as `ask` does, and return the whole body of the response."""
    request = urllib.request.Request(
        url,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            content: bytes = response.read()
            return content
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{url}: {error.code} {error.read().decode()}") from error


def pod_states(pods: Sequence[Object]) -> dict[str, tuple[str, int]]:
    """Return name -> UID and number of restarts, for each pod.

    A change shows that a pod was replaced or restarted.
    """
    return {
        pod["metadata"]["name"]: (
            pod["metadata"]["uid"],
            sum(state["restartCount"] for state in pod["status"].get("containerStatuses", [])),
        )
        for pod in pods
    }
