"""Tests that all libraries that open connections trust a CA bundle and the public authorities."""

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import certifi
import pytest

from llmservice_server.failures import Reason, StartRefused
from llmservice_server.trust import trust_bundle
from localkube.hub.settings import HubSettings, RepositorySettings
from localkube_support.hub import running_hub, write_repository
from server_support.authority import Authority, make_authority
from server_support.downloading import PASSED_ON, REPOSITORY, WEIGHTS, downloaded, refusing

FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS}
ASK = {
    "requests": "import requests; requests.get(address)",
    "urllib": "import urllib.request; urllib.request.urlopen(address)",
    "aiohttp": """
import aiohttp, asyncio
async def ask():
    async with aiohttp.ClientSession() as session:
        await session.get(address)
asyncio.run(ask())
""",
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def hub(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a hub whose certificate the test's own authority has signed."""
    folder = tmp_path_factory.mktemp("hub")
    model = write_repository(folder / "model", FILES)
    repositories = {REPOSITORY: RepositorySettings(branches={"main": model})}
    with (
        running_hub(HubSettings(port=0, repositories=repositories), folder) as plain,
        refusing(PASSED_ON, certificate=authority.server, hub=plain) as (address, _),
    ):
        yield address


def test_a_model_is_downloaded_from_a_hub_of_the_bundles_authority(
    hub: str, authority: Authority, tmp_path: Path
) -> None:
    assert downloaded(hub, tmp_path / "without")["reason"] == "CertificateNotTrusted"
    result = downloaded(hub, tmp_path / "with", LLMSERVICE_CA_BUNDLE=str(authority.bundle))
    assert result == {"isFromCache": False, "bytes": len(WEIGHTS)}


@pytest.mark.parametrize("library", ASK)
def test_a_library_trusts_the_bundle(hub: str, authority: Authority, library: str) -> None:
    address = f"{hub}/{REPOSITORY}/resolve/main/config.json"

    def asked(environment: dict[str, str]) -> int:
        script = f"address = {address!r}\n{ASK[library]}"
        run = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, check=False
        )
        return run.returncode

    environment = {"PATH": os.environ["PATH"]}
    assert asked(environment) == 1
    trust_bundle(authority.bundle, environment)
    assert asked(environment) == 0


@pytest.mark.parametrize("public", [certifi.where(), None])
def test_the_public_authorities_or_those_of_the_environment_stay_trusted(
    authority: Authority, public: str | None, tmp_path: Path
) -> None:
    own = make_authority(tmp_path).bundle
    environment = {} if public else {"SSL_CERT_FILE": str(own)}
    trust_bundle(authority.bundle, environment)
    trusted = ssl.create_default_context(cafile=environment["SSL_CERT_FILE"]).get_ca_certs()
    before = ssl.create_default_context(cafile=public or str(own)).get_ca_certs()
    assert len(trusted) == len(before) + 1
    assert all(each in trusted for each in before)


@pytest.mark.causes("CertificateNotTrusted")
@pytest.mark.parametrize("content", ["", "secret", "# Wurzel für alles\n"])
def test_a_bundle_without_a_certificate_ends_the_start(tmp_path: Path, content: str) -> None:
    bundle = tmp_path / "ca.crt"
    bundle.write_text(content)
    with pytest.raises(StartRefused, match="has no valid certificate in PEM form") as refused:
        trust_bundle(bundle, {})
    assert refused.value.failure.reason == Reason.CERTIFICATE_NOT_TRUSTED


def test_a_comment_in_another_script_does_not_hide_a_certificate(
    authority: Authority, tmp_path: Path
) -> None:
    bundle = tmp_path / "ca.crt"
    bundle.write_text(f"# Wurzel für alles\n{authority.bundle.read_text()}")
    environment: dict[str, str] = {}
    trust_bundle(bundle, environment)
    assert set(environment) == {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"}
