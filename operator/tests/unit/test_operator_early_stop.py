"""Tests that a signal is not lost if it arrives before the operator has a handler for it."""

import os
import signal
import subprocess
import sys


def test_a_signal_that_waited_while_the_interpreter_started_ends_the_program() -> None:
    def block_and_send() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        os.kill(os.getpid(), signal.SIGTERM)

    done = subprocess.run(
        [sys.executable, "-m", "llmservice_operator", "crd"],
        preexec_fn=block_and_send,
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, ""), done.stderr
