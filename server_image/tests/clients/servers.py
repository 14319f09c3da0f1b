"""Starts this server and stock vLLM with the same model and flags, for each kind of model."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import engine_env
from localkube.hub.models import SMOLLM2, TINY_LLAMA, build_models
from server_support.engine import ModelServer, common_environment, running_server, running_stock
from server_support.models import MAKER_OF_WHISPER, write_embedding_model

NAME = "model"
KEY = "the-key-of-the-clients"
PAGE = "http://a.page"
"""Origin of the page in a browser."""
FLAGS = (f"--served-model-name={NAME}", "--dtype=float32", f'--allowed-origins=["{PAGE}"]')


@contextmanager
def both(kind: str, folder: Path) -> Iterator[tuple[ModelServer, ModelServer]]:
    """Run this server and stock vLLM with an API key; yield them in this order once both are ready.

    `kind` is "text", "vectors" or "hearing".
    """
    python = engine_env.engine_python()
    flags = (*FLAGS, *_model_flags(kind, python, folder))
    keys = folder / "keys"
    keys.mkdir(parents=True)
    (keys / "key").write_text(KEY)
    with ExitStack() as stack:
        ours = stack.enter_context(
            running_server(python, folder / "ours", *flags, LLMSERVICE_API_KEYS_DIRECTORY=str(keys))
        )
        stock = stack.enter_context(
            running_stock(python, folder / "stock", *flags, f"--api-key={KEY}")
        )
        ours.wait_until_ready()
        stock.eventually(lambda: stock.is_listening() and stock.probe("/health").status == 200)
        yield ours, stock


def text_model() -> Path:
    """Return the folder of the model that generates text."""
    return build_models()[SMOLLM2]


def _model_flags(kind: str, python: Path, folder: Path) -> tuple[str, ...]:
    if kind == "text":
        return (
            f"--model={text_model()}",
            "--max-model-len=2048",
            f"--kv-cache-memory-bytes={256 * 1024**2}",
            "--enable-auto-tool-choice",
            "--tool-call-parser=hermes",
        )
    tiny, model = build_models()[TINY_LLAMA], folder / "model"
    memory = f"--kv-cache-memory-bytes={64 * 1024**2}"
    if kind == "vectors":
        write_embedding_model(tiny, model)
        # Cohere's clients name one of these prompts with each text.
        prompts = {"search_document": "passage: ", "search_query": "query: "}
        config = model / "config_sentence_transformers.json"
        config.write_text(json.dumps({"prompts": prompts}))
        return f"--model={model}", "--max-model-len=512", memory
    maker = [str(python), str(MAKER_OF_WHISPER), str(tiny), str(model)]
    subprocess.run(maker, check=True, env=common_environment(python, folder), stdout=2)
    return f"--model={model}", memory
