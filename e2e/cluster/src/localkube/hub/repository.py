"""Models the content of the test hub: repositories, their branches, commits and files.

A commit's sha depends only on its files. The same models have the same sha on every machine, so
a test can name a revision.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path, PurePosixPath

LFS_SUFFIX = ".safetensors"
LFS_FROM_BYTES = 10 * 1024 * 1024
"""Size in bytes from which the public hub keeps every file in large-file storage. It keeps smaller
files there only if they have LFS_SUFFIX."""

HASHING_CHUNK_BYTES = 1024 * 1024


class Visibility(StrEnum):
    """Visibility of a repository for clients without access."""

    PUBLIC = "public"
    GATED = "gated"
    """Clients without access can list the files, but not download them."""
    PRIVATE = "private"
    """For clients without access, the repository seems not to exist."""


@dataclass(frozen=True)
class File:
    """One file of a commit."""

    path: Path
    size_bytes: int
    git_oid: str
    sha256: str | None
    """Hash and ETag of a file in large-file storage; None for other files."""

    @property
    def etag(self) -> str:
        return self.sha256 or self.git_oid

    @property
    def lfs_pointer(self) -> str:
        """Pointer that git stores in place of a file in large-file storage."""
        return (
            "version https://git-lfs.github.com/spec/v1\n"
            f"oid sha256:{self.sha256}\nsize {self.size_bytes}\n"
        )


@dataclass(frozen=True)
class Commit:
    """The files of a repository at one commit. `files` is path in the repository -> file."""

    sha: str
    files: Mapping[str, File]

    def folders(self) -> Mapping[str, str]:
        """Return path -> id, for every folder. The id depends only on the folder's content."""
        contents: dict[str, list[str]] = {}
        for path, file in self.files.items():
            for parent in PurePosixPath(path).parents[:-1]:
                contents.setdefault(str(parent), []).append(f"{path}\0{file.etag}\n")
        return {
            folder: hashlib.sha1("".join(listing).encode()).hexdigest()
            for folder, listing in sorted(contents.items())
        }


@dataclass(frozen=True)
class Repository:
    """A model repository: its id, its visibility, and a commit for each branch."""

    repo_id: str
    visibility: Visibility
    branches: Mapping[str, Commit]

    def find_commit(self, revision: str) -> Commit | None:
        """Return the commit of a branch name or a full sha; None if there is none."""
        if revision in self.branches:
            return self.branches[revision]
        return next((c for c in self.branches.values() if c.sha == revision), None)


@cache
def read_commit(folder: Path) -> Commit:
    """Read a folder as a commit. The folder must not change while the hub runs.

    Results are cached, because several repositories may serve the same folder, and weights are slow
    to hash.
    """
    files = {
        path.relative_to(folder).as_posix(): read_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    listing = "".join(f"{name}\0{file.etag}\n" for name, file in files.items())
    return Commit(sha=hashlib.sha1(listing.encode()).hexdigest(), files=files)


def read_file(path: Path) -> File:
    """Hash a file as git does, and also with SHA-256 if the hub keeps it in large-file storage."""
    size = path.stat().st_size
    git_oid = hashlib.sha1(f"blob {size}\0".encode())
    sha256 = hashlib.sha256()
    with path.open("rb") as content:
        while chunk := content.read(HASHING_CHUNK_BYTES):
            git_oid.update(chunk)
            sha256.update(chunk)
    is_lfs = path.suffix == LFS_SUFFIX or size >= LFS_FROM_BYTES
    return File(path, size, git_oid.hexdigest(), sha256.hexdigest() if is_lfs else None)
