"""Tests that the built images run under the rules of a restricted pod."""

import shutil
from pathlib import Path

import pytest
import yaml

from localkube.errors import CommandFailed
from localkube.images import build
from localkube.images.builder import KEPT_BUILDS, Store
from localkube.images.recipes import (
    GPU_STAND_IN_BASE,
    NAMED,
    OPERATOR,
    REPOSITORY,
    SERVER_CPU,
    SERVER_GPU,
)
from localkube_support.images import ANY_USER, run_restricted

EXAMPLE = REPOSITORY / "crds/examples/minimal.yaml"

WHO_AM_I = """
import os, pathlib
print(os.getuid())
for path in ("/", "/opt/llmservice", "/usr"):
    try:
        pathlib.Path(path, "written").touch()
        print("wrote to", path)
    except OSError:
        pass
status = pathlib.Path("/proc/self/status").read_text()
print([line.split()[1] for line in status.splitlines() if line.startswith("CapBnd")][0])
"""


@pytest.fixture(scope="module")
def images() -> dict[str, str]:
    return build(NAMED)


def test_the_restrictions_are_those_of_a_restricted_pod(
    images: dict[str, str], tmp_path: Path
) -> None:
    done = run_restricted(images[OPERATOR.name], ["-c", WHO_AM_I], tmp_path, entrypoint=["python3"])

    assert done.stdout.splitlines() == [str(ANY_USER), "0000000000000000"], done.stderr


def test_the_operator_image_renders_an_example_for_any_user(
    images: dict[str, str], tmp_path: Path
) -> None:
    done = run_restricted(
        images[OPERATOR.name],
        ["render", "-f", "/run/example.yaml"],
        tmp_path,
        files={"/run/example.yaml": EXAMPLE},
    )

    assert done.returncode == 0, done.stderr
    kinds = {each["kind"] for each in yaml.safe_load_all(done.stdout)}
    assert {"Deployment", "Service"} <= kinds


@pytest.mark.parametrize("name", [SERVER_CPU.name, SERVER_GPU.name])
def test_a_server_image_imports_its_vllm_for_any_user(
    images: dict[str, str], name: str, tmp_path: Path
) -> None:
    done = run_restricted(images[name], ["--help-engine"], tmp_path)

    assert done.returncode == 0, done.stderr
    assert "--max-model-len" in done.stdout


@pytest.mark.parametrize(
    ("name", "command", "status"),
    [
        (SERVER_CPU.name, ["llmservice-server", "--help-engine"], 0),
        (SERVER_GPU.name, ["llmservice-server", "--help-engine"], 0),
        (OPERATOR.name, ["llmservice-operator", "crd"], 143),
    ],
)
def test_a_program_that_is_stopped_while_its_interpreter_starts_ends_at_once(
    images: dict[str, str], name: str, command: list[str], status: int, tmp_path: Path
) -> None:
    early = tmp_path / "sitecustomize.py"
    early.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    done = run_restricted(
        images[name],
        command[1:],
        tmp_path,
        files={"/run/early/sitecustomize.py": early},
        entrypoint=["env", "PYTHONPATH=/run/early", command[0]],
    )

    assert (done.returncode, done.stdout) == (status, ""), done.stderr


@pytest.mark.parametrize("name", [SERVER_CPU.name, SERVER_GPU.name])
def test_a_server_image_knows_the_usual_model_classes_for_any_user(
    images: dict[str, str], name: str, tmp_path: Path
) -> None:
    program = (
        "from llmservice_server.model_infos import BAKED; "
        "print([info.name for info in BAKED.glob('*.json') if info.read_text()])"
    )
    done = run_restricted(images[name], ["-c", program], tmp_path, entrypoint=["python3"])

    for architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM", "MixtralForCausalLM"):
        assert f"-{architecture}.json'" in done.stdout, done.stderr


def test_the_stand_in_base_looks_like_the_official_image(images: dict[str, str]) -> None:
    with Store.open(to_read=True) as store:
        config = store.run(
            *("inspect", "--type", "image", "--format", "{{.OCIv1.Config}}"),
            GPU_STAND_IN_BASE.reference(),
        )
        with store.container(GPU_STAND_IN_BASE.reference()) as (_name, root):
            packages = [path.name for path in root.glob("opt/llmservice/lib/*/site-packages/*")]

    assert "root" in config
    assert "[vllm serve]" in config
    assert "vllm" in packages
    assert "llmservice_server" not in packages


@pytest.fixture
def changed_checkout(tmp_path: Path) -> Path:
    """Copy of the files that a server image is built from. The tests change this copy."""
    shutil.copytree(
        REPOSITORY / "server_image",
        tmp_path / "server_image",
        ignore=shutil.ignore_patterns("tests", "__pycache__"),
    )
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def build_failure(checkout: Path) -> str:
    refused = "localhost/llmservice/refused:test"
    with Store.open() as store, pytest.raises(CommandFailed) as failure:
        store.build_target(SERVER_GPU, refused, store.tools(), checkout)
    return str(failure.value)


def test_a_build_that_changes_a_package_of_the_base_fails_and_names_it(
    images: dict[str, str], changed_checkout: Path
) -> None:
    server = changed_checkout / "server_image"
    replace(server / "install_on_base.py", '"--no-deps", ', "")
    replace(server / "pyproject.toml", '"prometheus-client>=0.21"', '"prometheus-client==0.22.0"')

    message = build_failure(changed_checkout)

    assert "changed packages of the base image" in message
    assert "prometheus-client 0.26.0 -> 0.22.0" in message


def test_a_build_on_a_base_without_what_we_need_fails_and_names_it(
    images: dict[str, str], changed_checkout: Path
) -> None:
    replace(
        changed_checkout / "server_image/pyproject.toml",
        '"prometheus-client>=0.21"',
        '"prometheus-client>=0.21", "kopf>=1.45", "uvicorn>=99"',
    )

    message = build_failure(changed_checkout)

    assert "does not meet what the model server needs" in message
    assert "kopf>=1.45 (not there)" in message
    assert "uvicorn>=99 (has " in message


def test_the_store_keeps_only_the_newest_builds_of_each_image(tmp_path: Path) -> None:
    store = Store(tmp_path / "images")
    builds = [f"localhost/llmservice/{name}:{number}" for number in range(5) for name in "ab"]
    container = store.run("from", "scratch")
    for reference in builds:
        store.run(
            "commit", "--quiet", "--timestamp", str(builds.index(reference)), container, reference
        )
    store.run("rm", container)

    store.forget_old_builds()

    assert store.references() == builds[-2 * KEPT_BUILDS :]
