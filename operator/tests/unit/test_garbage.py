"""Tests how often the long-running commands collect cyclic garbage."""

import subprocess
import sys

import pytest

PROGRAM = """
import gc
import sys
from llmservice_operator import commands, process
from llmservice_operator.metrics_server import MetricsServer

async def churn(self):
    kept = [[] for _ in range(100_000)]
    collected = gc.get_stats()[2]["collections"]
    for _ in range(20):
        kept = [[] for _ in range(100_000)]
    print(gc.get_stats()[2]["collections"] - collected, gc.get_freeze_count())
    return 0

class Process:
    run = churn
    def __init__(self, settings):
        pass

process.Process = Process
MetricsServer.run = churn
sys.exit(commands.run([sys.argv[1]]))
"""
"""Runs a command, with a state that is replaced twenty times in place of its work. Prints the
number of full collections meanwhile, and the number of objects that no collection reads."""


@pytest.mark.parametrize("command", ["run", "metrics-server"])
def test_a_process_that_replaces_its_state_again_and_again_does_not_read_all_of_it(
    command: str,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, command], check=True, capture_output=True, text=True
    )

    collections, frozen = map(int, done.stdout.split())
    assert collections == 0
    assert frozen > 50_000
