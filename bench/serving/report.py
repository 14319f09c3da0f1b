"""Writes tables and plots of the measurements."""

import csv
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

Row = dict[str, object]


def commit() -> str:
    """Return the commit under test, with the suffix "-dirty" if the code differs from it.

    Return "unknown" for a source archive, which has no commit.
    """
    name = _git("describe", "--always")
    # Files that the bench has just written do not change the measured code.
    others = (":/", ":(top,exclude,glob)bench/*/results/**")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *others)
    return f"{name}-dirty" if name and changed else name or "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout.strip()


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as CSV, with the commit under test, and print them as a table."""
    with path.open("w", newline="") as file:
        file.write(f"# commit {commit()}\n")
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: _rounded(value) for name, value in row.items()} for row in rows)
    lines = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    print()
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    print(flush=True)


def write_text(path: Path, lines: Sequence[str]) -> None:
    """Write lines, with the commit under test."""
    path.write_text("\n".join([f"# commit {commit()}", *lines, ""]))


def draw_bars(
    path: Path,
    rows: Sequence[Mapping[str, object]],
    label: Sequence[str],
    panels: Mapping[str, Sequence[str]],
) -> None:
    """Draw a group of bars for every row, in a panel for each unit.

    `label` names the columns that identify a row. `panels` maps each unit to the columns with its
    values.
    """
    figure, all_axes = plt.subplots(
        len(panels),
        1,
        figsize=(max(6, 1.1 * len(rows)), 3 + 2.2 * (len(panels) - 1)),
        layout="constrained",
        squeeze=False,
        sharex=True,
    )
    for axes, (unit, values) in zip(all_axes[:, 0], panels.items(), strict=True):
        width = 0.8 / len(values)
        for number, name in enumerate(values):
            places = [index + number * width for index in range(len(rows))]
            axes.bar(places, [float(str(row[name])) for row in rows], width, label=name)
        axes.set_xticks(
            [index + 0.4 - width / 2 for index in range(len(rows))],
            ["\n".join(_shown(row[name]) for name in label) for row in rows],
        )
        axes.set_ylabel(unit, fontsize="small")
        if len(values) > 1:
            axes.legend(fontsize="small", ncols=len(values), loc="lower right", framealpha=0.8)
    _save(figure, path)


def draw_predictions(
    path: Path,
    rows: Sequence[Mapping[str, object]],
    group: str,
    across: str,
    predicted: str,
    measured: str,
) -> None:
    """Draw predictions as lines and measurements as points, with a colour for each group."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for color, name in enumerate(dict.fromkeys(str(row[group]) for row in rows)):
        chosen = [row for row in rows if row[group] == name]
        places = [float(str(row[across])) for row in chosen]
        for column, style in ((predicted, "-"), (measured, "o")):
            heights = [float(str(row[column])) for row in chosen]
            axes.plot(places, heights, style, color=f"C{color}", label=f"{name}: {column}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.set_xlabel(across)
    axes.set_ylabel("tokens a second")
    axes.legend(fontsize="small")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _rounded(value: object) -> object:
    return f"{value:.5g}" if isinstance(value, float) else value


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
