"""Runs the demo: brings up a cluster, installs the chart, applies an example and asks a question.

`make demo` runs it on the local cluster, `make demo CLUSTER=kind` on kind with a Docker
engine.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from e2e_support import ROOT, Cluster, CommandFailed, Object, conditions, is_ready
from stage import (
    EXAMPLES,
    SYSTEM_NAMESPACE,
    Images,
    images_under_test,
    install_chart,
    load_images,
    localkube,
    start_hub,
)

DEFAULT_NAME = "llmservice"
"""Name of the cluster, unless another one is given."""
NAMESPACE = "default"
EXAMPLE = EXAMPLES / "smollm2-cpu.yaml"
NAME = "smollm2-cpu"
PLACE = ("--namespace", NAMESPACE)
QUESTION = "What is the capital of France?"
CHAT_OPTIONS = ("--temperature", "0", "--max-tokens", "32")
READY_WITHIN_SECONDS = 600
"""Time limit in seconds until the example is Ready. It is an estimate: the example usually needs
much less than a minute, but a slow machine may take ten minutes."""


class Steps:
    """Prints the title of each step when it starts, and a table of all durations at the end."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.took: list[tuple[str, float]] = []

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Print the title of a step, and record the duration of the `with` block."""
        print(f"\n==> {title}", flush=True)
        started = time.monotonic()
        yield
        self.took.append((title, time.monotonic() - started))

    def print_table(self) -> None:
        """Print the duration of every step and the total, in seconds."""
        print("\nseconds  step")
        for title, seconds in self.took:
            print(f"{seconds:7.1f}  {title}")
        print(f"{time.monotonic() - self.started:7.1f}  total")


def local_cluster(name: str, steps: Steps) -> tuple[Cluster, Images, str | None, list[str]]:
    """Bring up the local cluster with the images and a hub that serves the example's model."""
    with steps.step("Models, converted once and cached"):
        localkube("models", capture=True)
    with steps.step("Images, built once and cached"):
        images = images_under_test()
    with steps.step("A real Kubernetes in a network namespace"):
        localkube("up", "--name", name)
    with steps.step("Images onto the node"):
        load_images(name, images)
    with steps.step("A model hub inside the cluster's network"):
        hub = start_hub(name)
    prefix = [".venv/bin/localkube"] + ([] if name == DEFAULT_NAME else ["--name", name])
    return Cluster(("localkube", "exec", "--name", name, "--")), images, hub, prefix


def kind_cluster(name: str, steps: Steps) -> tuple[Cluster, Images, str | None, list[str]]:
    """Bring up a kind cluster, whose models come from the public hub."""
    images = Images("llmservice/operator:demo", "llmservice/server-cpu:demo", "")
    builds = (
        (images.operator, "operator/Dockerfile", ("--target", "operator")),
        (images.server_cpu, "server_image/Dockerfile", ("--target", "cpu")),
    )

    def run(*command: str) -> None:
        subprocess.run(command, cwd=ROOT, check=True)

    with steps.step("Images with docker build"):
        for tag, dockerfile, options in builds:
            run("docker", "build", "-t", tag, "-f", dockerfile, *options, ".")
    with steps.step("A kind cluster"):
        found = subprocess.run(["kind", "get", "clusters"], check=True, capture_output=True)
        if name not in found.stdout.decode().split():
            run("kind", "create", "cluster", "--name", name)
        run("kubectl", "config", "use-context", f"kind-{name}")
    with steps.step("Images onto the node"):
        for tag, _, _ in builds:
            run("kind", "load", "docker-image", "--name", name, tag)
    return Cluster(), images, None, []


def watch_until_ready(cluster: Cluster) -> None:
    """Print each change of the example's conditions until the example is Ready.

    Raises:
        CommandFailed: the example is not Ready after READY_WITHIN_SECONDS.

    """
    started = time.monotonic()
    shown: dict[str, tuple[str, str]] = {}
    while True:
        service = cluster.read("llmservice", NAME, NAMESPACE)
        for kind, condition in conditions(service).items():
            seen = (condition["status"], condition.get("reason", ""))
            if shown.get(kind) != seen:
                shown[kind] = seen
                print(line_of(kind, condition, time.monotonic() - started), flush=True)
        if is_ready(service):
            return
        if time.monotonic() - started > READY_WITHIN_SECONDS:
            raise CommandFailed(f"{NAME} is not Ready after {READY_WITHIN_SECONDS} s: see above")
        time.sleep(0.5)


def line_of(kind: str, condition: Object, seconds: float) -> str:
    """Return a line with the elapsed seconds, the type, status, reason and message."""
    state = f"{kind}={condition['status']}"
    return f"  {seconds:6.1f} s  {state:<20} {condition.get('reason', '')}: {condition['message']}"


CLUSTERS: dict[str, Callable[[str, Steps], tuple[Cluster, Images, str | None, list[str]]]] = {
    "local": local_cluster,
    "kind": kind_cluster,
}


def next_commands(prefix: Sequence[str], name: str) -> list[str]:
    """Return the lines with the commands that a user would try next, and that remove the cluster.

    Commands on the local cluster begin with `prefix`, which is empty on kind. `name` is the name of
    the cluster.
    """
    enter = "".join(f"{word} " for word in prefix)
    plugin = f"{enter}kubectl llm" if prefix else ".venv/bin/kubectl-llm"
    chosen = "" if name == DEFAULT_NAME else f" NAME={name}"
    removal = f"make down{chosen}" if prefix else f"kind delete cluster --name {name}"
    return [
        "Next:",
        f"  {enter}kubectl get llm -o wide",
        f"  {plugin} chat {NAME}",
        f"  {plugin} top {NAME}",
        f"  {enter}kubectl describe llm {NAME}",
        "",
        f"`{removal}` removes the cluster, and keeps what was built.",
    ]


def main() -> int:
    """Run the demo; return 1 after a failure, and 0 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cluster", choices=sorted(CLUSTERS), default="local")
    parser.add_argument("--name", default=DEFAULT_NAME, help="name of the cluster")
    options = parser.parse_args()

    steps = Steps()
    try:
        cluster, images, hub, prefix = CLUSTERS[options.cluster](options.name, steps)
        with steps.step(f"helm install into {SYSTEM_NAMESPACE}"):
            install_chart(cluster, images, hub)
        with steps.step(f"kubectl apply -f {EXAMPLE.relative_to(ROOT)}, until Ready"):
            cluster.apply(EXAMPLE, NAMESPACE)
            watch_until_ready(cluster)
        with steps.step(f'kubectl llm chat {NAME} "{QUESTION}"'):
            cluster.show("kubectl", "llm", "chat", NAME, QUESTION, *CHAT_OPTIONS, *PLACE)
        with steps.step(f"kubectl llm status {NAME}"):
            cluster.show("kubectl", "llm", "status", NAME, *PLACE)
    except (CommandFailed, subprocess.CalledProcessError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        print(f"\ndemo: {error.filename} is not installed or not on PATH", file=sys.stderr)
        return 1
    steps.print_table()
    print("", *next_commands(prefix, options.name), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
