"""Helpers for tests of the operator: an API client, object builders, the operator as a process."""

import base64
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self

import yaml
from kubernetes import client, config

from llmservice_operator import names
from llmservice_operator.kinds import DEPLOYMENTS, LEASES, LLMSERVICES, PODS, Kind
from shared_support.scrape import metric_of
from shared_support.waiting import PATIENCE, eventually

REPOSITORY = Path(__file__).parents[3]
EXAMPLES = REPOSITORY / "crds" / "examples"
CPU_IMAGE = "registry.example/llmservice/server-cpu:1"
GPU_IMAGE = "registry.example/llmservice/server-gpu:1"


def make_service(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    """Return an LLMService that is valid unless `spec` makes it invalid."""
    return {
        "apiVersion": LLMSERVICES.api_version,
        "kind": LLMSERVICES.kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"uri": "hf://llmservice-test/tiny-random-llama"},
            "accelerator": {"type": "cpu"},
            **spec,
        },
    }


class ApiError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class Api:
    """The API server as an administrator sees it, in plain dicts."""

    def __init__(self) -> None:
        configuration = client.Configuration()
        config.load_kube_config(client_configuration=configuration)
        self._client = client.ApiClient(configuration)
        self.server: str = configuration.host
        self.ca_file: str = configuration.ssl_ca_cert

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        **query: str,
    ) -> dict[str, Any]:
        """Send one request. Raises ApiError with the server's message."""
        try:
            arguments = self._client.param_serialize(
                method,
                path,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            answer = self._client.call_api(*arguments, _request_timeout=30)
            text = answer.read()
        except client.ApiException as error:
            answer, text = error, error.body
        manifest: dict[str, Any] = json.loads(text)
        if answer.status >= 400:
            raise ApiError(answer.status, manifest["message"])
        return manifest

    def create(self, kind: Kind, manifest: Mapping[str, Any], **query: str) -> dict[str, Any]:
        path = kind.path(manifest["metadata"].get("namespace"))
        return self.request("POST", path, dict(manifest), **query)

    def read(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        try:
            return self.request("GET", kind.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any]:
        live = self.read(kind, namespace, name)
        assert live is not None, f"{kind.kind} {namespace}/{name} does not exist"
        return live

    def list_all(self, kind: Kind, namespace: str, **query: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.request("GET", kind.path(namespace), **query)["items"]
        return items

    def patch(
        self, kind: Kind, namespace: str, name: str, change: Any, subresource: str = ""
    ) -> dict[str, Any]:
        """Merge a change into an object, as a user with `kubectl edit` does."""
        content_type = "application/merge-patch+json"
        path = kind.path(namespace, name, subresource)
        return self.request("PATCH", path, change, content_type)

    def delete(self, kind: Kind, namespace: str, name: str, **query: str) -> None:
        self.request("DELETE", kind.path(namespace, name), **query)

    def apply_file(self, path: Path) -> str:
        return kubectl("apply", "--server-side", "--force-conflicts", "-f", str(path))


def kubectl(*arguments: str, check: bool = True) -> str:
    """Run kubectl as a user would; return its output, including errors."""
    done = subprocess.run(
        ["kubectl", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    if check and done.returncode != 0:
        raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr}")
    return done.stdout + done.stderr


def kubeconfig_for(api: Api, token: str, path: Path) -> str:
    """Write a kubeconfig that signs in with a token; return its path."""
    authority = base64.b64encode(Path(api.ca_file).read_bytes()).decode()
    cluster = {"server": api.server, "certificate-authority-data": authority}
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": {"token": token}}],
            }
        )
    )
    return str(path)


def condition(service: Mapping[str, Any], type_: str) -> dict[str, Any]:
    conditions = service.get("status", {}).get("conditions", [])
    found: list[dict[str, Any]] = [each for each in conditions if each["type"] == type_]
    assert found, f"no condition {type_} in {conditions}"
    return found[0]


def until_pods(api: Api, namespace: str, name: str, count: int) -> None:
    selector = f"llmservice.dev/name={name}"
    eventually(
        lambda: len(api.list_all(PODS, namespace, labelSelector=selector)) == count,
        describe=f"{count} pods",
    )


def make_pods_ready(
    api: Api, namespace: str, service: str, label: str = names.SERVICE_LABEL
) -> None:
    """Mark all replicas of a service ready, in place of a kubelet, which these tests do not run.

    With names.ROUTER_LABEL, mark its router pods ready instead.
    """
    selector = f"{label}={service}"
    for pod in api.list_all(PODS, namespace, labelSelector=selector):
        status = {
            "phase": "Running",
            "conditions": [
                {"type": type_, "status": "True"} for type_ in ("Ready", "PodScheduled")
            ],
        }
        try:
            api.patch(PODS, namespace, pod["metadata"]["name"], {"status": status}, "status")
        except ApiError as error:
            # A rollout may have deleted the pod meanwhile.
            if error.status != 404:
                raise


def free_the_lease(api: Api, namespace: str) -> None:
    """Let the next operator lead immediately, before the Lease of the killed operator expires."""
    api.patch(LEASES, namespace, "llmservice-operator", {"spec": {"holderIdentity": ""}})


def image(api: Api, namespace: str, name: str) -> str:
    pod = api.get(DEPLOYMENTS, namespace, name)["spec"]["template"]["spec"]
    found: str = pod["containers"][0]["image"]
    return found


def utc_now() -> datetime:
    return datetime.now(UTC)


_PORTS = range(10_000, 30_000)
"""Ports that the kernel gives neither to outgoing connections nor to listeners on port 0."""


def free_port() -> int:
    """Return a free port that no outgoing connection can get by chance."""
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", port))
            return port
    raise AssertionError(f"a hundred ports of {_PORTS} are taken")


class Running(Protocol):
    """The part of a subprocess that an OperatorProcess uses."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Return the exit code; None while the process runs."""

    def wait(self, timeout: float) -> int: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class OperatorProcess:
    """`llmservice-operator run` as a process of its own."""

    command = "run"
    python = sys.executable
    """Path of the interpreter, whose environment has the operator's packages."""

    def __init__(self, log: Path, namespace: str, **settings: str) -> None:
        """Start the operator.

        `settings` are further LLMSERVICE_OPERATOR_* variables, without this prefix, and KUBECONFIG.
        """
        self.log = log
        self.port = free_port()
        kubeconfig = settings.pop("KUBECONFIG", os.environ["KUBECONFIG"])
        defaults = {
            "NAMESPACE": namespace,
            "HEALTH_PORT": str(self.port),
            "SERVER_IMAGE_CPU": CPU_IMAGE,
            "SERVER_IMAGE_GPU": GPU_IMAGE,
            "LOG_LEVEL": "INFO",
        }
        variables = {f"LLMSERVICE_OPERATOR_{k}": v for k, v in (defaults | settings).items()}
        self._process = self._begin({**os.environ, **variables, "KUBECONFIG": kubeconfig})

    def _begin(self, variables: Mapping[str, str]) -> Running:
        """Start the process with these environment variables and the log as its output."""
        with self.log.open("a") as output:
            return subprocess.Popen(
                [self.python, "-m", "llmservice_operator", self.command],
                env=variables,
                stdout=output,
                stderr=output,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.terminate()

    def terminate(self) -> int:
        """Send SIGTERM, as Kubernetes does; return the exit code."""
        self._process.terminate()
        return self._process.wait(30)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(30)

    def wait(self, timeout: float) -> int:
        return self._process.wait(timeout)

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.poll() is None

    def get(self, path: str, port: int | None = None) -> tuple[int, str]:
        """Return the status and body of a request, by default to the health port.

        The status is 0 while the process does not listen.
        """
        url = f"http://127.0.0.1:{port or self.port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def until_ready(self) -> Self:
        def ready() -> bool:
            if not self.is_running():
                raise RuntimeError(f"the operator ended: {self.log.read_text()[-2000:]}")
            return self.get("/readyz")[0] == 200

        eventually(ready, describe="the operator is ready")
        return self

    def until_leading(self, timeout: float = PATIENCE) -> Self:
        self.until_ready()
        eventually(lambda: self.metric("leader_election_master_status") == 1.0, timeout, "it leads")
        return self

    def metrics(self) -> str:
        status, text = self.get("/metrics")
        assert status == 200
        return text

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of all series of the metric with these labels."""
        return metric_of(self.metrics(), name, **labels)

    def writes(self) -> float:
        """Return the number of writes so far, without the renewals of the Lease, which use PUT."""
        scrape = self.metrics()
        return sum(
            metric_of(scrape, "rest_client_requests_total", method=method)
            for method in ("PATCH", "POST", "DELETE")
        )

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def until_settled(
    operator: OperatorProcess, seconds: float = 1.0, within: float = PATIENCE
) -> None:
    """Wait until the operator has written nothing for `seconds`, at most for `within` seconds."""

    def settled() -> bool:
        before = operator.writes()
        time.sleep(seconds)
        return operator.writes() == before

    eventually(settled, within, "the operator has settled")


@contextlib.contextmanager
def writes_nothing(operator: OperatorProcess) -> Iterator[None]:
    before = operator.writes()
    yield
    assert operator.writes() == before
