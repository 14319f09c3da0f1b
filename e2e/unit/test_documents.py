"""Tests that documents and YAML files have short lines, for readable diffs, that the links of
documents work, and that each decision has a number of its own.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

LONGEST_LINE = 120

GENERATED = {
    "charts/llmservice-operator/files/llmservice.yaml",
    "crds/llmservice.yaml",
    "docs/conditions.md",
    "docs/engine-flags.md",
    "docs/spec.md",
}
NOT_DOCUMENTS = {"golden", "templates", "CHANGELOG.md"}
"""Parts of a path that exclude a file: recorded output, text with template code, and the changelog,
which has one long line for each change."""

LINK = re.compile(r"\[[^]]*\]\(([^)#\s]*)(?:#([^)\s]+))?\)")


def documents(*suffixes: str) -> list[Path]:
    found = (path for suffix in suffixes for path in ROOT.rglob(f"*{suffix}"))
    return sorted(path for path in found if is_document(path.relative_to(ROOT)))


def is_document(path: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.parts)
    return not (is_hidden or path.as_posix() in GENERATED or NOT_DOCUMENTS & {*path.parts})


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_too_long(line: str) -> bool:
    """Return whether a line is too long and can be shortened.

    A table row cannot be shortened, and neither can a long word such as a URL.
    """
    longest_word = max(map(len, line.split()), default=0)
    is_one_word = len(line) - longest_word <= LONGEST_LINE // 3
    return len(line) > LONGEST_LINE and not line.startswith("|") and not is_one_word


def prose(document: str) -> Iterator[tuple[int, str]]:
    """Yield the lines outside code blocks, with their numbers."""
    in_code = False
    for number, line in enumerate(document.splitlines(), start=1):
        if line.startswith("```"):
            in_code = not in_code
        elif not in_code:
            yield number, line


def anchors(document: str) -> set[str]:
    """Return the anchors that code hosts make for the headings of a document."""
    headings = (line.lstrip("# ") for _, line in prose(document) if line.startswith("#"))
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {each.replace(" ", "-") for each in words}


@pytest.mark.parametrize("path", documents(".md", ".yaml", ".yml"), ids=name)
def test_the_lines_of_a_document_can_be_read_in_a_diff(path: Path) -> None:
    text = path.read_text()
    lines = prose(text) if path.suffix == ".md" else enumerate(text.splitlines(), start=1)

    assert [f"{name(path)}:{number}" for number, line in lines if is_too_long(line)] == []


@pytest.mark.parametrize("path", documents(".md"), ids=name)
def test_every_link_within_the_repository_leads_to_a_file_and_a_heading(path: Path) -> None:
    broken = []
    for number, line in prose(path.read_text()):
        for target, heading in LINK.findall(line):
            if target.startswith(("http://", "https://")):
                continue
            linked = path.parent / target if target else path
            is_there = linked.exists() and (not heading or heading in anchors(linked.read_text()))
            if not is_there:
                broken.append(f"{name(path)}:{number} {target}#{heading}")

    assert broken == []


def test_a_line_is_too_long_unless_it_is_a_table_row_or_one_long_word() -> None:
    words = "word " * 30

    assert is_too_long(words)
    assert not is_too_long("| " + words + "|")
    assert not is_too_long("See https://example.com/" + "a" * 120)
    assert is_too_long(words + "https://example.com/" + "a" * 120)


def test_the_decisions_are_numbered_one_by_one_in_their_names_and_headings() -> None:
    paths = sorted((ROOT / "docs/decisions").glob("0*.md"))
    numbers = list(range(1, len(paths) + 1))

    assert [int(path.name.partition("-")[0]) for path in paths] == numbers
    assert [int(path.read_text().partition(".")[0].lstrip("# ")) for path in paths] == numbers
