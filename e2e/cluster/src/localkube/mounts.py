"""Removes the mounts below a folder, so that the folder can be removed."""

import re
import subprocess
from pathlib import Path

from localkube.errors import CommandFailed


def below(folder: Path) -> list[Path]:
    """Return the mount points in or below the folder, in the order of mounting."""
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
    """Unmount everything below the folder. A mount in use disappears with its last process."""
    for target in reversed(below(folder)):
        done = subprocess.run(
            ["umount", "--lazy", str(target)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise CommandFailed(f"umount {target}: {done.stderr.strip()}")
