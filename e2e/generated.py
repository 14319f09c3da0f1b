"""Rewrites the stale generated files, or only lists them.

`make generate` writes them. `make lint` fails while one of them is stale.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def printed_by(*command: str) -> Callable[[], str]:
    """Return a function that returns the output of a command."""

    def printed() -> str:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    return printed


FILES: Mapping[str, Callable[[], str]] = {
    "crds/llmservice.yaml": printed_by("llmservice-operator", "crd"),
    "charts/llmservice-operator/files/llmservice.yaml": printed_by("llmservice-operator", "crd"),
    "charts/llmservice-operator/templates/_rules.tpl": printed_by(
        "llmservice-operator", "chart-rules"
    ),
    **{
        f"charts/llmservice-operator/files/dashboards/{name}.json": printed_by(
            sys.executable, str(ROOT / "charts/dashboards"), name
        )
        for name in ("services", "service", "router", "operator")
    },
    "docs/conditions.md": printed_by("llmservice-operator", "reference", "conditions"),
    "docs/engine-flags.md": printed_by("llmservice-operator", "reference", "engine-flags"),
    "docs/migrating.md": printed_by(sys.executable, str(ROOT / "operator/migration_page.py")),
    "docs/spec.md": printed_by(sys.executable, str(ROOT / "operator/spec_page.py")),
    "docs/routes.md": printed_by(sys.executable, "-m", "llmservice_server.route_page"),
    "operator/src/llmservice_operator/desired/client_paths.py": printed_by(
        sys.executable, "-m", "llmservice_server.path_list"
    ),
}
"""Generated files, each with the function that returns its text."""


def stale(files: Mapping[str, Callable[[], str]], root: Path) -> dict[str, str]:
    """Return the present texts of the files that do not exist or have another text."""
    texts = {name: text() for name, text in files.items()}
    return {
        name: text
        for name, text in texts.items()
        if not (root / name).exists() or (root / name).read_text() != text
    }


def write(files: Mapping[str, Callable[[], str]], root: Path) -> None:
    """Write the files whose text has changed. A command that fails leaves its file unchanged."""
    for name, text in stale(files, root).items():
        (root / name).write_text(text)


def main() -> int:
    """Write the stale files, or only report them; return 1 if a check finds a stale file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say which files are stale")
    parser.add_argument("names", nargs="*", metavar="FILE", help="all files if none is named")
    options = parser.parse_args()
    if unknown := sorted({*options.names} - {*FILES}):
        parser.error(f"{', '.join(unknown)} is not generated: choose from {', '.join(FILES)}")
    files = {name: FILES[name] for name in options.names or FILES}
    if not options.check:
        write(files, ROOT)
        return 0
    found = stale(files, ROOT)
    for name in found:
        print(f"{name} is stale: run `make generate`")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
