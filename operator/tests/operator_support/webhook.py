"""An admission webhook in a test's process, which the API server calls."""

import base64
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from llmservice_operator.metrics_server.certificates import issue
from operator_support.processes import Api, utc_now

REGISTRATION = "/apis/admissionregistration.k8s.io/v1"

Review = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes the object under review, and returns fields of the response. The write is allowed unless
these fields refuse it."""


def patched(*operations: dict[str, Any]) -> dict[str, Any]:
    """Return a response that changes the object by a JSON patch."""
    patch = base64.b64encode(json.dumps(operations).encode()).decode()
    return {"patchType": "JSONPatch", "patch": patch}


def refused(message: str) -> dict[str, Any]:
    return {"allowed": False, "status": {"message": message}}


@contextmanager
def webhook(
    api: Api, namespace: str, resource: str, group: str, folder: Path, review: Review
) -> Iterator[list[str]]:
    """Review every creation and update of a resource in the namespace.

    Yields the list of the reviewed names, which grows with every review.
    """
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = body["request"]
            seen.append(request.get("name", ""))
            answer = {"uid": request["uid"], "allowed": True, **review(request["object"])}
            text = json.dumps({**body, "request": None, "response": answer}).encode()
            # An API server whose time limit is over has closed the connection.
            with suppress(OSError):
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Keep the requests out of the output of the tests."""

    issued = issue(["localhost"], utc_now())
    for name, text in (("certificate", issued.certificate), ("key", issued.key)):
        (folder / name).write_bytes(text)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate", folder / "key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    path = f"{REGISTRATION}/mutatingwebhookconfigurations"
    api.request(
        "POST",
        path,
        {
            "metadata": {"name": namespace},
            "webhooks": [
                {
                    "name": "webhook.example.com",
                    "admissionReviewVersions": ["v1"],
                    "sideEffects": "None",
                    "failurePolicy": "Fail",
                    "timeoutSeconds": 10,
                    "namespaceSelector": {
                        "matchLabels": {"kubernetes.io/metadata.name": namespace}
                    },
                    "clientConfig": {
                        "url": f"https://localhost:{server.server_address[1]}/",
                        "caBundle": base64.b64encode(issued.authority).decode(),
                    },
                    "rules": [
                        {
                            "apiGroups": [group],
                            "apiVersions": ["*"],
                            "operations": ["CREATE", "UPDATE"],
                            "resources": [resource],
                            "scope": "Namespaced",
                        }
                    ],
                }
            ],
        },
    )
    try:
        yield seen
    finally:
        api.request("DELETE", f"{path}/{namespace}")
        server.shutdown()
        server.server_close()
