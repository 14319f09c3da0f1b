import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from operator_support.fault_proxy import FaultProxy, fault_proxy
from operator_support.fault_sample import SEED
from operator_support.forked import ForkedOperator
from operator_support.processes import Api, OperatorProcess

Start = Callable[..., OperatorProcess]


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    with fault_proxy() as running:
        yield running


@pytest.fixture
def start(proxy: FaultProxy, namespace: str, tmp_path: Path) -> Iterator[Start]:
    """Start operators that reach the API server only through the proxy."""
    started: list[OperatorProcess] = []

    def begin(watched: str = namespace, **settings: str) -> OperatorProcess:
        log = tmp_path / f"operator-{len(started)}.log"
        kubeconfig = proxy.kubeconfig(tmp_path)
        process = ForkedOperator(
            log, watched, WATCH_NAMESPACES=watched, KUBECONFIG=kubeconfig, **settings
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.is_running():
            process.kill()
    for process in started[-3:]:
        # pytest shows this when the test fails.
        print(f"{process.log.name}:\n{process.log.read_text()[-4000:]}")


@pytest.fixture
def namespaces(api: Api) -> Iterator[Callable[[], str]]:
    """Make a namespace at each call."""
    made: list[str] = []

    def make() -> str:
        name = f"test-{uuid.uuid4().hex[:8]}"
        api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        made.append(name)
        return name

    yield make
    for name in made:
        api.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture(autouse=True)
def _told_seed() -> None:
    """Print the seed; pytest shows it when the test fails."""
    print(f"LLMSERVICE_TEST_SEED={SEED}")
