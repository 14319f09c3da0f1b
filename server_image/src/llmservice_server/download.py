"""Downloads a model's weights from the hub and reports the progress.

vLLM would download the same files without reporting the progress. The server downloads them first,
into the same cache, and passes vLLM the same repository and revision, so vLLM finds all files
there. If vLLM ever chooses other files, it downloads the rest itself. The progress is then less
visible, but the result is correct.
"""

import fnmatch
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_WEIGHT_PATTERNS = {
    "auto": ("consolidated*.safetensors", "*.safetensors", "*.bin", "*.pt"),
    "hf": ("*.safetensors", "*.bin", "*.pt"),
    "safetensors": ("*.safetensors",),
    "fastsafetensors": ("*.safetensors",),
    "mistral": ("consolidated*.safetensors",),
    "npcache": ("*.bin",),
    "pt": ("*.pt",),
}
"""Load format -> patterns of its weight files; the first pattern with a match is used."""

_CONFIGURATION_PATTERNS = (
    "*.bpe",
    "*.jinja",
    "*.json",
    "*.model",
    "*.model.v*",
    "*.py",
    "*.spm",
    "*.tiktoken",
    "*.txt",
    "*.vocab",
)
"""Patterns of the files that vLLM loads in addition to the weights: configurations, tokenizers,
templates and code. A repository may also contain gigabytes of weights for other programs, in
formats that no list could name completely."""

_INDEX = "model.safetensors.index.json"

_PASSING_STATUSES = frozenset({408, 425, 429})
"""HTTP statuses below 500 after which a later attempt may succeed."""

_HEADERS_OF_A_REFUSAL = frozenset({"x-error-code", "x-error-message"})
"""Headers in which the hub explains why it refuses a request."""

_PAUSES_SECONDS = (2, 4, 8)
"""Pauses in seconds between attempts to read the list of files. After the last attempt, the
container restarts, and Kubernetes delays each further restart longer."""

_LONGEST_PAUSE_SECONDS = 60
"""Maximum pause in seconds, even if the hub requests a longer one."""

_SINCE_THE_HUB_FAILED = "YES"
"""Value of HF_HUB_OFFLINE that this module sets. The operator and users set 1."""


@dataclass(frozen=True)
class HubModel:
    """A model on the hub, and the load format of its weights."""

    repository: str
    revision: str | None = None
    load_format: str = "auto"
    cache_dir: str | None = None
    """Cache folder of the weights; None uses the hub library's own cache."""

    token: str | None = None
    """Access token; None uses the environment variable HF_TOKEN."""


def hub_model(
    model: str, revision: str | None, load_format: str, cache_dir: str | None, token: object
) -> HubModel | None:
    """Return the model to download, or None when the weights are not plain files on the hub."""
    if "://" in model or Path(model).exists() or load_format not in _WEIGHT_PATTERNS:
        return None
    return HubModel(
        model, revision, load_format, cache_dir, token if isinstance(token, str) else None
    )


def weight_files(
    names: Iterable[str], load_format: str, read_index: Callable[[], str]
) -> list[str]:
    """Return the weight files of a repository, as vLLM chooses them.

    Files in subfolders never decide the format. If an index lists the safetensors shards, only
    these are returned, because a repository may contain a second copy of its weights. `read_index`
    returns the text of the index. Raises ValueError or KeyError if the index is invalid.
    """
    names = list(names)
    top_level = [name for name in names if "/" not in name]
    for pattern in _WEIGHT_PATTERNS[load_format]:
        if not fnmatch.filter(top_level, pattern):
            continue
        if pattern == "*.safetensors" and _INDEX in names:
            shards = set(json.loads(read_index())["weight_map"].values())
            return sorted(shards & set(names))
        return sorted(
            name
            for name in fnmatch.filter(names, pattern)
            if not fnmatch.fnmatch(name, "original/*")
        )
    return []


