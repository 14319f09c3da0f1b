"""Tests that the proxy for the API server is found once, and not again for each request."""

import asyncio
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from llmservice_operator.cluster import Cluster
from llmservice_operator.cluster.client import load_configuration
from llmservice_operator.telemetry import Metrics

PROXY = "http://proxy.example.com:3128"


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(path))
    return path


def write(path: Path, server: str, **more: str) -> None:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server, **more}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    path.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("server", "excepted", "proxy"),
    [
        ("https://api.example.com", "", PROXY),
        ("https://api.example.com", "example.com", None),
        ("https://10.0.0.1:6443", "10.0.0.1", None),
        ("http://api.example.com", "", None),
    ],
)
async def test_the_environment_chooses_the_proxy_of_all_requests_and_watches(
    kubeconfig: Path,
    monkeypatch: pytest.MonkeyPatch,
    server: str,
    excepted: str,
    proxy: str | None,
) -> None:
    write(kubeconfig, server)
    monkeypatch.setenv("https_proxy", PROXY)
    monkeypatch.setenv("no_proxy", excepted)
    assert (await load_configuration()).proxy == proxy


async def test_the_proxy_of_the_kubeconfig_comes_first(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(kubeconfig, "https://api.example.com", **{"proxy-url": "http://other:1"})
    monkeypatch.setenv("https_proxy", PROXY)
    assert (await load_configuration()).proxy == "http://other:1"


async def test_a_request_starts_no_thread(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a request searches the environment in a thread")

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"resources": [{"name": "pods"}]})

    app = web.Application()
    app.router.add_get("/api/v1", answer)
    async with TestServer(app) as running:
        write(kubeconfig, str(running.make_url("")).rstrip("/"))
        cluster = await Cluster.connect(Metrics(), "test")
        monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", refuse)
        assert await cluster.list_resources("/api/v1") == {"pods"}
        monkeypatch.undo()
        await cluster.close()
