"""Checks the values of flags that are harmless with most values, but load code or open files with
others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from llmservice_operator import names

_NOTHING: Final = "(?!)"
JSON_FLAGS: Final[Mapping[str, str]] = {
    "--additional-config": _NOTHING,
    "--attention-config": _NOTHING,
    # The values of these keys can name functions to load, or set options of a C++ compiler.
    "--compilation-config": "backend|inductor_.*",
    "--diffusion-config": _NOTHING,
    "--hf-overrides": _NOTHING,
    "--kernel-config": _NOTHING,
    "--media-io-kwargs": _NOTHING,
    "--mm-processor-kwargs": "token|revision|subfolder|proxies",
    "--pooler-config": _NOTHING,
    "--reasoning-config": _NOTHING,
}
"""Flags whose value is a JSON object, each with the pattern of the keys that are refused in
addition to `_REFUSED_KEYS`."""

_REFUSED_KEYS: Final = (
    "_.*|auto_map|trust_remote_code|code_revision|(.*_)?(cls|dir|file|folder|path|plugin|root)s?"
)
"""Pattern of the keys that name code or files. It also matches such keys of future versions."""
_SAFE: Final = {("backend", "eager"), ("backend", "inductor")}
"""Members (key and value) that are accepted. Other values of the same keys can name code."""
_GONE: Final[Mapping[tuple[str, object], str]] = {
    ("use_inductor", False): '{"backend":"eager"}',
    ("use_inductor", True): '{"backend":"inductor"}',
}
"""Members that older versions had, each with the member that has the same meaning now."""
_PLACE: Final = re.compile("~|[.]{0,2}/|[a-z]+://")
"""Beginning of a text that names a file or an address."""

PARSER_FLAGS: Final = ("--reasoning-parser", "--tool-call-parser")
PLUGIN_FLAGS: Final = (
    "--reasoning-parser-plugin",
    "--tool-parser-plugin",
    # No version has this flag, but users write it. The refusal names the flag that they mean.
    "--tool-call-parser-plugin",
)
_PLUGIN: Final = re.compile("(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+[.]py")
_NOT_OF_THE_IMAGE: Final = tuple(
    f"{folder}/"
    for folder in (
        *(names.CACHE_PATH, names.MODEL_CACHE_PATH, names.MODELS_PATH, names.DRAFT_MODELS_PATH),
        *(names.TMP_PATH, "/dev", "/proc", "/sys", "/etc", "/run", "/var/run"),
    )
)


def refusal_of(flag: str, value: str, *, has_own_image: bool) -> str | None:
    """Return a message that says what to change about the value of a flag; None if the value is
    accepted.
    """
    if flag in JSON_FLAGS:
        return _refusal_of_json(flag, value)
    if flag in PLUGIN_FLAGS:
        if not has_own_image:
            return "requires engine.image: build an image that contains the file, and name it there"
        if _PLUGIN.fullmatch(value) is None or value.startswith(_NOT_OF_THE_IMAGE):
            return (
                "must be the path of a Python file inside the image, such as "
                "/opt/parsers/mine.py, and not on a volume of the pod"
            )
    return None


def _refusal_of_json(flag: str, value: str) -> str | None:
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        return f'is not valid JSON ({error}): write an object such as {{"name": 1}}'
    if not isinstance(found, dict):
        return 'must be a JSON object, such as {"name": 1}'
    refused = re.compile(f"{_REFUSED_KEYS}|{JSON_FLAGS[flag]}")
    for key, each in _entries(found):
        if isinstance(each, str | bool) and (key, each) in _GONE:
            old = json.dumps({key: each}, separators=(",", ":"))
            return f"{old} is gone from vLLM: write {_GONE[key, each]} instead"
        if isinstance(each, str) and (key, each) in _SAFE:
            continue
        if refused.fullmatch(key):
            return f"{key} names code or files, which is unsafe in a shared cluster: remove it"
        if isinstance(each, str) and _PLACE.match(each):
            return f"{key} is {each!r}, which names a file or an address: remove it"
    return None


def _entries(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, and every item of a list with the key of the list."""
    left: list[tuple[str, Any]] = list(found.items())
    while left:
        key, value = left.pop()
        yield key, value
        if isinstance(value, dict):
            left.extend(value.items())
        elif isinstance(value, list):
            left.extend((key, each) for each in value)
