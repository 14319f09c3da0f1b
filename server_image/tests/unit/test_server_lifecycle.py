from prometheus_client import CollectorRegistry

from llmservice_server.engine_usage import EngineUsage, Objectives
from llmservice_server.lifecycle import DownloadProgress, Lifecycle, Phase
from llmservice_server.metrics import ServerMetrics
from server_support.in_process import Client, make_management


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def statuses(lifecycle: Lifecycle) -> dict[str, int]:
    client = Client(make_management(lifecycle))
    return {path: (await client.get(path)).status for path in ("/livez", "/startupz", "/readyz")}


async def test_probes_say_alive_and_not_ready_while_the_model_loads() -> None:
    lifecycle = Lifecycle()
    for phase in (Phase.IMPORTING, Phase.DOWNLOADING, Phase.LOADING, Phase.WARMING_UP):
        lifecycle.enter(phase)
        assert await statuses(lifecycle) == {"/livez": 200, "/startupz": 503, "/readyz": 503}


async def test_only_a_ready_server_is_ready() -> None:
    lifecycle = Lifecycle()
    lifecycle.enter(Phase.READY)
    assert await statuses(lifecycle) == {"/livez": 200, "/startupz": 200, "/readyz": 200}

    lifecycle.enter(Phase.DRAINING)
    assert await statuses(lifecycle) == {"/livez": 200, "/startupz": 200, "/readyz": 503}


async def test_a_failed_server_is_not_alive_and_says_why() -> None:
    lifecycle = Lifecycle()
    lifecycle.fail("OutOfMemory", "The container has too little memory.")

    assert await statuses(lifecycle) == {"/livez": 503, "/startupz": 503, "/readyz": 503}
    answer = await Client(make_management(lifecycle)).get("/livez")
    assert answer.json()["reason"] == "OutOfMemory"
    assert answer.json()["message"] == "The container has too little memory."


async def test_a_probe_tells_phase_ages_and_download() -> None:
    clock = Clock()
    lifecycle = Lifecycle(clock)
    clock.now += 3
    lifecycle.enter(Phase.DOWNLOADING)
    lifecycle.download = DownloadProgress(10, 40)
    clock.now += 2

    answer = await Client(make_management(lifecycle)).get("/readyz")

    assert answer.json() == {
        "phase": "downloading",
        "phaseSeconds": 2.0,
        "elapsedSeconds": 5.0,
        "download": {"bytesDone": 10, "bytesTotal": 40},
    }


def test_a_wait_for_a_shared_cache_names_who_fills_it_and_how_far_it_is() -> None:
    lifecycle = Lifecycle(Clock())
    lifecycle.download = DownloadProgress(10, 40)
    lifecycle.wait_for_cache("qwen-5c9-abc")
    assert lifecycle.report() == {
        "phase": "waiting_for_cache",
        "phaseSeconds": 0.0,
        "elapsedSeconds": 0.0,
        "download": {"bytesDone": 10, "bytesTotal": 40},
        "message": "qwen-5c9-abc fills the shared cache",
    }
    assert not lifecycle.has_started
    assert lifecycle.is_alive


def test_two_waits_count_as_one_phase() -> None:
    clock = Clock()
    lifecycle = Lifecycle(clock)
    for _ in range(2):
        lifecycle.wait_for_cache("other")
        clock.now += 3
        lifecycle.wait_for_cache("other")
        clock.now += 1
        lifecycle.enter(Phase.DOWNLOADING)
    assert lifecycle.load_seconds[Phase.WAITING_FOR_CACHE] == 8


def test_download_progress_is_told_only_while_downloading() -> None:
    lifecycle = Lifecycle()
    lifecycle.download = DownloadProgress(40, 40)
    lifecycle.enter(Phase.LOADING)
    assert "download" not in lifecycle.report()


async def test_metrics_tell_the_phase_and_how_long_loading_took() -> None:
    clock = Clock()
    lifecycle = Lifecycle(clock)
    registry = CollectorRegistry()
    ServerMetrics(registry, lifecycle, EngineUsage(Objectives()))
    clock.now += 4
    lifecycle.enter(Phase.LOADING)
    clock.now += 6
    lifecycle.enter(Phase.READY)
    clock.now += 50
    lifecycle.enter(Phase.DRAINING)

    page = (await Client(make_management(lifecycle, registry)).get("/metrics")).body.decode()

    assert 'llm_phase{phase="draining"} 1.0' in page
    assert 'llm_phase{phase="ready"} 0.0' in page
    assert 'llm_load_seconds{phase="importing"} 4.0' in page
    assert 'llm_load_seconds{phase="loading"} 6.0' in page
    assert 'llm_load_seconds{phase="ready"}' not in page


def test_the_metrics_show_the_age_of_the_phase_and_the_progress_of_the_download() -> None:
    clock, registry = Clock(), CollectorRegistry()
    lifecycle = Lifecycle(clock)
    ServerMetrics(registry, lifecycle, EngineUsage(Objectives()))
    assert registry.get_sample_value("llm_download_bytes") is None
    lifecycle.enter(Phase.DOWNLOADING)
    lifecycle.download = DownloadProgress(3, 10)
    clock.now += 7
    assert registry.get_sample_value("llm_phase_age_seconds") == 7
    assert registry.get_sample_value("llm_download_bytes") == 3
    assert registry.get_sample_value("llm_download_expected_bytes") == 10
