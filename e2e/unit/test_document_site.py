"""Tests that the checks of `make docs` find what is wrong in a built site."""

from pathlib import Path

import pytest

import document_site

GOOD = (
    '<a href="other.html#part">other</a> <img src="a.svg"> <a href="https://example.com/">web</a>'
)


@pytest.mark.parametrize(
    ("page", "found"),
    [
        (GOOD, []),
        ('<a href="gone.html">', ["index.html links to gone.html, which does not exist"]),
        ('<a href="other.html#x">', ["index.html links to other.html#x, which does not exist"]),
        ('<a href="#x">', ["index.html links to #x, which does not exist"]),
        ('<img src="b.svg">', ["index.html links to b.svg, which does not exist"]),
        ('<script src="https://cdn.example.com/a.js">', ["index.html loads https://cdn.example.com/a.js"]),
        ('<link rel="stylesheet" href="//fonts.example.com/a.css">',
         ["index.html loads //fonts.example.com/a.css"]),
    ],
)  # fmt: skip
def test_a_broken_link_and_a_file_from_another_host_are_found(
    tmp_path: Path, page: str, found: list[str]
) -> None:
    (tmp_path / "index.html").write_text(page)
    (tmp_path / "other.html").write_text('<h2 id="part">Part</h2>')
    (tmp_path / "a.svg").touch()

    assert list(document_site.problems(tmp_path)) == found


def test_the_site_has_the_documents_and_the_files_that_they_link() -> None:
    names = {path.relative_to(document_site.ROOT).as_posix() for path in document_site.sources()}

    assert {"README.md", "docs/quickstart.md", "docs/overview.svg", "SECURITY.md"} <= names
    assert "crds/examples/pvc-cache.yaml" in names


def test_every_document_is_in_the_menu_once() -> None:
    menu = (document_site.ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2].split()
    documents = [
        path.relative_to(document_site.ROOT).as_posix()
        for path in document_site.sources()
        if path.suffix == ".md"
    ]

    assert sorted(word for word in menu if word.endswith(".md")) == sorted(documents)
