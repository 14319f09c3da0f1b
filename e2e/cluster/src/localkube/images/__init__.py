"""Builds the project's container images, tags them by their inputs, and loads them.

localkube images build [cpu|gpu|operator|all]
localkube load-image REFERENCE
"""

import argparse
import json
from typing import Any

from localkube.cluster import Cluster
from localkube.errors import LocalkubeError
from localkube.images.builder import build
from localkube.images.recipes import NAMED
from localkube.images.transfer import load

__all__ = ["build", "load", "register"]


def register(subparsers: Any) -> None:
    """Add this package's commands to the command line."""
    images = subparsers.add_parser("images", help="build the project's container images")
    actions = images.add_subparsers(required=True, metavar="ACTION")
    building = actions.add_parser("build", help="build what is missing and print the references")
    building.add_argument("which", nargs="?", choices=[*NAMED, "all"], default="all")
    building.add_argument(
        "--json", action="store_true", help="print the references as one JSON object"
    )
    building.set_defaults(run=_build)
    loading = subparsers.add_parser("load-image", help="load a built image into the nodes")
    loading.add_argument("reference", metavar="REFERENCE")
    loading.add_argument("--node", metavar="NODE", help="load only into this node, such as node2")
    loading.set_defaults(run=_load)


def _build(arguments: argparse.Namespace) -> int:
    references = build(NAMED if arguments.which == "all" else [arguments.which])
    if arguments.json:
        print(json.dumps(references))
    else:
        for name, reference in references.items():
            print(f"{name:12} {reference}")
    return 0


def _load(arguments: argparse.Namespace) -> int:
    cluster = Cluster(arguments.name)
    nodes = cluster.nodes()
    if arguments.node:
        nodes = [node for node in nodes if node.name == arguments.node]
    if not nodes:
        raise LocalkubeError(
            f"Cluster {cluster.name!r} has no node {arguments.node!r}."
            if arguments.node
            else f"Cluster {cluster.name!r} has no nodes: it runs the API server only."
        )
    load(cluster, arguments.reference, nodes)
    return 0
