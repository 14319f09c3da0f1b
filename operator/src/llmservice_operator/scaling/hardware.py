"""Data sheets of accelerators, from which the prior of a step model follows.

A wrong speed makes the step model inaccurate only for the first minute of traffic. A wrong memory
size makes a plan wrong.
"""

import re

from llmservice_operator.scaling.step_model import HardwareClass

MIB = 2**20

DATA_SHEETS: tuple[tuple[str, HardwareClass], ...] = (
    ("B200", HardwareClass(8.0e12, 2250e12, 183359 * MIB)),
    ("H200", HardwareClass(4.8e12, 989e12, 143771 * MIB)),
    ("H100-NVL", HardwareClass(3.9e12, 835e12, 95830 * MIB)),
    ("H100-PCIE", HardwareClass(2.0e12, 756e12, 81559 * MIB)),
    ("H100", HardwareClass(3.35e12, 989e12, 81559 * MIB)),
    ("A100-SXM4-40GB", HardwareClass(1.555e12, 312e12, 40960 * MIB)),
    ("A100-PCIE-40GB", HardwareClass(1.555e12, 312e12, 40960 * MIB)),
    ("A100", HardwareClass(2.0e12, 312e12, 81920 * MIB)),
    ("L40S", HardwareClass(0.864e12, 362e12, 46068 * MIB)),
    ("L40", HardwareClass(0.864e12, 181e12, 46068 * MIB)),
    ("L4", HardwareClass(0.3e12, 121e12, 23034 * MIB)),
    ("A30", HardwareClass(0.933e12, 165e12, 24576 * MIB)),
    ("A10", HardwareClass(0.6e12, 125e12, 23028 * MIB)),
    ("RTX-A6000", HardwareClass(0.768e12, 155e12, 49140 * MIB)),
    ("V100-SXM2-32GB", HardwareClass(0.9e12, 125e12, 32768 * MIB)),
    ("V100-PCIE-32GB", HardwareClass(0.9e12, 125e12, 32768 * MIB)),
    ("V100", HardwareClass(0.9e12, 125e12, 16384 * MIB)),
    ("T4", HardwareClass(0.32e12, 65e12, 15360 * MIB)),
    ("MI355X", HardwareClass(8.0e12, 2516e12, 288 * 1024 * MIB)),
    ("MI350X", HardwareClass(8.0e12, 2307e12, 288 * 1024 * MIB)),
    ("MI325X", HardwareClass(6.0e12, 1307e12, 256 * 1024 * MIB)),
    ("MI300X", HardwareClass(5.3e12, 1307e12, 192 * 1024 * MIB)),
    ("MI210", HardwareClass(1.6e12, 181e12, 64 * 1024 * MIB)),
)
"""Pairs of a part of the product name and a data sheet. The first match is used, so longer names
come first.

Product names are those of the node labels nvidia.com/gpu.product and amd.com/gpu.product-name. The
numbers are bytes/s, dense FLOP/s at 16 bits without sparsity, and bytes of memory. The memory is
the size that the driver reports or, for AMD, the size in the data sheet.
"""

_AMD = re.compile("MI[0-9]{3}")

UNKNOWN = HardwareClass(0.6e12, 125e12)
"""Data sheet assumed for an unknown accelerator. It is that of a small one, so that a service
starts with too many replicas rather than with too few."""

CPU = HardwareClass(50e9, 1e12)
"""Data sheet assumed for a few CPU cores of a server."""


def _data_sheet(product: str) -> HardwareClass | None:
    name = product.upper().replace(" ", "-")
    return next((sheet for part, sheet in DATA_SHEETS if part in name), None)


def is_known(product: str) -> bool:
    """Return whether there is a data sheet of this product."""
    return _data_sheet(product) is not None


def is_amd(product: str) -> bool:
    """Return whether the product is a known GPU of AMD."""
    return is_known(product) and _AMD.search(product.upper()) is not None


def hardware_class(product: str | None, count: int = 1) -> HardwareClass:
    """Return the combined data sheet of `count` accelerators.

    An unknown product has the data sheet UNKNOWN. If `product` is None, the result is CPU.
    """
    if product is None:
        return CPU
    one = _data_sheet(product) or UNKNOWN
    return HardwareClass(
        one.memory_bytes_per_second * count, one.flops * count, one.memory_bytes * count
    )


def memory_bytes(product: str) -> int | None:
    """Return the memory of one accelerator in bytes. None if the product has no data sheet."""
    sheet = _data_sheet(product)
    return None if sheet is None else sheet.memory_bytes
