"""Tests that the real engine keeps the limits of a batch and speculates with every method.

Eagle3 and MTP need a model that was trained for them, so test_engine_config tests only their
configuration.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from llmservice_operator.desired.engine_args import build_engine_args
from llmservice_operator.workload import resolve_pin
from localkube.hub.speculation import build_heads
from operator_support.services import SETTINGS, a_service
from server_support.engine import ModelServer, running_server
from server_support.preloaded import Preloaded

pytest_plugins = ("engine_fixtures",)

MODEL: Final = {"uri": "pvc://models/llama", "name": "tiny"}
HEADROOM: Final = ("--enforce-eager=true", f"--kv-cache-memory-bytes={64 * 1024**2}")
BATCHING: Final = {
    "maxNumSeqs": 4,
    "maxNumBatchedTokens": 64,
    "chunkedPrefill": True,
    "maxQueuedRequests": 12,
}
METHODS: Final[dict[str, dict[str, Any]]] = {
    "Ngram": {"ngram": {"promptLookupMin": 1, "promptLookupMax": 3}},
    "Suffix": {},
    "DraftModel": {"draftModel": {"uri": "pvc://models/llama"}},
    "Eagle": {"draftModel": {"uri": "pvc://models/eagle"}},
    "Medusa": {"draftModel": {"uri": "pvc://models/medusa"}},
}
PROMPTS: Final = (
    "The capital of France is",
    "one two three one two three one two three one two",
    "Hello",
    # This is the first prompt again, because suffix decoding uses the earlier answers.
    "The capital of France is",
)
TOKENS: Final = 64
CLOSE: Final = 1e-3
"""Difference of log-probabilities below which another order of summation may swap two tokens."""

Answer = list[tuple[str, float]]
"""Each token with the difference between the two highest log-probabilities at its position."""


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the content of a claim called models."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "llama").symlink_to(tiny_model)
    for name, head in build_heads().items():
        (folder / name).symlink_to(head)
    return folder


@contextmanager
def served(
    preloaded: Preloaded, models: Path, folder: Path, **engine: Any
) -> Iterator[ModelServer]:
    """Run a model server as the operator would, with the claim's folder at the pod's mount path."""
    spec = {
        "model": MODEL,
        "accelerator": {"type": "cpu"},
        "engine": {
            "image": "with/arctic-inference:1",
            "dtype": "Float32",
            "maxModelLen": 512,
            "extraArgs": list(HEADROOM),
            **engine,
        },
    }
    service = a_service(spec)
    args = build_engine_args(service, resolve_pin(service, None, SETTINGS).version)
    local = [arg.replace("/models/", f"{models}/") for arg in args]
    with running_server(preloaded, folder, *local) as server:
        server.wait_until_ready()
        yield server


@pytest.fixture(scope="module")
def plain(
    preloaded: Preloaded, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelServer]:
    """Model server without speculation, with limits for a batch."""
    with served(preloaded, models, tmp_path_factory.mktemp("plain"), batching=BATCHING) as server:
        yield server


@pytest.fixture(scope="module")
def plain_answers(plain: ModelServer) -> list[Answer]:
    return answers(plain)


def answers(server: ModelServer) -> list[Answer]:
    """Return the server's greedy answers to the prompts, requested one after the other."""
    return [answer(server, prompt) for prompt in PROMPTS]


def answer(server: ModelServer, prompt: str) -> Answer:
    wanted = {"model": "tiny", "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True}
    reply = server.post("/v1/completions", {**wanted, "temperature": 0, "logprobs": 2})
    assert reply.status == 200, reply.body
    found = reply.json()["choices"][0]["logprobs"]
    gaps = [sorted(each.values()) for each in found["top_logprobs"]]
    tokens = [(token, gap[-1] - gap[-2]) for token, gap in zip(found["tokens"], gaps, strict=True)]
    assert len(tokens) == TOKENS
    return tokens


@pytest.mark.parametrize("method", METHODS)
def test_a_method_speculates_without_changing_greedy_answers(
    method: str,
    preloaded: Preloaded,
    models: Path,
    plain_answers: list[Answer],
    tmp_path: Path,
) -> None:
    speculation = {"method": method, "numSpeculativeTokens": 3, **METHODS[method]}
    with served(preloaded, models, tmp_path, speculativeDecoding=speculation) as server:
        guessed = answers(server)
        drafts = server.metric("vllm:spec_decode_num_drafts_total")
        accepted = server.metric("vllm:spec_decode_num_accepted_tokens_total")
        usage = server.counters()
    divergences = [
        next((gap for (a, gap), (b, _) in zip(one, other, strict=True) if a != b), None)
        for one, other in zip(plain_answers, guessed, strict=True)
    ]
    diverged = [gap for gap in divergences if gap is not None]
    print(f"{method}: {drafts:g} drafts, {accepted:g} tokens accepted, {len(diverged)} divergences")
    assert drafts > 0
    # In each step, a sequence gets one token in addition to the accepted ones.
    sequences = usage["steps"]["moments"][2]
    assert usage["decodedTokens"] == pytest.approx(sequences + accepted, abs=3 * len(PROMPTS))
    assert [gap for gap in diverged if gap >= CLOSE] == []
    if method == "DraftModel":
        # The draft model is the model itself, so nearly every guess is right.
        assert accepted > 2 * drafts


def test_the_engine_keeps_the_limits_of_a_batch(plain: ModelServer) -> None:
    seen: list[tuple[float, float]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            running = plain.metric("vllm:num_requests_running")
            seen.append((running, plain.metric("vllm:num_requests_waiting")))

    def ask(number: int) -> int:
        wanted = {"prompt": f"{number} " * 60, "max_tokens": 256, "ignore_eos": True}
        return plain.post("/generate", wanted).status

    with ThreadPoolExecutor(33) as threads:
        watching = threads.submit(watch)
        statuses = [each.result() for each in [threads.submit(ask, i) for i in range(32)]]
        done.set()
        watching.result()

    running, waiting = (max(column) for column in zip(*seen, strict=True))
    assert running == BATCHING["maxNumSeqs"]
    assert 0 < waiting <= BATCHING["maxQueuedRequests"]
    assert set(statuses) == {200, 503}
    # vLLM counts a prompt in the step that computes its last part, so vLLM's metrics do not show
    # the tokens of each step.
    report = plain.probe("/autoscale").json()
    assert report["maxSequences"] == BATCHING["maxNumSeqs"]
    assert report["maxStepTokens"] == BATCHING["maxNumBatchedTokens"]
