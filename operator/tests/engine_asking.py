"""A process that imports the pinned vLLM once and answers the tests' questions about it."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flag_tables

Ask = Callable[[str, list[list[str]]], list[Any]]
"""Asks engine_parser.py a question, and returns vLLM's answer for each list of arguments."""


@contextmanager
def asking_engine(python: Path) -> Iterator[Ask]:
    """Run engine_parser.py in the engine's environment; yield a function that queries it."""
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    cache = {"VLLM_CACHE_ROOT": str(python.parents[1] / "cache")}
    with subprocess.Popen(
        [python, Path(flag_tables.__file__).with_name("engine_parser.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **quiet, **cache},
    ) as parser:
        assert parser.stdin is not None
        assert parser.stdout is not None
        questions, answers = parser.stdin, parser.stdout

        def ask(question: str, arguments: list[list[str]]) -> list[Any]:
            print(json.dumps([question, arguments]), file=questions, flush=True)
            answer = list(json.loads(answers.readline()))
            assert len(answer) == len(arguments)
            return answer

        yield ask
