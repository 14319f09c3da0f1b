"""Fetches the files of a LoRA adapter and checks them before the engine reads them.

Only the configuration and the safetensors file are read. Other formats may contain code.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmservice_server.adapter_list import Adapter
from llmservice_server.download import HubModel, ModelDownload, is_offline, is_refusal

CONFIGURATION = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_CONFIGURATION_BYTES = 1024**2
_HEADER_BYTES = 32 * 1024**2
"""Maximum size in bytes of the header of a safetensors file. It allows about 200,000 tensors."""

_FREE_BYTES = 512 * 1024**2
"""Disk space in bytes that a download leaves free. The kubelet evicts pods from a node whose disk
is full."""

_COMPLETE = "complete"
"""Name of the file that marks a complete download. Its text is the path of the adapter's folder."""

_COMMIT = re.compile("[0-9a-f]{40}")
_OTHER_TOWERS = ("vision", "visual", "audio", "encoder")
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_READS_HIDDEN_STATE = re.compile(r"\.(q|k|v|gate|up)_proj\.lora_A\.weight$")
_WRITES_HIDDEN_STATE = re.compile(r"\.(o|down)_proj\.lora_B\.weight$")


class AdapterRefused(Exception):
    """The adapter cannot be served by this server, and another attempt would not help."""


@dataclass(frozen=True)
class AdapterLimits:
    """Limits that an adapter must not exceed, and the shape of the model that it must fit."""

    max_rank: int
    max_bytes: int
    """Maximum size of the weights in bytes."""

    hidden_size: int | None = None
    layers: int | None = None


def adapters_folder() -> Path:
    """Return the folder of downloaded adapters on the server's own disk, not in a shared cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME, "llmservice-adapters")


def fetch(adapter: Adapter, root: Path, limits: AdapterLimits) -> Path:
    """Return the folder with the checked files of the adapter. The call blocks.

    Files from the hub are stored in a separate folder for each adapter below `root`. Raises
    AdapterRefused and the hub library's own errors.
    """
    if adapter.is_on_the_hub:
        folder = _from_hub(adapter, root / adapter.digest, limits)
    else:
        folder = Path(adapter.source)
        _check_sizes(_sizes_in(folder), limits)
    _check_configuration(folder, limits)
    _check_shapes(_tensor_shapes(folder / WEIGHTS), limits)
    return folder


def remove(adapter: Adapter, root: Path) -> None:
    """Remove the files that were downloaded for the adapter."""
    shutil.rmtree(root / adapter.digest, ignore_errors=True)


def remove_all_but(adapters: tuple[Adapter, ...], root: Path) -> None:
    """Remove the files of all other adapters. A killed server may have left some behind."""
    kept = {each.digest for each in adapters}
    for folder in root.iterdir() if root.is_dir() else ():
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def _from_hub(adapter: Adapter, folder: Path, limits: AdapterLimits) -> Path:
    complete = folder / _COMPLETE
    there = Path(complete.read_text()) if complete.exists() else None
    if there is not None and (is_offline() or _COMMIT.fullmatch(adapter.revision or "")):
        return there
    if is_offline():
        raise AdapterRefused(
            "it comes from a hub, and the server works offline: put it on the claim of the model"
        )
    model = HubModel(adapter.source, adapter.revision, "safetensors", str(folder))
    download = ModelDownload(model)
    try:
        download.look_up()
    except Exception as error:
        if there is not None and not is_refusal(error):
            return there
        raise
    _check_sizes(download.sizes, limits)
    folder.mkdir(parents=True, exist_ok=True)
    _check_room(download.sizes[WEIGHTS], folder)
    _check_configuration(download.fetch([CONFIGURATION]), limits)
    fetched = download.fetch([CONFIGURATION, WEIGHTS])
    complete.write_text(str(fetched))
    return fetched


def _sizes_in(folder: Path) -> dict[str, int]:
    files = (folder / name for name in (CONFIGURATION, WEIGHTS))
    return {path.name: path.stat().st_size for path in files if path.is_file()}


def _check_sizes(sizes: Mapping[str, int], limits: AdapterLimits) -> None:
    for name, most in ((CONFIGURATION, _CONFIGURATION_BYTES), (WEIGHTS, limits.max_bytes)):
        if name not in sizes:
            raise AdapterRefused(
                f"it has no {name}: name the repository or folder of a LoRA adapter in PEFT's form"
            )
        if sizes[name] > most:
            raise AdapterRefused(f"its {name} has {sizes[name]} bytes; at most {most} are allowed")


def _check_room(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free - needed < _FREE_BYTES:
        raise AdapterRefused(
            f"it needs {needed} bytes of disk, and {free} are free, of which {_FREE_BYTES} must "
            "stay free: remove an adapter, or raise the size of the cache"
        )


def _check_configuration(folder: Path, limits: AdapterLimits) -> None:
    try:
        found = json.loads((folder / CONFIGURATION).read_text())
        ranks = [int(found["r"]), *map(int, (found.get("rank_pattern") or {}).values())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterRefused(
            f"its {CONFIGURATION} is not that of a LoRA adapter: it has no rank r"
        ) from error
    if max(ranks) > limits.max_rank:
        raise AdapterRefused(
            f"its rank is {max(ranks)}, and the server is started for at most {limits.max_rank}: "
            "raise maxLoraRank, or use an adapter with a lower rank"
        )


def _tensor_shapes(file: Path) -> dict[str, list[int]]:
    """Return the shapes of the tensors in a safetensors file, from its header."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= _HEADER_BYTES:
                raise ValueError("the length of the header")
            header: dict[str, Any] = json.loads(opened.read(length))
        return {
            name: list(map(int, tensor["shape"]))
            for name, tensor in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterRefused(f"its {WEIGHTS} is not a safetensors file") from error


def _check_shapes(shapes: Mapping[str, list[int]], limits: AdapterLimits) -> None:
    """Raise AdapterRefused if the adapter was trained for a model of another shape.

    vLLM copies smaller weights into its buffers without an error, and ignores layers that the model
    lacks.
    """
    for name, shape in shapes.items():
        if len(shape) != 2 or any(each in name for each in _OTHER_TOWERS):
            continue
        size = None
        if _READS_HIDDEN_STATE.search(name):
            size = shape[1]
        elif _WRITES_HIDDEN_STATE.search(name):
            size = shape[0]
        if None not in (size, limits.hidden_size) and size != limits.hidden_size:
            raise AdapterRefused(
                f"it was trained for another base model: its hidden size is {size}, and that of "
                f"the served model is {limits.hidden_size}"
            )
        layer = _LAYER.search(name)
        if layer and limits.layers is not None and int(layer[1]) >= limits.layers:
            raise AdapterRefused(
                f"it was trained for another base model: it changes layer {layer[1]}, and the "
                f"served model has {limits.layers} layers"
            )
