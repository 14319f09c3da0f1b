"""Tests the list of LoRA adapters, their files, and their states in a server, without an engine."""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmservice_server.adapter_files import (
    AdapterLimits,
    AdapterRefused,
    fetch,
    remove_all_but,
)
from llmservice_server.adapter_list import MOST_ADAPTERS, Adapter, AdapterList, parse_list
from llmservice_server.adapters import AdapterFile, Adapters
from llmservice_server.engine_adapters import LoadedAdapter
from localkube.hub.settings import HubSettings, RepositorySettings
from localkube_support.hub import running_hub
from server_support.adapters import entry, write_files, write_list, zeros
from shared_support.waiting import PATIENCE, eventually_in_loop

LIMITS = AdapterLimits(max_rank=16, max_bytes=10_000, hidden_size=8, layers=2)
Q_PROJ = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
DOWN_PROJ = "base_model.model.model.layers.{}.mlp.down_proj.lora_{}.weight"


def weights(form: str = Q_PROJ, layer: int = 0, inner: int = 8, outer: int = 8) -> dict[str, Any]:
    return {form.format(layer, "A"): zeros(4, inner), form.format(layer, "B"): zeros(outer, 4)}


def on_disk(folder: Path, configuration: Mapping[str, Any], tensors: dict[str, Any]) -> Adapter:
    return Adapter("a", str(write_files(folder, configuration, tensors)))


def test_a_list_has_the_adapters_to_load_and_those_for_clients() -> None:
    one, two = Adapter("a", "org/a", "v1"), Adapter("a", "org/a", "v2")
    found = parse_list(
        json.dumps({"adapters": [entry("a", "org/a", "v2")], "served": [entry("a", "org/a", "v1")]})
    )
    assert found == AdapterList((two,), (one,))
    assert found.all == (one, two)
    assert found.for_clients == (one,)
    assert one.digest != two.digest


def test_a_list_without_those_for_clients_serves_all() -> None:
    found = parse_list(json.dumps({"adapters": [entry("a", "/models/a")]}))
    assert found.for_clients == found.all == (Adapter("a", "/models/a"),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "not a JSON object"),
        ("{", "Expecting"),
        ('{"adapters": {}}', "not a list"),
        ('{"adapters": [1]}', "not a JSON object"),
        (json.dumps({"adapters": [entry("../a", "org/a")]}), "is not the name of an adapter"),
        (json.dumps({"adapters": [entry("a@1", "org/a")]}), "is not the name of an adapter"),
        (json.dumps({"adapters": [entry("a", "")]}), "has no source"),
        ('{"adapters": [{"name": "a", "source": "b", "revision": 1}]}', "is not a text"),
        (json.dumps({"adapters": [entry("a", "org/a")] * 2}), "the same name"),
        (
            json.dumps({"adapters": [entry(f"a{n}", "b") for n in range(MOST_ADAPTERS + 1)]}),
            f"at most {MOST_ADAPTERS}",
        ),
    ],
)
def test_a_wrong_list_is_refused_with_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_list(text)


def test_a_fitting_adapter_is_taken_from_its_folder(tmp_path: Path) -> None:
    adapter = on_disk(tmp_path, {"r": 4}, {**weights(layer=1), **weights(DOWN_PROJ, inner=99)})
    assert fetch(adapter, tmp_path / "root", LIMITS) == tmp_path


@pytest.mark.parametrize(
    ("configuration", "tensors", "said"),
    [
        ({"r": 32}, weights(), "its rank is 32, and the server is started for at most 16"),
        ({"r": 4, "rank_pattern": {"q": 32}}, weights(), "its rank is 32"),
        ({"r": "many"}, weights(), "it has no rank r"),
        ({}, weights(), "it has no rank r"),
        ({"r": 4}, weights(inner=9), "its hidden size is 9, and that of the served model is 8"),
        ({"r": 4}, weights(DOWN_PROJ, outer=9), "its hidden size is 9"),
        ({"r": 4}, weights(layer=2), "it changes layer 2, and the served model has 2 layers"),
        ({"r": 4}, weights(inner=8000), "at most 10000 are allowed"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path, configuration: dict[str, Any], tensors: dict[str, Any], said: str
) -> None:
    with pytest.raises(AdapterRefused, match=said):
        fetch(on_disk(tmp_path, configuration, tensors), tmp_path / "root", LIMITS)


def test_an_adapter_without_safetensors_is_refused_even_with_other_weights(tmp_path: Path) -> None:
    adapter = on_disk(tmp_path, {"r": 4}, weights())
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterRefused, match=r"it has no adapter_model\.safetensors"):
        fetch(adapter, tmp_path / "root", LIMITS)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\x04\0\0\0\0\0\0\0[]  ", b"\x02\0\0\0\0\0\0\0{"]
)
def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path, content: bytes) -> None:
    adapter = on_disk(tmp_path, {"r": 4}, weights())
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(AdapterRefused, match="is not a safetensors file"):
        fetch(adapter, tmp_path / "root", LIMITS)


def test_a_disk_without_room_refuses_an_adapter_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk(tmp_path / "repository", {"r": 4}, weights())
    settings = HubSettings(
        port=0,
        repositories={"org/a": RepositorySettings(branches={"main": tmp_path / "repository"})},
    )
    monkeypatch.setattr("llmservice_server.adapter_files._FREE_BYTES", 2**60)
    with running_hub(settings, tmp_path) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub)
        with pytest.raises(AdapterRefused, match="must stay free: remove an adapter"):
            fetch(Adapter("a", "org/a"), tmp_path / "root", LIMITS)


