"""Watches the pods of a namespace, so that a test knows each of their states and its time."""

import json
import subprocess
import threading
import time
from dataclasses import dataclass, field

from e2e_support import Cluster, Object, serves


@dataclass
class WatchedPods:
    """All states of the pods of a namespace from the start to the end of the `with` block."""

    cluster: Cluster
    namespace: str
    states: list[tuple[float, str, Object]] = field(default_factory=list)
    """Time of `time.monotonic`, kind of the event (ADDED, MODIFIED or DELETED), and the pod. The
    first states are those of the pods that existed at the start."""

    def __enter__(self) -> "WatchedPods":
        path = f"/api/v1/namespaces/{self.namespace}/pods?watch=true"
        self._process = subprocess.Popen(
            [*self.cluster.prefix, "kubectl", "get", "--raw", path],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                event = json.loads(line)
                self.states.append((time.monotonic(), event["type"], event["object"]))

    def fewest_serving(self, label: str, value: str) -> int:
        """Return the smallest number of pods with a label that served at the same time. The pods
        that existed at the start count from the moment at which all of them are known.
        """
        serving: set[str] = set()
        counts = []
        for _, event, pod in self._labelled(label, value):
            name = pod["metadata"]["name"]
            if event != "DELETED" and serves(pod):
                serving.add(name)
            else:
                serving.discard(name)
            counts.append(len(serving))
        start = counts.index(max(counts))
        return min(counts[start:])

    def endings(self, label: str, value: str) -> dict[str, float]:
        """Return the time in seconds between the eviction and the end of each pod that ended, by
        its name.
        """
        evicted: dict[str, float] = {}
        endings = {}
        for moment, event, pod in self._labelled(label, value):
            name = pod["metadata"]["name"]
            if "deletionTimestamp" in pod["metadata"]:
                evicted.setdefault(name, moment)
            if event == "DELETED":
                endings[name] = moment - evicted[name]
        return endings

    def exit_codes(self, label: str, value: str) -> dict[str, set[int]]:
        """Return the exit codes of the containers of each pod that ended, by its name."""
        codes: dict[str, set[int]] = {}
        for _, event, pod in self._labelled(label, value):
            if event == "DELETED":
                ended = pod["status"]["containerStatuses"]
                found = {each["state"]["terminated"]["exitCode"] for each in ended}
                codes[pod["metadata"]["name"]] = found
        return codes

    def _labelled(self, label: str, value: str) -> list[tuple[float, str, Object]]:
        return [
            state
            for state in list(self.states)
            if state[2]["metadata"]["labels"].get(label) == value
        ]
