"""Reads the values of metrics from a text in Prometheus' format."""

import re


def metric_of(scrape: str, name: str, **labels: str) -> float:
    """Return the sum, in a scrape, of all series of the metric with these labels."""
    total = 0.0
    for line in scrape.splitlines():
        match = re.fullmatch(r"([\w:]+)(?:\{(.*)\})? (\S+)", line)
        if match and match[1] == name:
            found = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
            if labels.items() <= found.items():
                total += float(match[3])
    return total
