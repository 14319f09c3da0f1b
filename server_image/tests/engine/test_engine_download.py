"""Tests models from a hub: the progress of a download, and the reason of a refusal."""

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from localkube.hub.repository import Visibility
from localkube.hub.settings import HubSettings, RepositorySettings
from localkube_support.hub import running_hub
from server_support.authority import make_authority
from server_support.downloading import PASSED_ON, refusing
from server_support.engine import ModelServer, flags_for, running_server
from server_support.preloaded import Preloaded

REPOSITORY = "org/tiny"
PRIVATE = "org/secret"
PADDING_BYTES = 50_000_000


def settings(model: Path, bytes_per_second: int | None = None) -> HubSettings:
    branches = {"main": model}
    return HubSettings(
        port=0,
        repositories={
            REPOSITORY: RepositorySettings(branches=branches, bytes_per_second=bytes_per_second),
            PRIVATE: RepositorySettings(branches=branches, visibility=Visibility.GATED),
        },
    )


def padded(tiny_model: Path, folder: Path) -> Path:
    """Return a copy of the model with added bytes, so that its download takes some time.

    The hub's client writes ten megabytes at a time, so the tiny model alone would arrive in a
    single write. The server downloads the files of a subfolder together with the weights, but vLLM
    does not load them.
    """
    model = folder / "model"
    shutil.copytree(tiny_model, model)
    (model / "extra").mkdir()
    with (model / "extra" / "padding.safetensors").open("wb") as padding:
        padding.truncate(PADDING_BYTES)
    return model


