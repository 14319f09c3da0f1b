"""Starts a real Prometheus on the local cluster, with the targets and the alerts of the chart.

`make prometheus` runs it. `make prometheus SOONER=10` lets alerts fire ten times as early.
"""

import argparse
import subprocess
import sys

from localkube.cluster import Cluster
from localkube.errors import LocalkubeError
from monitoring import Prometheus, start_prometheus, stop_prometheus


def questions(prometheus: Prometheus, name: str) -> list[str]:
    """Return the lines with the commands that show the targets, the alerts and a query.

    `name` is the name of the local cluster.
    """
    chosen = "" if name == "llmservice" else f" --name {name}"
    enter = f".venv/bin/localkube{chosen} exec -- curl -s"
    return [
        f"Prometheus answers at {prometheus.url}, only in the network of the cluster:",
        f"  {enter} {prometheus.url}/api/v1/targets",
        f"  {enter} {prometheus.url}/api/v1/alerts",
        f"  {enter} {prometheus.url}/api/v1/query --data-urlencode 'query=up'",
    ]


def main() -> int:
    """Start Prometheus; return 1 if there is no such cluster, and 0 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="llmservice", help="name of the local cluster")
    parser.add_argument(
        "--sooner", type=int, default=1, help="number of times as early as usual that alerts fire"
    )
    options = parser.parse_args()
    cluster = Cluster(options.name)
    try:
        cluster.record()
        # Prometheus reads its configuration only at its start.
        stop_prometheus(options.name)
        folder = cluster.state / "monitoring"
        folder.mkdir(exist_ok=True)
        prometheus = start_prometheus(options.name, folder, options.sooner)
    except (LocalkubeError, subprocess.CalledProcessError) as error:
        print(f"prometheus: {error}", file=sys.stderr)
        return 1
    print(*questions(prometheus, options.name), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
