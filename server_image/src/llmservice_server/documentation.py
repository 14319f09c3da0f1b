"""Builds the OpenAPI document and the page at /docs, with a working example for each served route.

The page contains no script and loads nothing external. It works without internet access, and no
foreign code runs on a page where users enter a key.
"""

import json
from collections.abc import Collection
from html import escape
from typing import Any

from fastapi import FastAPI
from starlette.responses import HTMLResponse, Response

from llmservice_server.routes import ROUTE_OF_PATH, ROUTES

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto } h2 { margin-top: 2.5rem }
@media (prefers-color-scheme: dark) { body { background: #111; color: #eee } pre { background: #222 } }
"""  # noqa: E501 - a style sheet


def examples(model: str) -> dict[str, dict[str, object]]:
    """Return an example body for each route that has one. `model` is the served model's name."""
    return {
        route.path: ({"model": model} if route.names_model else {}) | dict(route.example)
        for route in ROUTES
        if route.example
    }


def document(
    app: FastAPI, model: str, with_administration: bool, absent: Collection[str] = ()
) -> None:
    """Add /docs to `app`, and document only the admitted routes that are not in `absent`."""
    describe_all = app.openapi

    def describe() -> dict[str, Any]:
        schema = describe_all()
        paths = {path: schema["paths"][path] for path in schema["paths"] if path not in absent}
        if not with_administration:
            paths = {path: paths[path] for path in paths if path in ROUTE_OF_PATH}
        for path, example in examples(model).items():
            for operation in paths.get(path, {}).values():
                for media in operation.get("requestBody", {}).get("content", {}).values():
                    media["example"] = example
        return schema | {"paths": paths}

    app.openapi = describe  # type: ignore[method-assign]
    # FastAPI's own page loads its script from another site, and would take precedence.
    app.router.routes[:] = [
        route for route in app.router.routes if getattr(route, "path", None) != "/docs"
    ]

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(_page(app.openapi(), model))


def _page(schema: dict[str, Any], model: str) -> str:
    sections = [
        _section(path, method, operation)
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    title = f"API of {escape(model)}"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<style>{_STYLE}</style><h1>{title}</h1>"
        "<p>Set <code>URL</code> to the address of this service and <code>KEY</code> to an API key "
        "(any text if no key is required). "
        'The whole schema: <a href="openapi.json">openapi.json</a>.</p>'
        f"{''.join(sections)}</html>"
    )


def _section(path: str, method: str, operation: dict[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    example = content.get("application/json", {}).get("example")
    command = f'curl "$URL{path}" -H "Authorization: Bearer $KEY"'
    if example is not None:
        body = json.dumps(example, ensure_ascii=False).replace("'", "'\\''")
        command += f" \\\n  -H 'Content-Type: application/json' \\\n  -d '{body}'"
    elif method != "get":
        command = command.replace("curl ", f"curl -X {method.upper()} ", 1)
    summary = escape(operation.get("summary", ""))
    shown = escape(command, quote=False)
    return f"<h2>{method.upper()} {escape(path)}</h2><p>{summary}</p><pre>{shown}</pre>"