def test_a_download_shows_its_progress_and_is_served(
    preloaded: Preloaded, tiny_model: Path, tmp_path: Path
) -> None:
    model = padded(tiny_model, tmp_path)
    weights = sum(path.stat().st_size for path in model.rglob("*.safetensors"))
    hub = running_hub(settings(model, bytes_per_second=PADDING_BYTES // 4), tmp_path)
    with (
        hub as address,
        running_server(
            preloaded,
            tmp_path / "server",
            *flags_for(REPOSITORY),
            HF_ENDPOINT=address,
            HF_HOME=str(tmp_path / "hf"),
        ) as server,
    ):
        seen: list[tuple[int, int]] = []

        def is_ready() -> bool:
            body = server.probe("/readyz").json()
            if "download" in body:
                seen.append((body["download"]["bytesDone"], body["download"]["bytesTotal"]))
            return bool(body["phase"] == "ready")

        server.eventually(server.is_listening, seconds=30)
        server.eventually(is_ready)

        assert {total for _, total in seen} == {weights}
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert len({done for done, _ in seen}) > 2
        reply = server.post("/generate", {"prompt": "Hello", "max_tokens": 2, "ignore_eos": True})
        assert reply.json()["usage"]["completion_tokens"] == 2


def test_a_hub_of_a_private_authority_is_trusted_by_the_ca_bundle(
    engine_python: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """This is the test in which a server that is no fork reads the variables of a hub."""
    authority = make_authority(tmp_path)
    with (
        running_hub(settings(tiny_model), tmp_path) as plain,
        refusing(PASSED_ON, certificate=authority.server, hub=plain) as (address, front),
        running_server(
            engine_python,
            tmp_path / "server",
            *flags_for(REPOSITORY),
            HF_ENDPOINT=address,
            HF_HOME=str(tmp_path / "hf"),
            LLMSERVICE_CA_BUNDLE=str(authority.bundle),
        ) as server,
    ):
        server.eventually(server.is_listening, seconds=30)
        server.eventually(lambda: server.probe("/readyz").status == 200)
        assert front.asked > 0


def test_a_start_that_is_cut_off_says_how_much_of_the_model_was_there(
    preloaded: Preloaded, tiny_model: Path, tmp_path: Path
) -> None:
    hub = running_hub(settings(padded(tiny_model, tmp_path), bytes_per_second=1_000_000), tmp_path)
    with (
        hub as address,
        running_server(
            preloaded,
            tmp_path / "server",
            *flags_for(REPOSITORY),
            HF_ENDPOINT=address,
            HF_HOME=str(tmp_path / "hf"),
        ) as server,
    ):
        server.eventually(server.is_listening, seconds=30)
        server.eventually(lambda: "download" in server.probe("/startupz").json())
        server.terminate()
        assert server.exit_code() == 0
        message = server.termination_message()
        assert message["reason"] == "StartupTimeout"
        assert re.search(r"while downloading, \d+ of \d+ bytes", message["message"]), message


def test_servers_that_share_a_cache_take_turns_and_hand_theirs_back_when_told_to_stop(
    preloaded: Preloaded, tiny_model: Path, tmp_path: Path
) -> None:
    claim = tmp_path / "claim"
    shared = {
        "HF_HUB_CACHE": str(claim / "hub"),
        "VLLM_CACHE_ROOT": str(claim / "compile" / "tiny" / "vllm"),
        "LLMSERVICE_SHARED_CACHE_DIRECTORY": str(claim),
    }

    def phase(server: ModelServer) -> str:
        return str(server.probe("/startupz").json()["phase"])

    hub = running_hub(settings(padded(tiny_model, tmp_path), bytes_per_second=1_000_000), tmp_path)
    with hub as address, ExitStack() as stack:
        servers = [
            stack.enter_context(
                running_server(
                    preloaded,
                    tmp_path / name,
                    *flags_for(REPOSITORY),
                    HF_ENDPOINT=address,
                    HF_HOME=str(tmp_path / name),
                    **shared,
                )
            )
            for name in ("first", "second")
        ]

        def are_in(*phases: str) -> bool:
            return sorted(map(phase, servers)) == sorted(phases)

        for server in servers:
            server.eventually(server.is_listening, seconds=60)
        servers[0].eventually(lambda: are_in("downloading", "waiting_for_cache"))
        writer, waiter = sorted(servers, key=phase)
        assert "fills the shared cache" in waiter.probe("/startupz").json()["message"]

        writer.terminate()
        assert writer.exit_code() == 0
        # Without the handover, the waiter would take over only after a minute without signs of
        # life.
        waiter.eventually(lambda: phase(waiter) == "downloading", seconds=10)


REFUSED = {
    "absent": (["--model=org/absent"], "ModelNotFound", "no such model"),
    "no revision": (
        [f"--model={REPOSITORY}", "--revision=v9"],
        "ModelNotFound",
        "not in this revision",
    ),
    "gated": ([f"--model={PRIVATE}"], "ModelAccessDenied", "have accepted its terms"),
    "no answer": ([f"--model={REPOSITORY}"], "HubUnreachable", "did not answer"),
}
"""Case -> flags, termination reason, and a part of the termination message."""


@pytest.fixture(scope="module")
def refused_servers(
    preloaded: Preloaded, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, ModelServer]]:
    """A server for each case. The servers start in parallel, because each one waits for imports
    and for the hub most of the time.
    """
    folder = tmp_path_factory.mktemp("refused")
    with running_hub(settings(tiny_model), folder) as address, ExitStack() as stack:
        yield {
            name: stack.enter_context(
                running_server(
                    preloaded,
                    folder / name,
                    *flags_for(tiny_model),
                    *flags,
                    HF_ENDPOINT="http://127.0.0.1:9" if name == "no answer" else address,
                    HF_HOME=str(folder / name / "hf"),
                )
            )
            for name, (flags, _, _) in REFUSED.items()
        }


@pytest.mark.causes("ModelAccessDenied", "HubUnreachable")
@pytest.mark.parametrize("name", REFUSED)
def test_what_the_hub_refuses_is_told_with_its_reason(
    refused_servers: dict[str, ModelServer], name: str
) -> None:
    server, (_, reason, found) = refused_servers[name], REFUSED[name]
    assert server.process.wait(240) == 1, server.log.read_text()
    message = server.termination_message()
    assert (message["reason"], found in message["message"]) == (reason, True), message