def test_files_of_a_killed_server_are_removed_except_those_of_the_list(tmp_path: Path) -> None:
    kept, other = Adapter("a", "org/a"), Adapter("b", "org/b")
    for adapter in (kept, other):
        (tmp_path / adapter.digest).mkdir()
    remove_all_but((kept,), tmp_path)
    assert os.listdir(tmp_path) == [kept.digest]
    remove_all_but((), tmp_path / "nothing")


class Engine:
    """An engine that accepts every adapter, and records the calls."""

    def __init__(self) -> None:
        self.loaded: list[Adapter] = []
        self.served: dict[str, Adapter] = {}
        self.missing: dict[str, str] = {}
        self.used: set[Adapter] = set()

    def is_name_of_model(self, name: str) -> bool:
        return name == "model"

    async def load(self, adapter: Adapter, _: Path) -> LoadedAdapter:
        self.loaded.append(adapter)
        return LoadedAdapter(adapter, None)

    async def unload(self, loaded: LoadedAdapter) -> None:
        self.loaded.remove(loaded.adapter)

    def is_in_use(self, loaded: LoadedAdapter) -> bool:
        return loaded.adapter in self.used

    def serve(self, served: Mapping[str, LoadedAdapter], missing: Mapping[str, str]) -> None:
        self.served = {name: it.adapter for name, it in served.items()}
        self.missing = dict(missing)


class Requests:
    def __init__(self) -> None:
        self.now: set[object] = set()

    def open(self) -> frozenset[object]:
        return frozenset(self.now)


class Server:
    """Adapters on an engine without a model, with a clock that the test sets."""

    def __init__(self, folder: Path) -> None:
        self.engine, self.requests, self.time = Engine(), Requests(), 0.0
        self.list = folder / "adapters.json"
        self.folder = folder
        self.adapters = Adapters(
            AdapterFile(self.list),
            folder / "root",
            LIMITS,
            self.engine,  # type: ignore[arg-type]
            self.requests,
            lambda: self.time,
        )

    def adapter(self, name: str, rank: int = 4) -> Adapter:
        return replace(on_disk(self.folder / f"{name}-{rank}", {"r": rank}, weights()), name=name)

    def write(self, wanted: tuple[Adapter, ...], served: tuple[Adapter, ...] | None) -> None:
        write_list(
            self.list,
            [entry(it.name, it.source) for it in wanted],
            None if served is None else [entry(it.name, it.source) for it in served],
        )

    async def look(self, after: float = 0.0) -> None:
        """Advance the clock, read the list, and wait until all loads have ended."""
        self.time += after
        await self.adapters.look()
        await eventually_in_loop(
            lambda: all(it["state"] != "loading" for it in self.adapters.report())
        )


async def test_a_removed_adapter_is_unloaded_once_its_requests_are_over(tmp_path: Path) -> None:
    server = Server(tmp_path)
    old, new = server.adapter("a"), server.adapter("a", 8)
    server.write((old,), (old,))
    await server.adapters.load_first()
    assert server.engine.served == {"a": old}

    server.requests.now = {"before"}
    server.write((new,), (new,))
    await server.look()
    assert server.engine.served == {"a": new}
    server.requests.now = {"before", "after"}
    await server.look(after=60)
    assert server.engine.loaded == [old, new]
    server.requests.now, server.engine.used = {"after"}, {old}
    await server.look(after=60)
    assert server.engine.loaded == [old, new]
    server.engine.used = set()
    await server.look()
    assert server.engine.loaded == [old, new]
    await server.look(after=5)
    assert server.engine.loaded == [new]


async def test_an_adapter_that_comes_back_before_it_is_unloaded_stays(tmp_path: Path) -> None:
    server = Server(tmp_path)
    adapter = server.adapter("a")
    server.write((adapter,), None)
    await server.adapters.load_first()
    server.write((), None)
    await server.look()
    server.write((adapter,), None)
    await server.look(after=60)
    assert server.engine.served == {"a": adapter}
    assert server.engine.loaded == [adapter]


async def test_a_wrong_adapter_keeps_no_server_from_being_ready(tmp_path: Path) -> None:
    server = Server(tmp_path)
    good, wrong, model = server.adapter("a"), server.adapter("b", 32), server.adapter("model")
    server.write((good, wrong, model), (good, wrong))
    async with asyncio.timeout(PATIENCE):
        await server.adapters.load_first()
    assert server.engine.served == {"a": good}
    assert server.engine.missing["b"].startswith("its rank is 32")
    said = {it["name"]: it["message"] for it in server.adapters.report()}
    assert said["a"] == ""
    assert said["model"] == "the model itself is served by this name: choose another name"


async def test_a_server_waits_for_a_hub_that_does_not_answer_and_not_for_what_left_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    server = Server(tmp_path)
    server.write((Adapter("a", "org/a"),), None)
    starting = asyncio.ensure_future(server.adapters.load_first())
    await eventually_in_loop(lambda: any(it["message"] for it in server.adapters.report()))
    (found,) = server.adapters.report()
    assert found["state"] == "loading"
    assert found["message"] == "The hub did not answer, and the model is not in the cache."
    assert not starting.done()

    server.write((), None)
    async with asyncio.timeout(PATIENCE):
        await starting


async def test_a_list_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path)
    adapter = server.adapter("a")
    server.write((adapter,), None)
    await server.adapters.load_first()
    server.list.write_text("{")
    await server.look()
    assert server.engine.served == {"a": adapter}
    server.list.unlink()
    await server.look()
    assert server.engine.served == {"a": adapter}


async def test_a_server_without_its_list_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await Server(tmp_path).adapters.load_first()
