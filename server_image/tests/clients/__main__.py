"""Runs the clients against both servers, prints every difference and writes docs/clients.md.

The exit status is 1 if a difference is not explained or a client fails. When all clients run, it is
also 1 if an explanation matches no difference.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clients import comparison, environments, known, page, servers
from clients.catalogue import CLIENTS, Client
from server_support.engine import ModelServer
from server_support.models import a_tone

CASES_SECONDS = 600
"""Time limit in seconds of one client with all its cases."""

Replies = dict[str, Mapping[str, Any]]
"""Output of a client for each feature: its reply or its failure."""


def main() -> int:
    """Run the named clients, or all of them; return 1 after a failure, and 0 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m clients", description=__doc__)
    parser.add_argument(
        "clients", nargs="*", metavar="CLIENT", help="its script, such as openai_node"
    )
    wanted = parser.parse_args().clients
    scripts = [client.script.stem for client in CLIENTS]
    if strange := sorted(set(wanted) - set(scripts)):
        parser.error(f"no client {', '.join(strange)}: choose from {', '.join(scripts)}")
    chosen = [client for client in CLIENTS if not wanted or client.script.stem in wanted]
    # SIGTERM must also stop the servers of this command.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    with tempfile.TemporaryDirectory() as folder:
        for client in chosen:
            environments.command(client.lock, client.script, Path(folder))
        compared, failed = compare(chosen, Path(folder))
    if not wanted:
        failed += stale(compared)
    print(f"{len(compared)} cases, {failed} failures")
    return 1 if failed else 0


Compared = dict[tuple[Client, str], list[str]]
"""Client and feature -> differences."""


def compare(clients: Sequence[Client], folder: Path) -> tuple[Compared, int]:
    """Run the clients against both servers of each kind of model.

    Return all differences, and the number of cases whose differences are not explained.
    """
    compared: Compared = {}
    failed = 0
    recording = folder / "tone.wav"
    recording.write_bytes(a_tone(16_000))
    for kind in dict.fromkeys(kind for client in clients for kind in client.kinds):
        print(f"==> servers of the kind {kind}", flush=True)
        with servers.both(kind, folder / kind) as both:
            for client in (each for each in clients if kind in each.kinds):
                print(f"==> {client.name}", flush=True)
                mine, theirs = (replies(client, kind, each, recording) for each in both)
                for feature in dict.fromkeys([*mine, *theirs]):
                    outcomes = (
                        each.get(feature, {"failure": "no reply"}) for each in (mine, theirs)
                    )
                    compared[client, feature] = differing(*outcomes)
                if kind == client.kinds[-1]:
                    failed += report(
                        client, {f: compared[c, f] for c, f in compared if c == client}
                    )
    return compared, failed


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return the differences of two outcomes. If both failed, that counts as a difference."""
    if "failure" in ours and "failure" in theirs:
        return [f"failure: with both servers, {ours['failure']}"]
    return comparison.differences(comparison.comparable(ours), comparison.comparable(theirs))


def replies(client: Client, kind: str, server: ModelServer, recording: Path) -> Replies:
    """Run a client's cases against a server, and return their outcomes."""
    try:
        done = _run(client, kind, server, recording)
    except subprocess.TimeoutExpired:
        return {"all": {"failure": f"it took longer than {CASES_SECONDS} seconds"}}
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode or not lines:
        lines.append({"feature": "all", "failure": f"it ended with status {done.returncode}"})
    return {line.pop("feature"): line for line in lines}


def _run(
    client: Client, kind: str, server: ModelServer, recording: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        environments.command(client.lock, client.script, recording.parent),
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(recording.parent),
            "TMPDIR": str(recording.parent),
            "VLLM_NO_USAGE_STATS": "1",
            "NEEDS": kind,
            "URL": f"http://127.0.0.1:{server.api_port}",
            "KEY": servers.KEY,
            "RECORDING": str(recording),
            "TOKENIZER": str(servers.text_model()),
            "METRICS": f"http://127.0.0.1:{server.management_port}/metrics",
        },
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=CASES_SECONDS,
    )


def report(client: Client, compared: Mapping[str, Sequence[str]]) -> int:
    """Print a client's differences, write its rows to the page, and return the number of
    unexplained cases.

    A feature that the page has and that did not run counts as unexplained.
    """
    failed, rows = 0, []
    version = environments.version_of(client.package, client.lock)
    for feature, found in compared.items():
        case = f"{client.name}: {feature}"
        verdict, is_explained = known.verdict(case, found)
        failed += not is_explained
        rows.append(page.Row(client.name, version, feature, verdict))
        if found:
            print(f"{case}: {verdict}", *found, sep="\n    ", flush=True)
    old = page.rows_of(page.PAGE.read_text()) if page.PAGE.exists() else []
    for row in page.missing(old, rows):
        failed += 1
        print(
            f"{row.client}: {row.feature}: did not run; if its case was removed, delete its row in "
            f"{page.PAGE.name} first",
            flush=True,
        )
    order = [client.name for client in CLIENTS]
    page.PAGE.write_text(page.text(page.replaced(old, rows, order)))
    return failed


def stale(compared: Compared) -> int:
    """Print the known differences that were not found, and return their number."""
    count = 0
    for each in known.KNOWN:
        if not any(
            each.explains(f"{client.name}: {feature}", difference)
            for (client, feature), found in compared.items()
            for difference in found
        ):
            print(f"known.py explains a difference that is gone: {each.cases}: {each.reason}")
            count += 1
    return count


if __name__ == "__main__":
    sys.exit(main())
