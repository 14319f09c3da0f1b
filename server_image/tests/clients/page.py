"""Formats docs/clients.md, which compares the features of each client with stock vLLM."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import engine_env

PAGE = Path(__file__).parents[3] / "docs" / "clients.md"
HEAD = f"""\
<!-- Written by `make test-clients`; do not edit. -->

# Clients

Each row is a feature of a real client. The listed version of the client used the feature on this
server and on stock vLLM {engine_env.PINNED}, with the same model, flags and API key. "equal"
means that the client returns the same complete reply. Ids, times and the division of a stream into
chunks may differ, and numbers may differ by a thousandth. "better" and "differs" are
followed by the reason for the difference.

| client | version | feature | compared with stock vLLM |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    client: str
    version: str
    feature: str
    verdict: str


def text(rows: Iterable[Row]) -> str:
    """Return the page with these rows."""
    return HEAD + "".join(f"| {' | '.join(astuple(row))} |\n" for row in rows)


def rows_of(page: str) -> list[Row]:
    """Return the rows of a page that `text` made."""
    lines = page.removeprefix(HEAD).splitlines()
    return [Row(*line.strip("| ").split(" | ")) for line in lines]


def missing(old: Iterable[Row], new: Sequence[Row]) -> list[Row]:
    """Return the old rows of the clients that ran whose features did not run."""
    ran = {row.client for row in new}
    features = {(row.client, row.feature) for row in new}
    return [row for row in old if row.client in ran and (row.client, row.feature) not in features]


def replaced(old: Iterable[Row], new: Iterable[Row], order: Iterable[str]) -> list[Row]:
    """Return the new rows, and the old rows of the clients that did not run, ordered by client."""
    fresh = list(new)
    ran = {row.client for row in fresh}
    rows = [*(row for row in old if row.client not in ran), *fresh]
    return [row for client in order for row in rows if row.client == client]
