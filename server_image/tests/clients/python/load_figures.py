"""Compares the figures that a load generator reports with the metrics of the server."""

import os
import re
import sys
import urllib.request

FEATURE = "requests, tokens, time to first token and latency within 3 % of `/metrics`"
LIMIT = 0.03
"""Maximum relative difference of a figure."""


def metrics():
    """Return the sum of each metric of the engine over all its labels."""
    with urllib.request.urlopen(os.environ["METRICS"], timeout=10) as page:
        lines = page.read().decode().splitlines()
    sums = {}
    for line in lines:
        if found := re.match(r"vllm:(\w+)(?:\{.*\})? (\S+)$", line):
            sums[found[1]] = sums.get(found[1], 0.0) + float(found[2])
    return sums


def seen_by_the_server(before, after):
    """Compute a load generator's figures from the server's metrics before and after the run.

    Times are in seconds.
    """
    grown = {name: after[name] - before.get(name, 0.0) for name in after}

    def mean(name):
        return grown[f"{name}_sum"] / grown[f"{name}_count"]

    return {
        "requests": grown["request_success_total"],
        "prompt tokens": grown["prompt_tokens_total"],
        "generated tokens": grown["generation_tokens_total"],
        "time to first token": mean("time_to_first_token_seconds"),
        "latency": mean("e2e_request_latency_seconds"),
    }


def agreement(told, counted):
    """Return the reported numbers of tokens, which must be the same with both servers.

    Raises AssertionError if a figure of the load generator differs too much from what the tested
    server itself counted.
    """
    apart = {name: told[name] / counted[name] - 1 for name in counted}
    print({name: f"{value:+.2%}" for name, value in apart.items()}, file=sys.stderr)
    assert all(abs(value) <= LIMIT for value in apart.values()), apart
    return {name: value for name, value in told.items() if "token" in name and "time" not in name}
