"""Data sheets of accelerators, from which the prior of a step model follows.

A wrong entry costs accuracy for the first minute of traffic only.
"""

from llmservice_operator.scaling.step_model import HardwareClass

DATA_SHEETS: tuple[tuple[str, HardwareClass], ...] = (
    ("B200", HardwareClass(8.0e12, 2250e12)),
    ("H200", HardwareClass(4.8e12, 989e12)),
    ("H100-NVL", HardwareClass(3.9e12, 835e12)),
    ("H100-PCIE", HardwareClass(2.0e12, 756e12)),
    ("H100", HardwareClass(3.35e12, 989e12)),
    ("A100-SXM4-40GB", HardwareClass(1.555e12, 312e12)),
    ("A100-PCIE-40GB", HardwareClass(1.555e12, 312e12)),
    ("A100", HardwareClass(2.0e12, 312e12)),
    ("L40S", HardwareClass(0.864e12, 362e12)),
    ("L40", HardwareClass(0.864e12, 181e12)),
    ("L4", HardwareClass(0.3e12, 121e12)),
    ("A30", HardwareClass(0.933e12, 165e12)),
    ("A10", HardwareClass(0.6e12, 125e12)),
    ("RTX-A6000", HardwareClass(0.768e12, 155e12)),
    ("V100", HardwareClass(0.9e12, 125e12)),
    ("T4", HardwareClass(0.32e12, 65e12)),
)
"""(part of the product name, data sheet); the first that fits counts, so longer names stand first.

Product names are those of the node label nvidia.com/gpu.product. Bytes/s, and dense FLOP/s at 16
bits without sparsity.
"""

UNKNOWN = HardwareClass(0.6e12, 125e12)
"""A small accelerator, so that a service starts with too many replicas and not with too few."""

CPU = HardwareClass(50e9, 1e12)
"""A few cores of a server."""


def _data_sheet(product: str) -> HardwareClass | None:
    name = product.upper().replace(" ", "-")
    return next((sheet for part, sheet in DATA_SHEETS if part in name), None)


def is_known(product: str) -> bool:
    """Return whether there is a data sheet of this product."""
    return _data_sheet(product) is not None


def hardware_class(product: str | None, count: int = 1) -> HardwareClass:
    """Return the data sheet of `count` accelerators; None is a CPU."""
    if product is None:
        return CPU
    one = _data_sheet(product) or UNKNOWN
    return HardwareClass(one.memory_bytes_per_second * count, one.flops * count)
