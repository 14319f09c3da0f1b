"""Tests that a running server applies changes of its LoRA adapters, with the real engine."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from localkube.hub.settings import HubSettings, RepositorySettings
from localkube_support.hub import running_hub
from server_support.adapters import (
    ADAPTER_FLAGS,
    answer,
    entry,
    write_adapter,
    write_files,
    write_list,
    zeros,
)
from server_support.engine import SERVED_NAME, ModelServer, flags_for, running_server
from server_support.preloaded import Preloaded

LATER = "org/later"
SECONDS = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Folder with the adapters `one`, `two` and `three`."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two", "three")):
        write_adapter(folder / name, tiny_model, seed)
    return folder


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return folder / "adapters.json"


@pytest.fixture(scope="module")
def server(
    of_version: Preloaded, tiny_model: Path, folder: Path, file: Path
) -> Iterator[ModelServer]:
    """Server that starts with the adapters `one` and `two`. Clients can use only `one`."""
    one, two = entry("one", folder / "one"), entry("two", folder / "two")
    write_list(file, [one, two], [one])
    settings = HubSettings(
        port=0, repositories={LATER: RepositorySettings(branches={"main": folder / "three"})}
    )
    with (
        running_hub(settings, folder) as hub,
        running_server(
            of_version,
            folder / "server",
            *flags_for(tiny_model),
            *ADAPTER_FLAGS,
            LLMSERVICE_ADAPTERS_FILE=str(file),
            HF_ENDPOINT=hub,
            HF_HOME=str(folder / "hf"),
        ) as started,
    ):
        yield started


def listed(server: ModelServer) -> list[str]:
    return [each["id"] for each in server.get("/v1/models").json()["data"]]


def states(server: ModelServer) -> dict[tuple[str, str], str]:
    """Return (name, source) -> failure or state, for each adapter in /autoscale."""
    found = server.probe("/autoscale").json()["adapters"]
    return {(it["name"], it["source"]): it["message"] or it["state"] for it in found}


def test_a_ready_server_has_the_adapters_of_its_list_and_lists_those_for_clients(
    server: ModelServer, folder: Path
) -> None:
    server.wait_until_ready()

    assert listed(server) == [SERVED_NAME, "one"]
    assert states(server) == {
        ("one", str(folder / "one")): "loaded",
        ("two", str(folder / "two")): "loaded",
    }
    shown = server.get("/v1/models/one").json()
    assert (shown["root"], shown["parent"]) == (str(folder / "one"), SERVED_NAME)
    early = server.post("/v1/completions", {"model": "two", "prompt": "Hello"})
    assert early.status == 404
    assert "two" in early.json()["error"]["message"]
    assert answer(server, "one") != answer(server, SERVED_NAME)


def test_an_adapter_is_added_changed_and_removed_while_it_serves(
    server: ModelServer, folder: Path, file: Path
) -> None:
    server.wait_until_ready()
    one, two = entry("one", folder / "one"), entry("two", folder / "two")
    changed = entry("one", LATER, "main")
    write_list(file, [one, two], [one, two])
    server.eventually(lambda: listed(server) == [SERVED_NAME, "one", "two"], SECONDS)
    before = {name: answer(server, name) for name in (SERVED_NAME, "one", "two")}
    assert len(set(before.values())) == 3

    # The next adapter of this name comes from the hub. Meanwhile, clients get the previous adapter.
    write_list(file, [changed, two], [one, two])
    server.eventually(lambda: states(server).get(("one", LATER)) == "loaded", SECONDS)
    assert answer(server, "one") == before["one"]
    assert server.metric("vllm:prefix_cache_queries_total") > 0

    running: list[str] = []
    old = threading.Thread(target=lambda: running.append(answer(server, "one", tokens=400)))
    old.start()
    server.eventually(lambda: server.metric("vllm:num_requests_running") > 0, SECONDS)
    write_list(file, [changed, two], [changed, two])
    server.eventually(lambda: ("one", str(folder / "one")) not in states(server), SECONDS)
    after = answer(server, "one")
    assert after not in before.values()
    old.join()
    assert running[0].startswith(before["one"][:10])

    write_list(file, [two], [two])
    server.eventually(lambda: listed(server) == [SERVED_NAME, "two"], SECONDS)
    gone = server.post("/v1/completions", {"model": "one", "prompt": "Hello"})
    assert gone.status == 404
    assert answer(server, "two") == before["two"]
    assert answer(server, SERVED_NAME) == before[SERVED_NAME]
    server.eventually(lambda: "unloaded the adapter one" in server.log.read_text(), SECONDS)


def too_large(folder: Path, model: Path) -> Path:
    return write_adapter(folder, model, 1, rank=16)


def with_unknown_modules(folder: Path, _: Path) -> Path:
    name = "base_model.model.model.layers.0.self_attn.z_proj"
    weights = {f"{name}.lora_A.weight": zeros(8, 64), f"{name}.lora_B.weight": zeros(64, 8)}
    return write_files(folder, {"r": 8, "target_modules": ["z_proj"]}, weights)


def of_another_model(folder: Path, _: Path) -> Path:
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    weights = {f"{name}.lora_A.weight": zeros(8, 24), f"{name}.lora_B.weight": zeros(24, 8)}
    return write_files(folder, {"r": 8, "target_modules": ["q_proj"]}, weights)


def with_wider_outputs(folder: Path, model: Path) -> Path:
    write_adapter(folder, model, 1)
    name = "base_model.model.model.layers.0.self_attn.v_proj"
    weights = {f"{name}.lora_A.weight": zeros(8, 64), f"{name}.lora_B.weight": zeros(4096, 8)}
    return write_files(folder, {"r": 8, "target_modules": ["v_proj"]}, weights)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (too_large, "its rank is 16, and the server is started for at most 8"),
        (with_unknown_modules, "z_proj"),
        (of_another_model, "its hidden size is 24"),
        (with_wider_outputs, "the engine refused it"),
        (None, "The hub has no such model, or it is private and the token may not read it."),
    ],
    ids=["rank", "modules", "base model", "shapes", "repository"],
)
def test_a_wrong_adapter_has_its_reason_and_takes_nothing_else_down(
    server: ModelServer,
    folder: Path,
    file: Path,
    tiny_model: Path,
    make: Callable[[Path, Path], Path] | None,
    said: str,
) -> None:
    server.wait_until_ready()
    good = entry("two", folder / "two")
    source = "org/nothing" if make is None else make(folder / make.__name__, tiny_model)
    write_list(file, [good, entry("wrong", source)], [good])

    def reason() -> Any:
        return states(server).get(("wrong", str(source)))

    server.eventually(lambda: reason() not in (None, "loading"), SECONDS)
    assert said in reason()
    assert len(reason()) <= 200
    assert listed(server) == [SERVED_NAME, "two"]
    assert answer(server, "two") not in (answer(server, SERVED_NAME), "")

    # If only this replica lacks an adapter, its clients must retry on another replica.
    write_list(file, [good, entry("wrong", source)], [good, entry("wrong", source)])
    asked = {"model": "wrong", "prompt": "Hello"}
    server.eventually(lambda: server.post("/v1/completions", asked).status == 503, SECONDS)
    assert "retry-after" in server.post("/v1/completions", asked).headers
    rejected = "llm_requests_rejected_total"
    assert server.metric(f'{rejected}{{reason="no_adapter"}}') >= 2
    assert server.metric(f'{rejected}{{reason="queue_full"}}') == 0
    assert listed(server) == [SERVED_NAME, "two"]
