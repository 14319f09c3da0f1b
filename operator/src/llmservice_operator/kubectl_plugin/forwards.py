"""Port-forwards to the pods of a service. They follow the pods as these come and go."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final, Self

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.kubectl_plugin.kubectl import Kubectl, KubectlFailed
from llmservice_operator.kubectl_plugin.objects import is_metrics_server

METRICS_SERVER_PORT: Final = 8081
"""Port of the load reports in a pod of the metrics server."""
AT_ONCE: Final = 8
"""Number of port-forwards that start at the same time."""


class Forwards:
    """The open port-forwards, by the names of their pods. All end with the block."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl
        self._open: dict[str, tuple[ExitStack, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._open):
            self.drop(name)

    def port(self, pod: str) -> int | None:
        """Return the port of this machine that leads to a pod; None without a port-forward."""
        found = self._open.get(pod)
        return None if found is None else found[1]

    def drop(self, pod: str) -> None:
        """End the port-forward to a pod. The next call of `keep` opens another one."""
        found = self._open.pop(pod, None)
        if found is not None:
            found[0].close()

    def keep(self, pods: Sequence[Manifest]) -> None:
        """Open what is missing, and end the port-forwards to all other pods.

        A pod to which no port can be forwarded, because it does not run yet, has none.
        """
        wanted = {each["metadata"]["name"]: each for each in pods if _is_running(each)}
        for gone in self._open.keys() - wanted.keys():
            self.drop(gone)
        missing = [each for name, each in wanted.items() if name not in self._open]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            # The result is read, so that an unexpected error is not lost.
            list(pool.map(self._start, missing))

    def _start(self, pod: Manifest) -> None:
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        port = METRICS_SERVER_PORT if is_metrics_server(pod) else names.MANAGEMENT_PORT
        with ExitStack() as stack:
            try:
                local = stack.enter_context(self._kubectl.forward(f"pod/{name}", port, namespace))
            except KubectlFailed:
                return
            self._open[name] = stack.pop_all(), local


def _is_running(pod: Manifest) -> bool:
    return bool(pod.get("status", {}).get("phase") == "Running")
