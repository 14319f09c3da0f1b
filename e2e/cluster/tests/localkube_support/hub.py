"""Helpers for tests of the hub: a hub in its own process, and small repositories."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localkube.hub.settings import HubSettings

STOP_SECONDS = 30


@contextmanager
def running_hub(settings: HubSettings, folder: Path, log: Path | None = None) -> Iterator[str]:
    """Run the hub in its own process, as its users do; yield its URL."""
    file = folder / "hub.yaml"
    file.write_text(settings.to_yaml())
    log = log or folder / "hub.log"
    with (
        log.open("w") as written,
        subprocess.Popen(
            [sys.executable, "-m", "localkube.hub.server", str(file)],
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            assert address, log.read_text()
            yield address
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


def write_repository(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
