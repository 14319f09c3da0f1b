"""Processes that a template forks, and a whole pod of such processes."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from router_support.pod_process import pod_process
from router_support.whole_pod import ServedReplica, addresses, settings_of_pod
from shared_support.waiting import eventually, eventually_in_loop

SCRIPT = """
import asyncio, os, signal, sys
from llmservice_operator.router.templates import Template, TemplateLost

def run():
    for line in sys.stdin:
        print(os.getpid(), line, end="", flush=True)
    return 3

async def main():
    BODY

template = Template("echo", run)
asyncio.run(main())
"""
"""The template is made by a process of its own, because the process of the tests has threads."""


def run(body: str) -> list[str]:
    script = SCRIPT.replace("BODY", body.replace("\n", "\n    "))
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return ran.stdout.splitlines()


def test_a_forked_process_reads_its_input_and_tells_its_exit_status() -> None:
    told = run("""process = await template.start()
process.stdin.write(b"hello\\n")
process.stdin.write_eof()
print(process.pid, await process.wait(), process.returncode, flush=True)""")
    pid = told[0].split()[0]
    assert told == [f"{pid} hello", f"{pid} 3 3"]


def test_a_template_forks_again_after_its_process_was_killed() -> None:
    told = run("""first = await template.start()
first.send_signal(signal.SIGKILL)
print(await first.wait())
second = await template.start()
print(first.pid != second.pid, second.returncode)""")
    assert told == ["-9", "True None"]


def test_a_process_whose_template_has_ended_counts_as_killed_and_starts_no_more() -> None:
    told = run("""process = await template.start()
with open(f"/proc/{process.pid}/stat") as stat:
    os.kill(int(stat.read().rpartition(")")[2].split()[1]), signal.SIGKILL)
print(await process.wait())
try:
    await template.start()
except TemplateLost as error:
    print(error)""")
    assert told == ["-9", "the template of the echo has ended"]


async def test_the_processes_of_a_pod_share_memory_start_again_and_end_together(
    tmp_path: Path,
) -> None:
    replica = ServedReplica(addresses(1)[0], "chat-1")
    await replica.start()
    settings = settings_of_pod(tmp_path, replicas_host=replica.address, metrics_servers_host=None)
    try:
        async with pod_process(settings) as pod:
            forwarder = pod.pid("forwarder")
            assert forwarder is not None
            assert private_share(forwarder) < 0.6
            os.kill(forwarder, signal.SIGKILL)
            await eventually_in_loop(lambda: pod.pid("forwarder") not in (None, forwarder))
            pids = pod.pids()
            assert await asyncio.to_thread(pod.end) == 0
            eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    finally:
        await replica.stop()


def private_share(pid: int) -> float:
    """Return the share of a process's memory that it shares with no other process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kib = {line.split()[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    return (kib["Private_Dirty:"] + kib["Private_Clean:"]) / kib["Rss:"]
