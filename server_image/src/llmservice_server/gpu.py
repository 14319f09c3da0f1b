"""Reads GPU metrics from NVML at each scrape.

An unavailable number is absent, never zero. Without a GPU, all metrics of this module are absent.
The duty cycle is the share of time during which at least one kernel runs. It does not measure how
much of the GPU a kernel uses.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

_THROTTLE_REASONS = {
    "sw_power_cap": 0x04,
    "hw_slowdown": 0x08,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake": 0x80,
}
"""Reason -> bit of NVML's mask, for each reason that keeps the clock lower than the load needs."""


@dataclass(frozen=True)
class _Reading:
    """One metric, which is read for each GPU."""

    name: str
    documentation: str
    read: Callable[[Any, Any], float]


_READINGS = (
    _Reading(
        "llm_gpu_duty_cycle_percent",
        "Share of the last sample period in which a kernel ran",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
    ),
    _Reading(
        "llm_gpu_memory_used_bytes",
        "Memory in use",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    ),
    _Reading(
        "llm_gpu_memory_total_bytes",
        "Memory of the GPU",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
    ),
    _Reading(
        "llm_gpu_power_watts",
        "Power drawn",
        lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    ),
    _Reading(
        "llm_gpu_sm_clock_hertz",
        "Clock of the streaming multiprocessors",
        lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM) * 1e6,
    ),
)


class GpuCollector:
    """Prometheus collector of every GPU that this container sees."""

    def __init__(self, nvml: Any, gpus: list[Any]) -> None:
        self._nvml = nvml
        self._gpus = gpus

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families that have at least one sample."""
        families = [self._family(reading) for reading in _READINGS]
        families.append(self._throttling())
        yield from (family for family in families if family.samples)

    def duty_cycle_percent(self) -> float | None:
        """Return the mean of the duty cycles that GPUs report; None if no GPU reports one."""
        told = [sample.value for sample in self._family(_READINGS[0]).samples]
        return sum(told) / len(told) if told else None

    def _family(self, reading: _Reading) -> Metric:
        family = GaugeMetricFamily(reading.name, reading.documentation, labels=["gpu"])
        for index, gpu in enumerate(self._gpus):
            try:
                family.add_metric([str(index)], float(reading.read(self._nvml, gpu)))
            except self._nvml.NVMLError:
                continue  # the GPU, or the visible part of it, does not report this number
        return family

    def _throttling(self) -> Metric:
        family = GaugeMetricFamily(
            "llm_gpu_throttled",
            "1 while the clock is lowered for the reason",
            labels=["gpu", "reason"],
        )
        for index, gpu in enumerate(self._gpus):
            try:
                mask = self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)
            except self._nvml.NVMLError:
                continue
            for reason, bit in _THROTTLE_REASONS.items():
                family.add_metric([str(index), reason], float(bool(mask & bit)))
        return family


def find_gpus(nvml: Any) -> GpuCollector | None:
    """Return a collector; None without a driver or a GPU."""
    try:
        nvml.nvmlInit()
        gpus = [
            nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())
        ]
    except nvml.NVMLError:
        return None
    return GpuCollector(nvml, gpus) if gpus else None
