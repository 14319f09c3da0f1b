"""Finds the resource definitions of the Gateway API and of its inference extension.

They come from the Go modules of these projects, in the versions that go/gateway pins. No controller
runs for them: a cluster with the definitions only checks and stores the objects.
"""

import argparse
from pathlib import Path
from typing import Any

from localkube import binaries, paths

STANDARD = "sigs.k8s.io/gateway-api"
INFERENCE = "sigs.k8s.io/gateway-api-inference-extension"
"""Go modules."""

_DEFINITIONS = (
    (STANDARD, "standard/gateway.networking.k8s.io_httproutes.yaml"),
    (INFERENCE, "bases/inference.networking.k8s.io_inferencepools.yaml"),
)
"""Files below config/crd of the modules."""


def register(subparsers: Any) -> None:
    """Add this module's command to the command line."""
    finding = subparsers.add_parser(
        "gateway-api",
        help="download the resource definitions of the Gateway API and print their paths",
    )
    finding.set_defaults(run=_print)


def _print(_arguments: argparse.Namespace) -> int:
    for path in resource_definitions():
        print(path)
    return 0


def resource_definitions() -> list[Path]:
    """Return the files with the definitions. Missing modules are downloaded first.

    Raises LocalkubeError if a module cannot be downloaded.
    """
    source = paths.go_sources() / "gateway"
    folders = {
        module: binaries.module_folder(source, module) / "config" / "crd"
        for module in (STANDARD, INFERENCE)
    }
    return [folders[module] / name for module, name in _DEFINITIONS]
