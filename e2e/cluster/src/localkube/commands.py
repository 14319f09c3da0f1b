"""Commands for the life cycle of a cluster; other modules do the work."""

import argparse
import json
from typing import Any

from localkube import audit, gpus, lifecycle, preflight
from localkube.cluster import Cluster, all_clusters
from localkube.progress import say


def register(subparsers: Any) -> None:
    up = subparsers.add_parser("up", help="start a cluster")
    up.add_argument("--nodes", type=int, default=1, help="number of nodes (default: %(default)s)")
    up.add_argument(
        "--api-only",
        action="store_true",
        help="start only etcd, API server and controllers, without a node",
    )
    up.set_defaults(run=_up)

    down = subparsers.add_parser("down", help="remove a cluster completely; its images stay cached")
    down.set_defaults(run=_down)

    status = subparsers.add_parser(
        "status",
        help="show the clusters and their daemons; fails if a daemon of the named cluster is down",
    )
    status.set_defaults(run=_status)

    gpu = subparsers.add_parser("gpus", help="advertise GPUs on every node")
    gpu.add_argument("count", type=int, help="number of GPUs per node; 0 for none")
    gpu.set_defaults(run=_gpus)

    log = subparsers.add_parser("audit", help="print the API server's audit log as JSON lines")
    log.add_argument("--since", help="only entries since this time, such as 2030-01-31T12:00:00Z")
    log.add_argument("--user", help="only entries of this user")
    log.add_argument("--writes", action="store_true", help="only entries of write requests")
    log.set_defaults(run=_audit)

    setup = subparsers.add_parser(
        "setup", help="install missing Debian packages and report other missing requirements"
    )
    setup.set_defaults(run=_setup)

    clean = subparsers.add_parser("clean", help="remove every cluster")
    clean.add_argument(
        "--cache", action="store_true", help="also remove all cached programs and images"
    )
    clean.set_defaults(run=_clean)


def _up(arguments: argparse.Namespace) -> int:
    lifecycle.up(Cluster(arguments.name), nodes=arguments.nodes, api_only=arguments.api_only)
    return 0


def _down(arguments: argparse.Namespace) -> int:
    lifecycle.down(Cluster(arguments.name))
    return 0


def _status(arguments: argparse.Namespace) -> int:
    """Print all clusters and their daemons; return 0 only if the named cluster is healthy."""
    clusters = all_clusters()
    if not clusters:
        print("No cluster. Start one: localkube up")
    for each in clusters:
        print(f"{each.name}: {'running' if lifecycle.healthy(each) else 'broken'}")
        for daemon, pid in each.daemons().items():
            print(f"  {daemon:26} {f'process {pid}' if pid else 'has ended'}")
    return 0 if lifecycle.healthy(Cluster(arguments.name)) else 1


def _gpus(arguments: argparse.Namespace) -> int:
    gpus.advertise(Cluster(arguments.name), arguments.count)
    say(f"Every node now has {arguments.count} {gpus.RESOURCE}")
    return 0


def _audit(arguments: argparse.Namespace) -> int:
    for event in audit.events(
        Cluster(arguments.name),
        since=arguments.since,
        user=arguments.user,
        writes_only=arguments.writes,
    ):
        print(json.dumps(event))
    return 0


def _setup(_arguments: argparse.Namespace) -> int:
    preflight.install_packages()
    preflight.check(api_only=False, with_images=True)
    return 0


def _clean(arguments: argparse.Namespace) -> int:
    lifecycle.clean(cache=arguments.cache)
    return 0
