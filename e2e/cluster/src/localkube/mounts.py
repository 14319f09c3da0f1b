"""Mounts below a folder, which have to go before the folder can."""

import re
import subprocess
from pathlib import Path

from localkube.errors import CommandFailed


def below(folder: Path) -> list[Path]:
    """Return what is mounted in or below the folder, in the order in which it was mounted."""
    return [
        target
        for target in targets(Path("/proc/self/mountinfo").read_text())
        if target.is_relative_to(folder)
    ]


def targets(mountinfo: str) -> list[Path]:
    """Return the mount points of a mountinfo table, which writes a space as \\040."""
    escaped = (line.split()[4] for line in mountinfo.splitlines())
    return [Path(re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), each)) for each in escaped]


def release(folder: Path) -> None:
    """Unmount all below the folder; what is still in use goes once it is not."""
    for target in reversed(below(folder)):
        done = subprocess.run(
            ["umount", "--lazy", str(target)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise CommandFailed(f"umount {target}: {done.stderr.strip()}")