def configuration_files(names: Iterable[str]) -> list[str]:
    """Return the files of a repository that vLLM loads in addition to the weights."""
    return sorted(
        name
        for name in names
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in _CONFIGURATION_PATTERNS)
    )


class ModelDownload:
    """The download of one model. Its methods block, so call them in a thread."""

    def __init__(self, model: HubModel) -> None:
        self._model = model
        self._commit = ""
        self._sizes: dict[str, int] = {}
        self._weights: list[str] = []
        self._cached_bytes = 0
        self._blob_bytes_before = 0
        self.bytes_total = 0
        self.is_from_cache = False
        """Whether the cached model is used because the hub could not serve the list of files."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Sizes of the repository's files in bytes, as of the look-up."""
        return self._sizes

    @property
    def folder(self) -> str:
        """Name of the repository's folder in the cache."""
        from huggingface_hub.file_download import repo_folder_name

        return str(repo_folder_name(repo_id=self._model.repository, repo_type="model"))

    def look_up(self) -> None:
        """Read the list of files and their sizes.

        If the hub is unreachable, overloaded or broken and the whole model is in the cache, nothing
        is downloaded. If the model is not in the cache, an overloaded or broken hub is queried
        again after a pause. Raises the hub library's own errors, which distinguish a model that
        does not exist, missing access and an unreachable hub.
        """
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            return
        for pause in (*_PAUSES_SECONDS, None):
            try:
                return self._list_files()
            except Exception as error:
                if is_refusal(error):
                    raise
                if self._is_whole_in_cache():
                    logger.warning("the hub cannot serve; using the cached model: %s", error)
                    self.is_from_cache = True
                    return
                if pause is None or not is_passing(error):
                    raise
                seconds = max(pause, min(_retry_after(error), _LONGEST_PAUSE_SECONDS))
                logger.warning("the hub cannot serve; asking again in %d s: %s", seconds, error)
            time.sleep(seconds)

    def _is_whole_in_cache(self) -> bool:
        """Return whether the configuration and all weights are in the cache."""
        from huggingface_hub import snapshot_download

        model = self._model
        try:
            # The library raises an error if it knows that the snapshot lacks the named file.
            folder = Path(
                snapshot_download(
                    model.repository,
                    revision=model.revision,
                    cache_dir=model.cache_dir,
                    local_files_only=True,
                    allow_patterns=["config.json"],
                )
            )
            index = folder / _INDEX
            shards = json.loads(index.read_text())["weight_map"].values() if index.exists() else ()
            names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
            # The names of all shards are added, so that missing shards are noticed.
            weights = weight_files(names.union(shards), model.load_format, index.read_text)
        except (OSError, ValueError, KeyError):
            return False
        return bool(weights) and names.issuperset(weights)

    def _list_files(self) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        hub, model = HfApi(token=self._model.token), self._model
        self._commit = hub.model_info(model.repository, revision=model.revision).sha or ""
        tree = hub.list_repo_tree(model.repository, revision=self._commit, recursive=True)
        self._sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}

    def remove_locks(self) -> None:
        """Remove the hub library's locks on the files of this repository.

        Only the server that may write to the repository calls this method. On a file system without
        `flock`, the existence of a file is the lock, so the lock of a killed server remains.
        """
        for lock in (self._cache() / ".locks" / self.folder).glob("*.lock"):
            lock.unlink(missing_ok=True)

    def has_configuration(self) -> bool:
        """Return whether the files that vLLM loads in addition to the weights are in the cache."""
        return self._are_cached(configuration_files(self._sizes))

    def fetch_configuration(self) -> None:
        """Download the files that vLLM loads in addition to the weights. vLLM reads them first."""
        self._fetch(configuration_files(self._sizes))

    def choose_weights(self) -> None:
        """Choose the weight files, and download their index if there is one."""
        from huggingface_hub import hf_hub_download

        model = self._model

        def read_index() -> str:
            path = hf_hub_download(
                model.repository,
                _INDEX,
                revision=model.revision,
                cache_dir=model.cache_dir,
                token=model.token,
            )
            return Path(path).read_text()

        self._weights = weight_files(self._sizes, model.load_format, read_index)
        self.bytes_total = sum(self._sizes[name] for name in self._weights)
        self.measure()

    def has_weights(self) -> bool:
        """Return whether the chosen weights are in the cache."""
        return self._are_cached(self._weights)

    def fetch_weights(self) -> None:
        """Download the missing files; an interrupted download resumes."""
        self._fetch(self._weights)

    def bytes_done(self) -> int:
        """Return the number of bytes of the weights on disk, from the sizes of the files."""
        arrived = _bytes_in(self._blobs(), complete_only=False) - self._blob_bytes_before
        return min(self.bytes_total, self._cached_bytes + max(0, arrived))

    def measure(self) -> None:
        """Record the number of bytes on disk now, from which `bytes_done` continues."""
        self._cached_bytes = sum(self._sizes[name] for name in self._weights if self._cached(name))
        self._blob_bytes_before = _bytes_in(self._blobs(), complete_only=True)

    def _blobs(self) -> Path:
        return self._cache() / self.folder / "blobs"

    def _cache(self) -> Path:
        from huggingface_hub import constants

        return Path(self._model.cache_dir or constants.HF_HUB_CACHE)

    def _are_cached(self, names: Iterable[str]) -> bool:
        return all(map(self._cached, names))

    def _cached(self, name: str) -> bool:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(
            self._model.repository, name, self._model.cache_dir, self._commit
        )
        return isinstance(found, str)

    def fetch(self, names: list[str]) -> Path:
        """Download these files of the commit that was looked up; return their folder."""
        return self._download(names, self._commit)

    def _fetch(self, names: list[str]) -> None:
        if names:
            self._download(names, self._model.revision)

    def _download(self, names: list[str], revision: str | None) -> Path:
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            self._model.repository,
            revision=revision,
            cache_dir=self._model.cache_dir,
            token=self._model.token,
            allow_patterns=names,
        )
        return Path(folder)


