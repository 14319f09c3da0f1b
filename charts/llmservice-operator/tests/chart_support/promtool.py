"""Runs promtool on files that a test has written."""

import subprocess
from pathlib import Path

from chart_support.helm import binary


def promtool(*arguments: str, folder: Path) -> None:
    """Run promtool in this folder; fail with its output if it finds an error."""
    program = binary("promtool", "uv run localkube build --promtool")
    done = subprocess.run(
        [program, *arguments], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
