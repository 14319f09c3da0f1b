"""Tests the test hub with the real huggingface_hub client."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, errors, snapshot_download

from localkube.hub.repository import Visibility
from localkube.hub.settings import HubSettings, RepositorySettings
from localkube_support.hub import running_hub, write_repository

PUBLIC = "org/public"
PRIVATE = "org/private"
GATED = "org/gated"
THROTTLED = "org/throttled"
READER = "hf_reader"
STRANGER = "hf_stranger"

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": bytes(range(256)) * 1000,
    "nested/deeper/notes.txt": b"as in the repository",
}
OLDER_FILES = {"config.json": b"{}"}
THROTTLED_FILES = {"model.safetensors": bytes(200_000)}
THROTTLED_BYTES_PER_SECOND = 100_000


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> HubSettings:
    folder = tmp_path_factory.mktemp("repositories")
    main = write_repository(folder / "main", FILES)
    older = write_repository(folder / "older", OLDER_FILES)
    throttled = write_repository(folder / "throttled", THROTTLED_FILES)
    return HubSettings(
        port=0,
        repositories={
            PUBLIC: RepositorySettings(branches={"main": main, "v1": older}),
            PRIVATE: RepositorySettings(branches={"main": main}, visibility=Visibility.PRIVATE),
            GATED: RepositorySettings(branches={"main": main}, visibility=Visibility.GATED),
            THROTTLED: RepositorySettings(
                branches={"main": throttled}, bytes_per_second=THROTTLED_BYTES_PER_SECOND
            ),
        },
        tokens={READER: frozenset({PRIVATE, GATED}), STRANGER: frozenset()},
    )


@pytest.fixture(scope="module")
def hub(settings: HubSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_hub(settings, tmp_path_factory.mktemp("hub")) as address:
        yield address


def download(
    hub: str, repo_id: str, cache: Path, *, revision: str = "main", token: str | bool = False
) -> Path:
    return Path(
        snapshot_download(repo_id, revision=revision, endpoint=hub, cache_dir=cache, token=token)
    )


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_the_client_here_is_the_engines_own() -> None:
    lock = Path(__file__).parents[4] / "server_image" / "requirements" / "cpu.txt"
    (locked,) = re.findall(r"^huggingface-hub==(\d+)\.", lock.read_text(), re.MULTILINE)

    assert huggingface_hub.__version__.split(".")[0] == locked


def test_downloads_a_whole_repository_unchanged(hub: str, tmp_path: Path) -> None:
    assert contents(download(hub, PUBLIC, tmp_path)) == FILES


def test_a_repository_is_found_through_hf_endpoint_alone(hub: str, tmp_path: Path) -> None:
    program = f"import huggingface_hub as h; print(h.snapshot_download({PUBLIC!r}, token=False))"
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, check=True
    )

    assert contents(Path(done.stdout.decode().strip())) == FILES


def test_a_branch_and_its_commit_give_the_same_files(hub: str, tmp_path: Path) -> None:
    by_branch = download(hub, PUBLIC, tmp_path / "branch", revision="v1")
    sha = HfApi(endpoint=hub, token=False).model_info(PUBLIC, revision="v1").sha
    by_commit = download(hub, PUBLIC, tmp_path / "commit", revision=sha)

    assert by_branch.name == by_commit.name == sha
    assert contents(by_branch) == contents(by_commit) == OLDER_FILES


def test_the_commit_of_the_same_files_is_the_same_in_every_repository(hub: str) -> None:
    api = HfApi(endpoint=hub)

    assert api.model_info(PUBLIC, token=False).sha == api.model_info(GATED, token=False).sha


def test_model_info_and_tree_name_every_file_with_its_size(hub: str) -> None:
    api = HfApi(endpoint=hub, token=False)
    siblings = {sibling.rfilename for sibling in api.model_info(PUBLIC).siblings}
    sizes = {
        entry.path: entry.size
        for entry in api.list_repo_tree(PUBLIC, recursive=True)
        if hasattr(entry, "size")
    }

    assert siblings == set(FILES)
    assert sizes == {path: len(content) for path, content in FILES.items()}


def test_a_tree_without_recursion_stops_at_the_folders(hub: str) -> None:
    api = HfApi(endpoint=hub, token=False)

    assert {entry.path for entry in api.list_repo_tree(PUBLIC)} == {
        "config.json",
        "model.safetensors",
        "nested",
    }
    assert [entry.path for entry in api.list_repo_tree(PUBLIC, "nested")] == ["nested/deeper"]
    with pytest.raises(errors.RemoteEntryNotFoundError):
        list(api.list_repo_tree(PUBLIC, "absent"))


def test_the_client_finds_the_checksums_right(hub: str, tmp_path: Path) -> None:
    folder = tmp_path / "local"
    api = HfApi(endpoint=hub, token=False)
    api.snapshot_download(PUBLIC, local_dir=folder)

    verified = api.verify_repo_checksums(PUBLIC, local_dir=folder)

    assert verified.checked_count == len(FILES)
    assert verified.mismatches == []


@pytest.mark.parametrize("token", [False, READER])
def test_an_unknown_repository_is_not_found(hub: str, tmp_path: Path, token: str | bool) -> None:
    with pytest.raises(errors.RepositoryNotFoundError):
        download(hub, "org/unknown", tmp_path, token=token)


@pytest.mark.parametrize("revision", ["v2", "0" * 40])
def test_an_unknown_revision_is_not_found(hub: str, tmp_path: Path, revision: str) -> None:
    with pytest.raises(errors.RevisionNotFoundError):
        download(hub, PUBLIC, tmp_path, revision=revision)


def test_an_unknown_file_is_not_found(hub: str, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub, token=False)

    assert api.file_exists(PUBLIC, "config.json")
    assert not api.file_exists(PUBLIC, "absent.json")
    with pytest.raises(errors.RemoteEntryNotFoundError):
        api.hf_hub_download(PUBLIC, "absent.json", cache_dir=tmp_path)


def test_a_private_repository_opens_to_its_token(hub: str, tmp_path: Path) -> None:
    assert contents(download(hub, PRIVATE, tmp_path, token=READER)) == FILES


@pytest.mark.parametrize("token", [False, STRANGER])
def test_a_private_repository_does_not_exist_for_others(
    hub: str, tmp_path: Path, token: str | bool
) -> None:
    with pytest.raises(errors.RepositoryNotFoundError) as refused:
        download(hub, PRIVATE, tmp_path, token=token)
    with pytest.raises(errors.RepositoryNotFoundError) as unknown:
        download(hub, "org/unknown", tmp_path, token=token)

    assert refused.value.response.status_code == unknown.value.response.status_code
    assert refused.value.response.content == unknown.value.response.content


@pytest.mark.parametrize("repo_id", [PUBLIC, PRIVATE, GATED])
def test_a_token_that_the_hub_never_gave_is_refused_everywhere(
    hub: str, tmp_path: Path, repo_id: str
) -> None:
    with pytest.raises(errors.HfHubHTTPError, match="Invalid credentials") as refused:
        download(hub, repo_id, tmp_path, token="hf_neverGiven")

    assert refused.value.response.status_code == 401


@pytest.mark.parametrize(("token", "status"), [(False, 401), (STRANGER, 403)])
def test_a_gated_repository_shows_its_files_but_keeps_them(
    hub: str, tmp_path: Path, token: str | bool, status: int
) -> None:
    api = HfApi(endpoint=hub, token=token)

    assert set(api.list_repo_files(GATED)) == set(FILES)
    with pytest.raises(errors.GatedRepoError) as refused:
        download(hub, GATED, tmp_path, token=token)
    assert refused.value.response.status_code == status


def test_a_gated_repository_opens_to_its_token(hub: str, tmp_path: Path) -> None:
    assert contents(download(hub, GATED, tmp_path, token=READER)) == FILES


def test_a_throttled_download_takes_as_long_as_its_limit_says(hub: str, tmp_path: Path) -> None:
    least_seconds = len(THROTTLED_FILES["model.safetensors"]) / THROTTLED_BYTES_PER_SECOND

    started = time.monotonic()
    folder = download(hub, THROTTLED, tmp_path)
    took = time.monotonic() - started

    assert contents(folder) == THROTTLED_FILES
    assert least_seconds <= took < least_seconds + 10


def test_a_download_goes_on_where_the_connection_broke(tmp_path: Path) -> None:
    # The client writes 10 MiB at a time, so it can resume only a larger download.
    files = {"model.safetensors": bytes(range(256)) * 100_000}
    folder = write_repository(tmp_path / "large", files)
    large = RepositorySettings(branches={"main": folder}, bytes_per_second=12_000_000)
    settings = HubSettings(port=0, repositories={"org/large": large})
    cache, log = tmp_path / "cache", tmp_path / "hub.log"
    program = "import huggingface_hub as h; print(h.snapshot_download('org/large'))"

    with running_hub(settings, tmp_path) as address:
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(cache)}
        client = subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
        )
        wait_for_bytes(cache)
        # The client gives up after some seconds without a hub, and a busy machine may need longer
        # to start a hub. So the client is paused meanwhile.
        client.send_signal(signal.SIGSTOP)
    same_address = settings.model_copy(update={"port": int(address.rsplit(":", 1)[1])})
    with client, running_hub(same_address, tmp_path, log):
        client.send_signal(signal.SIGCONT)
        printed, _ = client.communicate(timeout=60)

    assert client.returncode == 0
    assert contents(Path(printed.strip())) == files
    (answer,) = (line for line in log.read_text().splitlines() if '"GET /' in line)
    assert '" 206 ' in answer


def wait_for_bytes(cache: Path) -> None:
    """Wait until a part of a file has arrived."""
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in cache.rglob("*.incomplete")):
        assert time.monotonic() < deadline, "no byte arrived"
        time.sleep(0.05)


def ask(address: str, byte_range: str) -> tuple[int, str, bytes]:
    """Return status, Content-Range and body of a GET for a byte range of the weights."""
    request = urllib.request.Request(
        f"{address}/{PUBLIC}/resolve/main/model.safetensors", headers={"Range": byte_range}
    )
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.headers["Content-Range"], response.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.headers["Content-Range"], b""


@pytest.mark.parametrize(
    ("byte_range", "start", "stop"),
    [("bytes=0-9", 0, 10), ("bytes=255990-", 255990, 256000), ("bytes=-5", 255995, 256000)],
)
def test_a_range_gives_just_those_bytes(hub: str, byte_range: str, start: int, stop: int) -> None:
    expected = FILES["model.safetensors"][start:stop]

    assert ask(hub, byte_range) == (206, f"bytes {start}-{stop - 1}/256000", expected)


@pytest.mark.parametrize("byte_range", ["bytes=256000-", "bytes=9-3", "lines=1-2"])
def test_a_range_that_is_not_there_is_refused(hub: str, byte_range: str) -> None:
    assert ask(hub, byte_range) == (416, "bytes */256000", b"")
