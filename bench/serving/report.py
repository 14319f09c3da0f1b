"""Tables and plots of what was measured."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as CSV and print them as a table."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    lines = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def draw_bars(
    path: Path,
    rows: Sequence[Mapping[str, object]],
    label: Sequence[str],
    values: Sequence[str],
    unit: str,
) -> None:
    """Draw a group of bars for every row; `label` and `values` name columns."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(max(6, 1.5 * len(rows)), 4), layout="constrained")
    width = 0.8 / len(values)
    for number, name in enumerate(values):
        places = [index + number * width for index in range(len(rows))]
        axes.bar(places, [float(str(row[name])) for row in rows], width, label=name)
    axes.set_xticks(
        [index + 0.4 - width / 2 for index in range(len(rows))],
        ["\n".join(_shown(row[name]) for name in label) for row in rows],
    )
    axes.set_ylabel(unit)
    figure.legend(loc="outside upper center", ncols=len(values))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
