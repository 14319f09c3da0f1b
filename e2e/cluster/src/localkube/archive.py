"""Packs a static program into an image archive, without any image tool."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

from localkube import binaries, paths

NOBODY = "65534:65534"


def single_program(program: Path, reference: str) -> bytes:
    """Return an archive, in the format of `docker save`, of an image that contains only `program`.

    The program runs as the user nobody. Times and owners are fixed, so the same program always
    gives the same bytes.
    """
    layer = _tar({program.name: program.read_bytes()})
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": [f"/{program.name}"], "User": NOBODY},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(layer)}"]},
        }
    ).encode()
    config_name = f"{_sha256(config)}.json"
    manifest = [{"Config": config_name, "RepoTags": [reference], "Layers": ["layer.tar"]}]
    return _tar(
        {
            config_name: config,
            "layer.tar": layer,
            "manifest.json": json.dumps(manifest).encode(),
        }
    )


def pause_reference() -> str:
    """Return the reference of the pause image, which every pod needs and no registry has."""
    _, _, digest = binaries.program("pause").parent.name.rpartition("-")
    return f"localhost/localkube/pause:{digest}"


def pause_archive() -> Path:
    """Return the path of the archive with the pause image. The first call creates the archive."""
    program = binaries.program("pause")
    target = paths.cluster_cache() / "images" / f"{program.parent.name}.tar"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".unfinished")
        unfinished.write_bytes(single_program(program, pause_reference()))
        unfinished.rename(target)
    return target


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o755
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
