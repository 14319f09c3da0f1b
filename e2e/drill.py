"""Causes a fault on a full local cluster, and prints the alerts that fire, as for somebody on call.

`make drill FAULT=NAME` runs it; without FAULT, it causes one of the faults at random. The task is
to find the cause with the texts of the alerts, their runbooks and kubectl. Enter ends the drill,
which then prints the cause.
"""

import argparse
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from e2e_support import PATIENCE, Cluster
from faults import OPERATORS, Scene
from monitoring import Prometheus, start_prometheus
from pod_processes import PICKER, process_of
from routed import METRICS_SERVERS
from shared_support.waiting import eventually
from stage import TINY_MODEL, install_release

NAMESPACE, SERVICE = "team-a", "chat"
OTHER_NAMESPACE, OTHER_SERVICE = "team-b", "nightly"
SOONER = 10
"""The drill divides the times by this number for which the state of an alert must last."""
LONGEST_SECONDS = 2 * 3600.0
IDLE_SECONDS = 60

Fault = Callable[[Scene], AbstractContextManager[None]]

ON_A_GPU = {"accelerator": {"count": 1}}
ENGINE = {"dtype": "Float32", "maxModelLen": 512}


@contextmanager
def bad_model_name(scene: Scene) -> Iterator[None]:
    """The name of the model in spec.model.uri has a typing error."""
    scene.apply({"model": {"uri": f"hf://{TINY_MODEL.replace('llama', 'lama')}"}})
    yield


@contextmanager
def full_node(scene: Scene) -> Iterator[None]:
    """Another service, nightly in the namespace team-b, holds the only GPU."""
    scene.cluster.create_namespace(OTHER_NAMESPACE)
    other = replace(scene, namespace=OTHER_NAMESPACE, service=OTHER_SERVICE)
    other.set_gpus(1)
    other.apply(ON_A_GPU)
    other.wait_ready()
    scene.apply(ON_A_GPU)
    yield


@contextmanager
def slo_missed(scene: Scene) -> Iterator[None]:
    """The clients send more requests than the only replica bears within the SLO."""
    engine = {**ENGINE, "batching": {"maxNumSeqs": 2}}
    scene.apply({"engine": engine, "slo": {"ttftMilliseconds": 300}})
    scene.wait_ready()
    with scene.loaded():
        yield


@contextmanager
def kv_thrash(scene: Scene) -> Iterator[None]:
    """An argument of the engine makes the KV cache too small for the requests that run at once."""
    scene.apply({"engine": {**ENGINE, "extraArgs": ["--num-gpu-blocks-override=6"]}})
    scene.wait_ready()
    with scene.loaded():
        yield


@contextmanager
def metrics_servers_away(scene: Scene) -> Iterator[None]:
    """The Deployment of the metrics servers was scaled to 0."""
    scene.apply({"autoscaling": {"minReplicas": 1, "maxReplicas": 2}})
    scene.wait_ready()
    with scene.without(METRICS_SERVERS):
        yield


@contextmanager
def operator_away(scene: Scene) -> Iterator[None]:
    """The Deployment of the operator was scaled to 0."""
    scene.apply({})
    scene.wait_ready()
    with scene.without(OPERATORS):
        yield


@contextmanager
def pickers_away(scene: Scene) -> Iterator[None]:
    """The picker, which chooses the replicas, hung in both router pods until they killed it."""
    scene.apply({"auth": {"limits": {"requestsPerMinute": 6000}}})
    scene.wait_ready()
    eventually(scene.is_routed, within=PATIENCE, every=1)
    stopped = [process_of(pod, PICKER) for pod in scene.router_pods()]
    with scene.clients(2):
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        yield


@contextmanager
def stuck_at_zero(scene: Scene) -> Iterator[None]:
    """A quota of the namespace allows no further pod, so that no request wakes the service."""
    idle = {"minReplicas": 0, "maxReplicas": 1, "idle": {"afterSeconds": IDLE_SECONDS}}
    scene.apply({"autoscaling": idle})
    scene.wait_ready()
    eventually(lambda: scene.condition("Ready")["reason"] == "Idle", within=PATIENCE, every=1)
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "pods"}}
    scene.cluster.apply({**quota, "spec": {"hard": {"pods": "2"}}}, scene.namespace)
    with scene.clients(1):
        yield


FAULTS: dict[str, Fault] = {
    "bad-model-name": bad_model_name,
    "full-node": full_node,
    "slo-missed": slo_missed,
    "kv-thrash": kv_thrash,
    "metrics-servers-away": metrics_servers_away,
    "operator-away": operator_away,
    "pickers-away": pickers_away,
    "stuck-at-zero": stuck_at_zero,
}


def print_alerts(prometheus: Prometheus) -> None:
    """Print each alert when it starts to fire and when it ends, until somebody presses Enter."""
    firing: dict[str, Any] = {}
    end = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < end:
        found = {str(it["labels"]): it for it in prometheus.alerts()}
        for key in found.keys() - firing.keys():
            print(text_of(found[key]), flush=True)
        for key in firing.keys() - found.keys():
            print(f"{clock()}  ended: {firing[key]['annotations']['summary']}\n", flush=True)
        firing = found
        if select.select([sys.stdin], [], [], 2)[0]:
            return


def text_of(alert: Any) -> str:
    """Return what the receiver of an alert reads."""
    labels, notes = alert["labels"], alert["annotations"]
    return (
        f"{clock()}  {labels['severity'].upper()} {labels['alertname']}\n"
        f"  {notes['summary']}\n  {notes['description']}\n  {notes['runbook_url']}\n"
    )


def clock() -> str:
    return time.strftime("%H:%M:%S")


def drill(name: str) -> None:
    """Cause the fault in the local cluster in whose network this process runs."""
    cluster, local = Cluster(), os.environ["LOCALKUBE_NAME"]
    install_release(cluster, local)
    cluster.create_namespace(NAMESPACE)
    with tempfile.TemporaryDirectory() as folder:
        prometheus = start_prometheus(local, Path(folder), sooner=SOONER)
        print(
            f"\nThe alerts of the cluster follow. They fire {SOONER} times as early as usual.\n"
            "Find the cause with their texts, the runbooks (docs/runbooks) and kubectl:\n"
            f"  uv run localkube exec --name {local} -- kubectl get llm -A\n"
            f"Prometheus answers queries too:\n"
            f"  uv run localkube exec --name {local} -- curl -s {prometheus.url}/api/v1/query "
            "--data-urlencode 'query=up'\n"
            "Press Enter to end the drill and to read the cause.\n",
            flush=True,
        )
        with FAULTS[name](Scene(cluster, local, NAMESPACE, SERVICE)):
            print_alerts(prometheus)
    print(f"The cause ({name}): {FAULTS[name].__doc__}")


def main() -> int:
    """Run a drill."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fault", nargs="?", choices=FAULTS, help="default: one at random")
    parser.add_argument("--check", action="store_true", help="only check the name of the fault")
    options = parser.parse_args()
    if not options.check:
        drill(options.fault or random.choice([*FAULTS]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
