"""The operator under measurement: its CPU time, its memory, and its requests."""

import json
import os
import re
import time
from collections import Counter
from pathlib import Path

from operator_bench.client import USER_AGENT, BenchError
from operator_support.processes import OperatorProcess
from shared_support.waiting import eventually

QUIET_SECONDS = 10.0
"""Time in seconds without a request after which the operator counts as quiet. It is longer than the
pause between the lists at a start and the audit that follows them."""


def highest_rss_mib(operator: OperatorProcess) -> float:
    """Return the highest resident memory of the process so far in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{operator.pid}/status").read_text())
    assert found, "the process has ended"
    return int(found[1]) / 1024


def sums(operator: OperatorProcess, *metrics: str) -> list[float]:
    """Return the sum of all series of each metric, from one scrape.

    Raises BenchError when the operator has ended, and AssertionError when the scrape fails. On a
    busy machine, the page with the metrics of many services may take longer than the client waits.
    """
    status, page = operator.get("/metrics")
    if not operator.is_running():
        raise BenchError(f"the operator ended: {operator.log.read_text()[-2000:]}")
    assert status == 200, "the operator serves no metrics"
    found = dict.fromkeys(metrics, 0.0)
    for line in page.splitlines():
        name = re.split("[{ ]", line, maxsplit=1)[0]
        if name in found:
            found[name] += float(line.rpartition(" ")[2])
    return list(found.values())


def passes(operator: OperatorProcess) -> float:
    found = eventually(lambda: sums(operator, "controller_runtime_reconcile_total"), 60)
    return found[0]


def until_leading(operator: OperatorProcess) -> None:
    def leads() -> bool:
        is_leader = sums(operator, "leader_election_master_status") == [1.0]
        return is_leader and operator.get("/readyz")[0] == 200

    eventually(leads, 120, "the operator leads")


def until_idle(operator: OperatorProcess, services: int, within: float) -> None:
    """Wait until the operator has made a pass for every service and its queue is empty.

    The more services there are, the longer is the pause between two checks, because a check costs
    the operator time.
    """

    def is_idle() -> bool:
        made, waiting, busy = sums(
            operator,
            "controller_runtime_reconcile_total",
            "workqueue_depth",
            "controller_runtime_active_workers",
        )
        return made >= services and waiting == 0 and busy == 0

    every = max(0.1, services / 1000)
    eventually(is_idle, within, "the operator is idle", every=every)


def until_quiet() -> None:
    """Wait until the operator has sent no request for QUIET_SECONDS.

    After a start, the watches list every kind, and the audit compares the lists with the cache.
    """
    log = AuditLog()
    since, seen = time.monotonic(), 0

    def is_quiet() -> bool:
        nonlocal since, seen
        if (now := log.requests().total()) != seen:
            since, seen = time.monotonic(), now
        return time.monotonic() - since >= QUIET_SECONDS

    eventually(is_quiet, 120, "the operator sends no requests", every=1)


class AuditLog:
    """Counts the operator's requests that the API server has answered."""

    def __init__(self) -> None:
        self._path = Path(os.environ["KUBECONFIG"]).parent / "logs" / "audit.log"
        self._begin = self._path.stat()

    def requests(self) -> Counter[str]:
        """Return the number of requests since this object was made, by verb and kind.

        The requests of leader election are not counted. A watch counts once when it begins and once
        when it ends. Raises BenchError when the log has been rotated.
        """
        with self._path.open(encoding="utf-8") as log:
            if os.fstat(log.fileno()).st_ino != self._begin.st_ino:
                raise BenchError("the audit log was rotated, so the requests are unknown")
            log.seek(self._begin.st_size)
            found = [json.loads(line) for line in log if line.endswith("\n")]
        return Counter(
            f"{event['verb']} {event['objectRef']['resource']}"
            for event in found
            if not event["user"]["username"].startswith("system:")
            and event.get("userAgent") != USER_AGENT
            and event["objectRef"]["resource"] != "leases"
        )
