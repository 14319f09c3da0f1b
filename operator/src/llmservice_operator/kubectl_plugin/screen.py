"""Prints text and tables: in colours and wrapped on a terminal, and as plain lines elsewhere."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, TextIO

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH: Final = 10_000
"""Width of the output in characters if it is no terminal, so that no line is wrapped."""
UNKNOWN: Final = "-"
"""Text in place of a value that is unknown or absent."""

_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters, except for tabs and line breaks. A terminal would obey them."""


def console_for(file: TextIO | None = None) -> Console:
    """Return a console that writes to a file, by default to the standard output."""
    file = file or sys.stdout
    width = None if file.isatty() else PLAIN_WIDTH
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)


def show(renderable: RenderableType, console: Console) -> None:
    """Print something. No line of plain output ends with spaces."""
    if console.is_terminal:
        console.print(renderable)
        return
    plain = io.StringIO()
    Console(file=plain, width=console.width, color_system=None, highlight=False).print(renderable)
    for line in plain.getvalue().splitlines():
        console.file.write(f"{line.rstrip()}\n")


def show_json(value: Any, file: TextIO | None = None) -> None:
    """Print a dataclass as one line of JSON. Its names are written as in Kubernetes."""
    text = json.dumps(as_json(value), ensure_ascii=False)
    (file or sys.stdout).write(f"{text}\n")


def as_json(value: Any) -> Any:
    """Return a dataclass as JSON values, with names such as readyReplicas."""
    if dataclasses.is_dataclass(value):
        named = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        return {_camel(name): as_json(each) for name, each in named.items()}
    if isinstance(value, tuple | list):
        return [as_json(each) for each in value]
    return value


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(each.title() for each in others)


def printable(text: str) -> str:
    """Return text without control characters. A pod or a model may have written the text."""
    return _CONTROL.sub("", text)


def cell(value: object, style: str = "") -> Text:
    """Return a value as a text; an absent value as UNKNOWN."""
    return Text(UNKNOWN if value is None else printable(str(value)), style=style)


def facts(rows: Iterable[tuple[str, Text | None]]) -> Table:
    """Return lines with a label and a value. A row without a value is left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for label, value in rows:
        if value is not None:
            grid.add_row(label, value)
    return grid


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: int = 0) -> Table:
    """Return a table. The last `right` columns are aligned to the right, as numbers are."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for number, name in enumerate(columns):
        is_number = number >= len(columns) - right
        # A name that is too long continues on the next line, because a part of it is of no use.
        made.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        made.add_row(*(each if isinstance(each, Text) else cell(each) for each in row))
    return made


def age(since: str | None, now: datetime) -> str:
    """Return the time since a timestamp of Kubernetes, such as 12s, 5m, 3h or 4d."""
    if since is None:
        return UNKNOWN
    seconds = max(0, int((now - datetime.fromisoformat(since)).total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"
