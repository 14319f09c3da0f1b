"""Reads the size of a model from its files, on the hub or in a folder.

The module reads config.json and the headers of the weight files, some hundred kilobytes in total.
It never reads the weights.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from huggingface_hub import HfApi, get_local_safetensors_metadata
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils import SafetensorsRepoMetadata

from llmservice_operator.errors import OperatorError
from llmservice_operator.fit import Checkpoint

TIMEOUT_SECONDS: Final = 20.0
"""Longest time in seconds that one request to the hub may take."""
LONGEST_CONFIG_BYTES: Final = 8 * 2**20
"""Longest config.json that is read, in bytes."""
CONFIG: Final = "config.json"

ModelFiles = tuple[Mapping[str, Any], Checkpoint]
"""The content of config.json, and the numbers of parameters by their format."""


class ModelFilesError(OperatorError):
    """The model's files cannot be read; the text says what to change."""


def read_folder(folder: Path) -> ModelFiles:
    """Return the files of a model in a folder.

    Raises ModelFilesError if they cannot be read.
    """
    try:
        return _config(folder / CONFIG), _checkpoint(get_local_safetensors_metadata(folder))
    except (OSError, NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise ModelFilesError(f"{folder} holds no model in the safetensors format: {error}") from (
            error
        )


@cache
def read_repository(
    repository: str, revision: str | None, endpoint: str | None, token: str | None
) -> ModelFiles:
    """Return the files of a model on the hub at `endpoint`; None means the public hub.

    The files are read once per process. Raises ModelFilesError if they cannot be read.
    """
    # False keeps the library from sending a token that the user has stored for another hub.
    hub = HfApi(endpoint=endpoint, token=token or False)
    at = f" at revision {revision}" if revision else ""
    try:
        # This call fails immediately if the hub is unreachable. The download would retry for a long
        # time.
        hub.model_info(repository, revision=revision, timeout=TIMEOUT_SECONDS)
        with tempfile.TemporaryDirectory() as folder:
            path = hub.hf_hub_download(
                repository,
                CONFIG,
                revision=revision,
                local_dir=folder,
                etag_timeout=TIMEOUT_SECONDS,
            )
            config = _config(Path(path))
        metadata = hub.get_safetensors_metadata(
            repository, revision=revision, timeout=TIMEOUT_SECONDS
        )
    except GatedRepoError as error:
        raise ModelFilesError(
            f"{repository} is gated: accept its terms on the hub, and set HF_TOKEN to a token of "
            "that account"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelFilesError(f"{repository} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise ModelFilesError(
            f"the hub has no repository {repository}: correct the name, or set HF_TOKEN if it is "
            "private"
        ) from error
    except LocalEntryNotFoundError as error:
        raise _unreachable(hub.endpoint, error) from error
    except EntryNotFoundError as error:
        raise ModelFilesError(f"{repository} has no {CONFIG}{at}") from error
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise ModelFilesError(
            f"{repository} holds no model in the safetensors format{at}: {error}"
        ) from error
    except (HTTPError, OSError) as error:
        raise _unreachable(hub.endpoint, error) from error
    return config, _checkpoint(metadata)


def _unreachable(endpoint: str, error: Exception) -> ModelFilesError:
    return ModelFilesError(
        f"the hub {endpoint} cannot be read ({type(error).__name__}): try again, set HF_ENDPOINT "
        "to a hub that this machine reaches, or pass a folder with --model-dir"
    )


def _config(path: Path) -> Mapping[str, Any]:
    if path.stat().st_size > LONGEST_CONFIG_BYTES:
        raise ModelFilesError(f"{path} is longer than {LONGEST_CONFIG_BYTES} bytes")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ModelFilesError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelFilesError(f"{path} holds no object")
    return config


def _checkpoint(metadata: SafetensorsRepoMetadata) -> Checkpoint:
    found: Counter[str] = Counter()
    for file in metadata.files_metadata.values():
        found.update(file.parameter_count)
    return Checkpoint(dict(found))
