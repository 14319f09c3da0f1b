"""Runs an object store on loopback, with the part of S3 that is needed to load a model.

It implements listings, ranges and signatures itself, because no locked package is an S3 server. It
checks the signature of every request, and refuses a client without the right credentials and
region.
"""

import hashlib
import hmac
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape


class Credentials(NamedTuple):
    key_id: str
    secret: str
    region: str


_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key_id>[^/]+)/(?P<day>\d+)/(?P<region>[^/]+)/s3/aws4_request,"
    r"\s*SignedHeaders=(?P<signed>[^,]+),\s*Signature=(?P<signature>[0-9a-f]+)"
)


class ObjectStore(ThreadingHTTPServer):
    """Buckets, each of which is a folder."""

    daemon_threads = True

    def __init__(self, folder: Path, credentials: Credentials) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.credentials = credentials
        self.read: set[str] = set()
        """Objects that clients have read at least in part, each as BUCKET/KEY."""
        self.refused = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ObjectStore

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if not self._is_signed():
            self.server.refused += 1
            self._send(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
            return
        address = urlsplit(self.path)
        bucket, _, key = unquote(address.path).removeprefix("/").partition("/")
        if not key:
            self._send(200, self._listed(bucket, dict(parse_qsl(address.query))))
            return
        file = self.server.folder / bucket / key
        if not file.is_file():
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        self.server.read.add(f"{bucket}/{key}")
        content = file.read_bytes()
        chosen = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if chosen is None:
            self._send(200, content)
            return
        first, last = int(chosen[1]), min(int(chosen[2] or len(content)), len(content) - 1)
        place = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        self._send(206, content[first : last + 1], **place)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing, so that the output of a failed test stays short."""

    def _listed(self, bucket: str, query: dict[str, str]) -> bytes:
        root = self.server.folder / bucket
        keys = sorted(str(it.relative_to(root)) for it in root.rglob("*") if it.is_file())
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{(root / key).stat().st_size}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;1&quot;</ETag>"
            "</Contents>"
            for key in keys
            if key.startswith(prefix) and not (delimiter and delimiter in key.removeprefix(prefix))
        )
        return (
            f"<ListBucketResult><Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
        ).encode()

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        kind = "application/xml" if content.startswith(b"<") else "application/octet-stream"
        plain = {"Content-Type": kind, "Content-Length": str(len(content)), "ETag": '"1"'}
        for name, value in (
            plain | {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"} | headers
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _is_signed(self) -> bool:
        """Return whether the request has the right signature (version 4) for the credentials and
        the region.
        """
        said = _AUTHORIZATION.match(self.headers.get("Authorization", ""))
        own = self.server.credentials
        if said is None or (said["key_id"], said["region"]) != (own.key_id, own.region):
            return False
        address = urlsplit(self.path)
        pairs = sorted(parse_qsl(address.query, keep_blank_values=True))
        query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs)
        headers = "".join(
            f"{name}:{' '.join(self.headers.get(name, '').split())}\n"
            for name in said["signed"].split(";")
        )
        content = self.headers.get("x-amz-content-sha256", "")
        request = "\n".join((self.command, address.path, query, headers, said["signed"], content))
        scope = f"{said['day']}/{own.region}/s3/aws4_request"
        text = "\n".join(
            (
                *("AWS4-HMAC-SHA256", self.headers.get("x-amz-date", ""), scope),
                hashlib.sha256(request.encode()).hexdigest(),
            )
        )
        key = f"AWS4{own.secret}".encode()
        for part in (said["day"], own.region, "s3", "aws4_request", text):
            key = hmac.digest(key, part.encode(), "sha256")
        return hmac.compare_digest(key.hex(), said["signature"])


@contextmanager
def running_object_store(folder: Path, credentials: Credentials) -> Iterator[ObjectStore]:
    """Serve the folders below `folder` as buckets."""
    with ObjectStore(folder, credentials) as store:
        thread = Thread(target=store.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield store
        finally:
            store.shutdown()
            thread.join()
