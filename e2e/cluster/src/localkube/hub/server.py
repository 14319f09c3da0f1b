"""Serves the part of the Hugging Face hub's protocol that the download of a model needs.

It answers the requests of `huggingface_hub`: model info, tree, HEAD and GET of files, with ranges.
Its error responses have the statuses and X-Error headers of the public hub, so a test sees the same
errors as a user in production. `python -m localkube.hub.server FILE` runs it in the foreground and
prints its URL once it listens.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiohttp import web

from localkube.hub.repository import Commit, File, Repository, Visibility, read_commit
from localkube.hub.settings import HubSettings, InvalidHubSettings

CHUNK_BYTES = 64 * 1024
SLICES_PER_SECOND = 20
"""Number of slices per second in which a throttled download is sent."""

SHUTDOWN_SECONDS = 0.5
"""Time limit in seconds for downloads in progress when the hub stops. No test needs them to
finish."""


@dataclass(frozen=True)
class Hub:
    """The repositories, and the settings that control access to them."""

    repositories: dict[str, Repository]
    settings: HubSettings

    @classmethod
    def load(cls, settings: HubSettings) -> "Hub":
        """Read and hash every served folder, which takes about a second per gigabyte."""
        repositories = {
            repo_id: Repository(
                repo_id=repo_id,
                visibility=repository.visibility,
                branches={
                    branch: read_commit(folder) for branch, folder in repository.branches.items()
                },
            )
            for repo_id, repository in settings.repositories.items()
        }
        return cls(repositories, settings)

    def bytes_per_second(self, repo_id: str) -> int | None:
        """Return the speed limit of one download, in bytes per second; None for no limit."""
        return self.settings.repositories[repo_id].bytes_per_second or (
            self.settings.bytes_per_second
        )


HUB = web.AppKey("hub", Hub)


def create_app(hub: Hub) -> web.Application:
    """Build the application; every route takes the repository's id in two path segments."""
    app = web.Application()
    app[HUB] = hub
    info = "/api/models/{organisation}/{name}"
    app.router.add_get(info, answer_model_info)
    app.router.add_get(info + "/revision/{revision}", answer_model_info)
    app.router.add_get(info + "/tree/{revision}", answer_tree)
    app.router.add_get(info + "/tree/{revision}/{path:.+}", answer_tree)
    app.router.add_get("/{organisation}/{name}/resolve/{revision}/{path:.+}", answer_file)
    return app


async def answer_model_info(request: web.Request) -> web.Response:
    """Answer with the commit of a revision and the names of its files."""
    repository, commit = find_commit(request)
    return web.json_response(
        {
            "_id": commit.sha[:24],
            "id": repository.repo_id,
            "modelId": repository.repo_id,
            "sha": commit.sha,
            "private": repository.visibility is Visibility.PRIVATE,
            "gated": "manual" if repository.visibility is Visibility.GATED else False,
            "disabled": False,
            "tags": [],
            "siblings": [{"rfilename": path} for path in commit.files],
        }
    )


async def answer_tree(request: web.Request) -> web.Response:
    """Answer with the entries of a folder, and of its subfolders if the request is recursive."""
    _, commit = find_commit(request)
    root = request.match_info.get("path", "").rstrip("/")
    folders = commit.folders()
    if root and root not in folders:
        raise entry_not_found(request, commit)
    prefix = f"{root}/" if root else ""
    is_recursive = request.query.get("recursive", "false").lower() == "true"

    def is_listed(path: str) -> bool:
        below = path.removeprefix(prefix)
        return path.startswith(prefix) and (is_recursive or "/" not in below)

    entries = [describe_folder(path, oid) for path, oid in folders.items() if is_listed(path)]
    entries += [describe_file(path, file) for path, file in commit.files.items() if is_listed(path)]
    return web.json_response(entries)


def describe_folder(path: str, oid: str) -> dict[str, Any]:
    return {"type": "directory", "oid": oid, "size": 0, "path": path}


def describe_file(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "oid": file.git_oid,
        "size": file.size_bytes,
        "path": path,
    }
    if file.sha256:
        entry["lfs"] = {
            "oid": file.sha256,
            "size": file.size_bytes,
            "pointerSize": len(file.lfs_pointer),
        }
    return entry


async def answer_file(request: web.Request) -> web.StreamResponse:
    """Answer a HEAD or GET of a file or of a byte range of it, within the speed limit."""
    repository, commit = find_commit(request)
    refuse_gated(request, repository)
    file = commit.files.get(request.match_info["path"])
    if file is None:
        raise entry_not_found(request, commit)
    headers = {
        "ETag": f'"{file.etag}"',
        "X-Repo-Commit": commit.sha,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(file.path.name)}",
    }
    if file.sha256:
        headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(file.size_bytes)}
    start, stop = requested_range(request, file)
    response = web.StreamResponse(headers=headers)
    response.content_type = "application/octet-stream"
    response.content_length = stop - start
    if "Range" in request.headers:
        response.set_status(206)
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size_bytes}"
    await response.prepare(request)
    if request.method == "GET":
        limit = request.app[HUB].bytes_per_second(repository.repo_id)
        await write_slice(response, file.path, start, stop, limit)
    return response