def use_cache_only() -> None:
    """Stop the hub library from contacting the hub, in this process and in the engine process.

    vLLM requests the same files from the hub again, and would fail as the look-up did.
    """
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = _SINCE_THE_HUB_FAILED


def use_hub_again() -> None:
    """Let the hub library of this process contact the hub again after `use_cache_only`."""
    from huggingface_hub import constants

    if os.environ.get("HF_HUB_OFFLINE") == _SINCE_THE_HUB_FAILED:
        constants.HF_HUB_OFFLINE = False


def is_offline() -> bool:
    """Return whether the hub library of this process never contacts the hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def is_refusal(error: Exception) -> bool:
    """Return whether the hub itself refused the model, so that a later attempt would not help.

    A refusal by a proxy or a firewall says nothing about the model. Such a refusal lacks the
    hub's headers.
    """
    response = getattr(error, "response", None)
    if response is None:
        return False
    status = response.status_code
    if status == 403:
        return any(name.lower() in _HEADERS_OF_A_REFUSAL for name in response.headers)
    return 400 <= status < 500 and status not in _PASSING_STATUSES | {407}


def is_passing(error: Exception) -> bool:
    """Return whether the hub reported that it is overloaded or broken at the moment."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return status in _PASSING_STATUSES or 500 <= status < 600


def _retry_after(error: Exception) -> int:
    """Return the pause in seconds that the hub requests; 0 if it requests none."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    seconds = headers.get("Retry-After", "")
    return int(seconds) if seconds.isdecimal() else 0


def _bytes_in(folder: Path, *, complete_only: bool) -> int:
    """Return the size in bytes of all files in a cache's blobs folder.

    `complete_only` leaves out unfinished files.
    """
    if not folder.is_dir():
        return 0
    return sum(
        entry.stat().st_size
        for entry in os.scandir(folder)
        if not (complete_only and entry.name.endswith(".incomplete"))
    )
