"""A stand-in for NVIDIA's library, which no test machine needs to have."""

from types import SimpleNamespace
from typing import Any


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
