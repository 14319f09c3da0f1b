"""Runs Prometheus in a local cluster.

It is a process next to the API server and has the administrator's permissions, so it discovers all
pods. The caller says in a configuration file what it scrapes.
"""

import argparse
from pathlib import Path
from typing import Any

from localkube import binaries, waiting
from localkube.cluster import Cluster
from localkube.progress import say, step

PORT = 19091
"""Port in the first node's network. Neither tests nor pods with host network use it."""
START_SECONDS = 60

_DAEMON = "prometheus"


def register(subparsers: Any) -> None:
    """Add this module's commands to the command line."""
    prometheus = subparsers.add_parser("prometheus", help="build, start or stop Prometheus")
    actions = prometheus.add_subparsers(required=True, metavar="ACTION")
    building = actions.add_parser("build", help="build Prometheus into the cache")
    building.set_defaults(run=_build)
    starting = actions.add_parser(
        "start", help="start Prometheus in the cluster unless it runs, and print its URL"
    )
    starting.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="configuration of Prometheus"
    )
    starting.set_defaults(run=_start)
    stopping = actions.add_parser("stop", help="stop Prometheus; its data stay until `down`")
    stopping.set_defaults(run=_stop)


def _build(_arguments: argparse.Namespace) -> int:
    binaries.build((binaries.PROMETHEUS,))
    return 0


def _start(arguments: argparse.Namespace) -> int:
    print(start(Cluster(arguments.name), arguments.config.resolve()))
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    Cluster(arguments.name).stop_daemon(_DAEMON)
    return 0


def start(cluster: Cluster, config: Path) -> str:
    """Start Prometheus, and return its URL once it answers queries.

    Raises LocalkubeError with the end of the log if Prometheus does not start.
    """
    binaries.build((binaries.PROMETHEUS,))
    address = f"{cluster.node(1).address}:{PORT}"
    if cluster.daemons().get(_DAEMON):
        say(f"Prometheus is already running in cluster {cluster.name}.")
        return f"http://{address}"

    def is_ready() -> bool:
        url = f"http://{address}/-/ready"
        done = cluster.exec(
            ["curl", "--silent", "--fail", "--max-time", "2", url], capture_output=True
        )
        return done.returncode == 0

    with step("Prometheus"):
        cluster.start_daemon(_DAEMON, _command(cluster, config, address))
        waiting.until(
            is_ready,
            cluster=cluster,
            daemon=_DAEMON,
            what="Prometheus is not ready",
            seconds=START_SECONDS,
        )
    return f"http://{address}"


def _command(cluster: Cluster, config: Path, address: str) -> list[str]:
    return [
        str(binaries.program(_DAEMON)),
        f"--config.file={config}",
        f"--storage.tsdb.path={cluster.state / _DAEMON}",
        f"--web.listen-address={address}",
    ]
