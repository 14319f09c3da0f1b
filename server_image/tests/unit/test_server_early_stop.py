"""Tests that a signal is not lost if it arrives before the server has a handler for it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import install_on_base

SIGNALS = {signal.SIGTERM, signal.SIGINT}


def test_a_signal_that_waited_while_the_interpreter_started_ends_the_server() -> None:
    def block_and_send() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        os.kill(os.getpid(), signal.SIGTERM)

    done = subprocess.run(
        [sys.executable, "-m", "llmservice_server", "--version"],
        preexec_fn=block_and_send,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_installed_command_starts_with_its_signals_blocked(tmp_path: Path) -> None:
    command = tmp_path / "command"
    command.write_text(
        f"#!{sys.executable}\nimport signal, sys\n"
        "print(sys.argv[1:], sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))))\n"
    )
    command.chmod(0o755)

    install_on_base.block_signals(command)

    printed = subprocess.check_output([command, "--a=b c"], text=True, timeout=60)
    assert printed == f"['--a=b c'] {sorted(map(int, SIGNALS))}\n"
