"""Runs a built image like a restricted pod: no root, no capability, a read-only file system."""

import json
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from localkube.images.builder import Store

ANY_USER = 54321
"""Id of a user and group that no /etc/passwd contains."""


def run_restricted(
    reference: str,
    arguments: Sequence[str],
    bundle: Path,
    *,
    files: Mapping[str, Path] | None = None,
    entrypoint: Sequence[str] | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run the image's program with `arguments` and wait for it.

    `files` is path in the container -> file. These files are mounted read-only; /tmp and /dev/shm
    are writable.
    """
    with Store.open(to_read=True) as store, store.container(reference) as (_name, root):
        inspected = json.loads(store.run("inspect", "--type", "image", reference))
        image = inspected["OCIv1"]["config"]
        command = [*(entrypoint or image["Entrypoint"]), *arguments]
        specification = _restricted(root, command, image["Env"], files or {})
        (bundle / "config.json").write_text(json.dumps(specification))
        return subprocess.run(
            ["runc", "run", "--bundle", str(bundle), f"images-test-{uuid.uuid4().hex[:8]}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )


def _restricted(
    root: Path, command: Sequence[str], environment: Sequence[str], files: Mapping[str, Path]
) -> dict[str, Any]:
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(root), "readonly": True},
        "hostname": "restricted",
        "process": {
            "user": {"uid": ANY_USER, "gid": ANY_USER},
            "args": list(command),
            "env": list(environment),
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": {},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            _memory("/dev", "nosuid", "mode=755"),
            _memory("/dev/shm", "nosuid", "nodev", "mode=1777"),
            _memory("/tmp", "nosuid", "nodev", "mode=1777"),
            *(
                {
                    "destination": path,
                    "type": "bind",
                    "source": str(file),
                    "options": ["rbind", "ro"],
                }
                for path, file in files.items()
            ),
        ],
        "linux": {
            "cgroupsPath": "/localkube/images-test",
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
        },
    }


def _memory(path: str, *options: str) -> dict[str, Any]:
    return {
        "destination": path,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": list(options),
    }
