"""Starts servers that fill one model cache, each as a separate process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

REPOSITORY = "org/tiny"
TAKEOVER_SECONDS = 4
"""Takeover time in seconds. It is so long that a slow writer on a busy machine is not taken for
dead."""
PATIENCE_SECONDS = 60
TESTS = Path(__file__).parents[1]
SOURCE = TESTS.parent / "src"


class Worker:
    """One server that fills the cache, as a separate process."""

    def __init__(self, folder: Path, number: int, cache: Path, hub: str) -> None:
        self._said = folder / f"worker-{number}.jsonl"
        self._log = folder / f"worker-{number}.log"
        environment = {
            **os.environ,
            "PYTHONPATH": str(SOURCE),
            "HF_ENDPOINT": hub,
            "HF_HOME": str(folder / f"home-{number}"),
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "VLLM_CACHE_ROOT": str(cache / "compile" / "qwen" / "vllm"),
            "LLMSERVICE_SHARED_CACHE_DIRECTORY": str(cache),
            "LLMSERVICE_CACHE_TAKEOVER_SECONDS": str(TAKEOVER_SECONDS),
        }
        with self._said.open("w") as said, self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, TESTS / "filling_worker.py", REPOSITORY],
                env=environment,
                stdout=said,
                stderr=log,
            )

    def said(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._said.read_text().splitlines()]

    def is_fetching(self) -> bool:
        """Return whether this server is downloading and has received some bytes of the weights."""
        told = [each for each in self.said() if "phase" in each]
        last: dict[str, Any] = told[-1] if told else {}
        done = last.get("download", {}).get("bytesDone", 0)
        return last.get("phase") == "downloading" and done > 0

    def succeeded(self) -> bool:
        assert self.process.wait(PATIENCE_SECONDS) == 0, self._log.read_text()
        return True


@contextmanager
def working(tmp_path: Path, hub: str, count: int) -> Iterator[list[Worker]]:
    cache = tmp_path / "cache"
    workers = [Worker(tmp_path, number, cache, hub) for number in range(count)]
    try:
        yield workers
    finally:
        for worker in workers:
            with suppress(ProcessLookupError):
                worker.process.kill()
            worker.process.wait(PATIENCE_SECONDS)
