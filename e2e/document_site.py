"""Builds the site of the documents into .site/html: `make docs`.

The documents stay where they are in the repository, and their links stay as code hosts expect them.
The site has the files of `PAGES` and every file that they link, in the same folders. A link that
leads nowhere, a page outside the menu and a file that a browser would load from another host are
errors.
"""

import os
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCE: Final = ROOT / ".site" / "source"
SITE: Final = ROOT / ".site" / "html"
PAGES: Final = ("README.md", "docs/**/*.md", "docs/icon.svg")

LINK: Final = re.compile(r"\[[^]]*\]\(([^)#\s]+)[^)]*\)|<img[^>]* src=\"([^\"]+)\"")
LOADED: Final = {"script": "src", "img": "src", "iframe": "src", "link": "href"}
"""Elements whose address a browser loads without a click, each with the attribute."""
NAMES_ONLY: Final = {"canonical", "alternate", "prev", "next", "edit"}
"""Relations of a <link> that load nothing."""


def linked(document: Path) -> Iterator[Path]:
    """Yield the files of the repository that a document links."""
    for match in LINK.finditer(document.read_text()):
        target = match[1] or match[2]
        if not urlsplit(target).scheme:
            yield (document.parent / target).resolve()


def sources() -> list[Path]:
    """Return the files of the site, in the order of their names.

    Raises:
        SystemExit: A document links to a folder, for which a site has no page.
    """
    waiting = [path for pattern in PAGES for path in ROOT.glob(pattern)]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        if path.suffix == ".md":
            targets = [*linked(path)]
            if folders := sorted({target for target in targets if target.is_dir()}):
                sys.exit(f"{path} links to a folder: link to a file in it: {folders}")
            waiting += (target for target in targets if target.is_file())
    return sorted(found)


class Page(HTMLParser):
    """The addresses and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if LOADED.get(tag, "") in given and given.get("rel") not in NAMES_ONLY:
            self.loaded.append(given[LOADED[tag]])


def problems(site: Path) -> Iterator[str]:
    """Yield the links of a built site that lead nowhere, and the files from other hosts."""
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        yield from (f"{name} loads {each}" for each in page.loaded if urlsplit(each).netloc)
        for address in page.links + page.loaded:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or name == "404.html":
                continue
            target = path
            if parts.path:
                target = site / posixpath.normpath(
                    posixpath.join(posixpath.dirname(name), unquote(parts.path))
                )
                target = target / "index.html" if target.is_dir() else target
            is_anchor_missing = (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].anchors
            )
            if not target.exists() or is_anchor_missing:
                yield f"{name} links to {address}, which does not exist"


def main() -> int:
    """Build the site; return 1 if a page or a link is wrong."""
    shutil.rmtree(SOURCE.parent, ignore_errors=True)
    for path in sources():
        copy = SOURCE / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    # Without the variable, the builder advertises its successor (decision 26). With --quiet, it
    # would not count its warnings, which --strict makes errors.
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    if built.returncode:
        print(built.stderr, end="")
        return built.returncode
    found = sorted({*problems(SITE)})
    print(*found, sep="\n", end="\n" if found else "")
    if not found:
        print(
            f"the site: {SITE.relative_to(ROOT)}/index.html ({len([*SITE.rglob('*.html')])} pages)"
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
