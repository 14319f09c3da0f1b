"""Tests the refusals of the hub, of the network in front of it and of the storage.

Each test creates the real cause of a refusal.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from localkube.hub.settings import HubSettings, RepositorySettings
from localkube_support.hub import running_hub, write_repository
from server_support.authority import make_authority
from server_support.downloading import DROPPED, PASSED_ON, REPOSITORY, WEIGHTS, downloaded, refusing

INDEX = b'{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("hub")
    files = {
        "config.json": b"{}",
        "model.safetensors.index.json": INDEX,
        "model-1.safetensors": WEIGHTS,
        "model-2.safetensors": WEIGHTS,
        # No server loads this copy, so a cache without it is complete.
        "pytorch_model.bin": WEIGHTS,
    }
    model = write_repository(folder / "model", files)
    repositories = {REPOSITORY: RepositorySettings(branches={"main": model})}
    with running_hub(HubSettings(port=0, repositories=repositories), folder) as address:
        yield address


@pytest.mark.causes("HubOverloaded", "HubBroken", "ProxyRefused")
@pytest.mark.parametrize(
    ("status", "reason", "finding"),
    [
        (429, "HubOverloaded", "too many requests"),
        (408, "HubOverloaded", "is overloaded"),
        (500, "HubBroken", "an error of its own"),
        (502, "HubBroken", "an error of its own"),
        (504, "HubBroken", "an error of its own"),
        (407, "ProxyRefused", "requires authentication"),
        (403, "ProxyRefused", "not the hub itself"),
        (DROPPED, "HubUnreachable", "The connection to the hub broke."),
    ],
)
def test_a_hub_that_cannot_serve_is_told_from_one_that_refuses(
    tmp_path: Path, status: int, reason: str, finding: str
) -> None:
    with refusing(status) as (address, _):
        failure = downloaded(address, tmp_path)
    assert failure["reason"] == reason, failure
    assert finding in failure["message"]


def test_the_hubs_own_403_is_about_the_token(tmp_path: Path) -> None:
    with refusing(403, X_Error_Message="Your token may not read this") as (address, hub):
        failure = downloaded(address, tmp_path, pauses=[0.01])
    assert failure["reason"] == "ModelAccessDenied"
    assert "Your token may not read this" in failure["message"]
    assert hub.asked == 1


@pytest.mark.parametrize("status", [407, 403, 502])
def test_a_proxy_that_refuses_the_connection_is_named(tmp_path: Path, status: int) -> None:
    with refusing(status) as (proxy, _):
        failure = downloaded("https://hub.invalid", tmp_path, HTTPS_PROXY=proxy)
    assert failure["reason"] == "ProxyRefused", failure
    assert str(status) in failure["message"]


@pytest.mark.causes("CertificateNotTrusted")
def test_a_certificate_of_an_unknown_authority_is_named(tmp_path: Path) -> None:
    with refusing(500, certificate=make_authority(tmp_path).server) as (address, hub):
        failure = downloaded(address, tmp_path / "cache")
    assert failure["reason"] == "CertificateNotTrusted", failure
    assert hub.asked == 0


@pytest.mark.parametrize("status", [429, 408, 503])
def test_an_overloaded_hub_is_asked_again(hub: str, tmp_path: Path, status: int) -> None:
    with refusing(status, status, PASSED_ON, hub=hub) as (address, front):
        result = downloaded(address, tmp_path, pauses=[0.01, 0.01])
    assert result == {"isFromCache": False, "bytes": 2 * len(WEIGHTS)}
    assert front.asked > 2


def test_an_overloaded_hub_is_left_alone_for_as_long_as_it_asks(tmp_path: Path) -> None:
    begun = time.monotonic()
    with refusing(429, Retry_After="3") as (address, hub):
        assert downloaded(address, tmp_path, pauses=[0.01])["reason"] == "HubOverloaded"
    assert time.monotonic() - begun >= 3
    assert hub.asked == 2


@pytest.mark.parametrize("status", [429, 408, 403, 407, 500, 503, DROPPED])
def test_a_whole_model_in_the_cache_needs_no_hub(hub: str, tmp_path: Path, status: int) -> None:
    assert downloaded(hub, tmp_path) == {"isFromCache": False, "bytes": 2 * len(WEIGHTS)}
    with refusing(status) as (address, front):
        assert downloaded(address, tmp_path, pauses=[60])["isFromCache"]
    assert front.asked == 1


def test_a_model_that_is_partly_in_the_cache_needs_the_hub(hub: str, tmp_path: Path) -> None:
    downloaded(hub, tmp_path)
    (shard,) = tmp_path.rglob("model-2.safetensors")
    shard.unlink()
    with refusing(429) as (address, _):
        assert downloaded(address, tmp_path)["reason"] == "HubOverloaded"


def test_a_refusal_of_the_hub_counts_although_the_model_is_in_the_cache(
    hub: str, tmp_path: Path
) -> None:
    downloaded(hub, tmp_path)
    refused = refusing(403, X_Error_Code="GatedRepo", X_Error_Message="Ask for access")
    with refused as (address, _):
        assert downloaded(address, tmp_path)["reason"] == "ModelAccessDenied"


def mounted(options: str, folder: Path) -> list[str]:
    """Return a command prefix. It mounts a tmpfs at the folder, visible only to the command."""
    script = f'mount -t tmpfs -o {options} tmpfs {folder} && exec "$@"'
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]


@pytest.mark.causes("StorageFull")
@pytest.mark.parametrize("limit", ["a full volume", "a limit of the file size"])
def test_a_cache_that_cannot_hold_the_model_is_named(hub: str, tmp_path: Path, limit: str) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    starter = ["prlimit", "--fsize=1000000"]
    if limit == "a full volume":
        starter = mounted("size=1m", cache)
    failure = downloaded(hub, cache, starter=starter)
    assert failure["reason"] == "StorageFull", failure


@pytest.mark.causes("StorageAccessDenied")
def test_a_read_only_cache_is_named(hub: str, tmp_path: Path) -> None:
    failure = downloaded(hub, tmp_path, starter=mounted("ro", tmp_path))
    assert failure["reason"] == "StorageAccessDenied", failure
    assert "Read-only file system" in failure["message"]


def test_a_cache_of_another_user_is_named(hub: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o500)
    # The capabilities of root would override the permissions.
    starter = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    failure = downloaded(hub, cache, starter=starter)
    assert failure["reason"] == "StorageAccessDenied", failure
    assert str(cache) in failure["message"]
