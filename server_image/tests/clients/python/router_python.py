"""Runs the cases of OpenAI's client through vLLM's router, with the key of the server."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import cases

START_SECONDS = 60


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_ready(address):
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def declare_cases():
    """Declare the cases of OpenAI's client.

    They take into account that the router does not pass the key on to POST /v1/responses.
    """
    import openai_python

    cases.leave_out("responses", "responses, streamed", "responses, tools")
    cases.case("responses, refused, because the router does not pass the key on")(
        lambda: cases.refusal(openai_python.responses, openai_python.openai.APIError)
    )


def main():
    port, metrics = free_port(), free_port()
    router = Path(sys.executable).with_name("vllm-router")
    arguments = ["--host=127.0.0.1", f"--port={port}", f"--prometheus-port={metrics}"]
    worker = ["--worker-urls", cases.URL, "--policy=round_robin", "--disable-retries"]
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "OPENAI_API_KEY": cases.KEY}
    with subprocess.Popen(
        [str(router), *arguments, *worker], stdout=sys.stderr, env=environment
    ) as process:
        try:
            end = time.monotonic() + START_SECONDS
            while not is_ready(address):
                assert process.poll() is None, "the router has ended"
                assert time.monotonic() < end, "the router does not become ready"
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
            cases.URL = address
            declare_cases()
            cases.main()
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
