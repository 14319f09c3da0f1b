"""Print docs/routes.md, the page about the routes, made from the list of them."""

from collections.abc import Iterable

from llmservice_server.routes import CLOSED, ROUTES, Route

_HEAD = """\
<!-- Made by `make generate` from server_image/src/llmservice_server/routes.py. -->

# Routes of the model server

Port 8000 serves these routes. A model has the routes of its kind. The server's page at `/docs`
lists them, each with an example. A path with slashes at its end answers 307 with the address of the
route. Every other path answers 404.

"""


def page() -> str:
    """Return the text of the page."""
    served = _table(("route", "answers with", "models", "needs a key"), map(_row, ROUTES))
    closed = _table(
        ("routes of vLLM", "reason"),
        ((", ".join(f"`{path}`" for path in paths), why) for why, paths in CLOSED.items()),
    )
    administration = (
        "\n## Closed routes\n\nvLLM has more routes, which stay closed. "
        "`LLMSERVICE_ADMINISTRATION_ROUTES=true` opens them all,\nfor every client with a key.\n\n"
    )
    return _HEAD + served + administration + closed


def _row(route: Route) -> tuple[str, ...]:
    key = "yes" if route.needs_key else "no"
    methods = ", ".join(route.methods)
    return f"{methods} `{route.path}`", route.purpose, route.models.value, key


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