def requested_range(request: web.Request, file: File) -> tuple[int, int]:
    """Return the positions of the first requested byte and of the byte after the last one.

    Raises HTTPRequestRangeNotSatisfiable (status 416) for a range outside the file.
    """
    try:
        start, stop, _ = request.http_range.indices(file.size_bytes)
    except ValueError:
        start, stop = 0, -1
    if "Range" in request.headers and start >= stop:
        raise web.HTTPRequestRangeNotSatisfiable(
            headers={"Content-Range": f"bytes */{file.size_bytes}"}
        )
    return start, stop


async def write_slice(
    response: web.StreamResponse, path: Path, start: int, stop: int, bytes_per_second: int | None
) -> None:
    """Write the bytes `start` to `stop` of a file, never faster than the speed limit."""
    clock = asyncio.get_running_loop().time
    begun = clock()
    chunk_bytes = CHUNK_BYTES
    if bytes_per_second is not None:
        chunk_bytes = min(CHUNK_BYTES, max(1, bytes_per_second // SLICES_PER_SECOND))
    sent = 0
    for chunk in read_chunks(path, start, stop, chunk_bytes):
        sent += len(chunk)
        if bytes_per_second is not None:
            await asyncio.sleep(begun + sent / bytes_per_second - clock())
        await response.write(chunk)


def read_chunks(path: Path, start: int, stop: int, chunk_bytes: int) -> Iterator[bytes]:
    """Yield the bytes of a file from start up to stop, in pieces of at most chunk_bytes."""
    with path.open("rb") as content:
        content.seek(start)
        while chunk := content.read(min(chunk_bytes, stop - content.tell())):
            yield chunk


def find_commit(request: web.Request) -> tuple[Repository, Commit]:
    """Return the repository and commit that a path names, or refuse as the public hub does.

    A client without access to a private repository gets exactly the response for an unknown
    repository.
    """
    hub = request.app[HUB]
    token = bearer_token(request)
    if token is not None and token not in hub.settings.tokens:
        raise refusal(401, None, "Invalid credentials in Authorization header")
    repo_id = f"{request.match_info['organisation']}/{request.match_info['name']}"
    repository = hub.repositories.get(repo_id)
    is_hidden = repository is not None and (
        repository.visibility is Visibility.PRIVATE and not has_access(hub, token, repo_id)
    )
    if repository is None or is_hidden:
        raise refusal(401 if token is None else 404, "RepoNotFound", "Repository not found")
    revision = request.match_info.get("revision", "main")
    commit = repository.find_commit(revision)
    if commit is None:
        raise refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return repository, commit


def refuse_gated(request: web.Request, repository: Repository) -> None:
    """Refuse the files of a gated repository to a client without access."""
    token = bearer_token(request)
    if repository.visibility is not Visibility.GATED or has_access(
        request.app[HUB], token, repository.repo_id
    ):
        return
    if token is None:
        raise refusal(
            401,
            "GatedRepo",
            f"Access to model {repository.repo_id} is restricted. "
            "You must have access to it and be authenticated to access it. Please log in.",
        )
    raise refusal(
        403,
        "GatedRepo",
        f"Access to model {repository.repo_id} is restricted "
        "and you are not in the authorized list.",
    )


def has_access(hub: Hub, token: str | None, repo_id: str) -> bool:
    return token is not None and repo_id in hub.settings.tokens[token]


def bearer_token(request: web.Request) -> str | None:
    """Return the client's token, or None for an anonymous client."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else None


def entry_not_found(request: web.Request, commit: Commit) -> web.HTTPException:
    error = refusal(404, "EntryNotFound", f"Entry not found: {request.match_info['path']}")
    # If the response names the commit, the client remembers that the file is absent there, and
    # does not request the file again.
    error.headers["X-Repo-Commit"] = commit.sha
    return error


def refusal(status: int, code: str | None, message: str) -> web.HTTPException:
    """Build an error that the client library turns into its own exception for this code."""
    errors: dict[int, type[web.HTTPException]] = {
        401: web.HTTPUnauthorized,
        403: web.HTTPForbidden,
        404: web.HTTPNotFound,
    }
    headers = {"X-Error-Message": message}
    if code is not None:
        headers["X-Error-Code"] = code
    return errors[status](headers=headers, text=message)


async def serve(settings: HubSettings) -> None:
    """Serve until a signal stops the process."""
    hub = await asyncio.to_thread(Hub.load, settings)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    runner = web.AppRunner(create_app(hub), shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
        # The parent process waits for this line, which means that the hub accepts requests.
        # If the configured port is 0, the system has chosen another port.
        host, port = runner.addresses[0][:2]
        print(f"http://{host}:{port}", flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()


def main() -> int:
    """Run the hub that the configuration file in the first argument describes."""
    # Log one line for each request, on standard error.
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        settings = HubSettings.parse(Path(sys.argv[1]).read_text())
        asyncio.run(serve(settings))
    except (InvalidHubSettings, OSError) as error:
        print(f"the hub cannot start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
