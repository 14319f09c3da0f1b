"""Reads the token with which this process proves its ServiceAccount to the metrics servers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

logger = logging.getLogger(__name__)


class TokenFile:
    """A token in a file, which the kubelet replaces before the token expires."""

    def __init__(self, path: Path | None) -> None:
        """`path` is None if the metrics servers ask for no token."""
        self._path = path
        self._is_readable = True

    def headers(self) -> Mapping[str, str]:
        """Return the headers of a request with the present token.

        Without a token, the result is empty. The file is read each time, because it is small and
        its content changes.
        """
        if self._path is None:
            return {}
        try:
            token = self._path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            # Only the first failure is logged as a warning.
            level = logging.WARNING if self._is_readable else logging.DEBUG
            logger.log(level, "the token for the metrics servers cannot be read: %s", error)
            self._is_readable = False
            return {}
        self._is_readable = True
        return {"Authorization": f"Bearer {token}"} if token else {}
