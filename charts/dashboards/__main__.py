"""Prints a Grafana dashboard as JSON: `python charts/dashboards NAME`.

`make generate` writes the dashboards to files of the chart.
"""

import sys

import layout
import operator_and_metrics_servers
import router
import service
import services

DASHBOARDS = {
    "services": services.DASHBOARD,
    "service": service.DASHBOARD,
    "router": router.DASHBOARD,
    "operator": operator_and_metrics_servers.DASHBOARD,
}


def main() -> int:
    """Print the dashboard that the command line names; return 2 if there is none."""
    if len(sys.argv) != 2 or sys.argv[1] not in DASHBOARDS:
        print(f"Name one of {', '.join(DASHBOARDS)}.", file=sys.stderr)
        return 2
    sys.stdout.write(layout.rendered(DASHBOARDS[sys.argv[1]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
