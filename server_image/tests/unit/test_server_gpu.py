from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from llmservice_server.gpu import find_gpus


class NVMLError(Exception):
    pass


class ScriptedNvml:
    """NVML of a machine with two GPUs. The second one reports only its memory."""

    NVMLError = NVMLError
    NVML_CLOCK_SM = 1

    def __init__(self, gpus: int = 2, has_driver: bool = True) -> None:
        self._gpus = gpus
        self._has_driver = has_driver

    def nvmlInit(self) -> None:
        if not self._has_driver:
            raise NVMLError("library not found")

    def nvmlDeviceGetCount(self) -> int:
        return self._gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> Any:
        return SimpleNamespace(gpu=self._only_first(gpu, 97))

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> Any:
        return SimpleNamespace(used=10**9 + gpu, total=8 * 10**10)

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:
        return self._only_first(gpu, 250_500)

    def nvmlDeviceGetClockInfo(self, gpu: int, kind: int) -> int:
        assert kind == self.NVML_CLOCK_SM
        return self._only_first(gpu, 1980)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: int) -> int:
        return self._only_first(gpu, 0x01 | 0x40)

    def _only_first(self, gpu: int, value: int) -> int:
        if gpu:
            raise NVMLError("not supported")
        return value


def test_tells_every_gpu_and_leaves_out_what_one_does_not_tell() -> None:
    collector = find_gpus(ScriptedNvml())
    assert collector is not None
    registry = CollectorRegistry()
    registry.register(collector)

    def value(name: str, gpu: str = "0", **labels: str) -> float | None:
        return registry.get_sample_value(name, {"gpu": gpu, **labels})

    assert value("llm_gpu_duty_cycle_percent") == 97
    assert value("llm_gpu_duty_cycle_percent", "1") is None
    assert value("llm_gpu_memory_used_bytes", "1") == 10**9 + 1
    assert value("llm_gpu_memory_total_bytes") == 8 * 10**10
    assert value("llm_gpu_power_watts") == 250.5
    assert value("llm_gpu_sm_clock_hertz") == 1.98e9
    assert value("llm_gpu_throttled", reason="hw_thermal_slowdown") == 1
    assert value("llm_gpu_throttled", reason="sw_power_cap") == 0
    assert value("llm_gpu_throttled", "1", reason="sw_power_cap") is None
    assert collector.duty_cycle_percent() == 97


def test_a_family_that_no_gpu_tells_is_absent() -> None:
    nvml = ScriptedNvml()
    collector = find_gpus(nvml)
    assert collector is not None
    nvml.nvmlDeviceGetPowerUsage = lambda gpu: nvml._only_first(1, 0)  # type: ignore[method-assign]
    registry = CollectorRegistry()
    registry.register(collector)
    assert b"llm_gpu_power_watts" not in generate_latest(registry)


def test_there_is_nothing_to_tell_without_a_driver_or_without_a_gpu() -> None:
    assert find_gpus(ScriptedNvml(has_driver=False)) is None
    assert find_gpus(ScriptedNvml(gpus=0)) is None
