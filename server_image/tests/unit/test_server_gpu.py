from prometheus_client import CollectorRegistry, generate_latest

from llmservice_server.gpu import find_gpus
from server_support.nvml import ScriptedNvml


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
