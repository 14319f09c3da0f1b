"""Which pickers of other pods the supervisor tells its picker."""

import asyncio
from pathlib import Path

from llmservice_operator.router.replica_view import View, decode
from router_support.whole_pod import settings_of_pod, supervisor_of
from shared_support.waiting import eventually_in_loop


async def test_a_picker_is_told_of_the_others_in_its_first_line(tmp_path: Path) -> None:
    answered = asyncio.Event()

    async def resolve(host: str) -> list[str]:
        if host == "pickers.example":
            await answered.wait()
            return ["10.0.0.3", "10.0.0.1", "10.0.0.2", "fd00::4"]
        return []

    settings = settings_of_pod(
        tmp_path, pickers_host="pickers.example", pod_address="10.0.0.2", picker_port=9002
    )
    supervisor, lines = supervisor_of(settings, resolve), list[View]()
    supervisor.picker.write = lambda line: lines.append(decode(line))  # type: ignore[method-assign]
    replicas = asyncio.create_task(supervisor.replicas.run())
    telling = asyncio.create_task(supervisor._tell_for_ever())
    await supervisor.replicas.asked.wait()
    pickers = asyncio.create_task(supervisor._follow_pickers())
    assert lines == []
    answered.set()
    await eventually_in_loop(lambda: bool(lines))
    for task in (telling, pickers, replicas):
        task.cancel()
    await asyncio.gather(telling, pickers, replicas, return_exceptions=True)
    await supervisor._admin.close()
    await supervisor._metrics.close()
    assert lines[0] == View((), ("10.0.0.1:9002", "10.0.0.3:9002", "[fd00::4]:9002"))
