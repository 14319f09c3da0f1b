"""Makes the token with which the plugin reads a load report.

The token is one of the metrics server's own ServiceAccount, for the audience of load reports only:
it gives no access to the API server. The user needs the right to create it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.kubectl_plugin.kubectl import Kubectl, KubectlFailed

DURATION: Final = "10m"
"""Time for which a token is valid: the shortest that an API server accepts."""
RENEW_SECONDS: Final = 300.0
"""Time in seconds after which there is another token."""


class ReportToken:
    """Keeps a token for the metrics servers."""

    def __init__(self, kubectl: Kubectl, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._kubectl = kubectl
        self._monotonic = monotonic
        self._made_at: float | None = None
        self._token: str | None = None
        self.problem: str | None = None
        """Sentence about why there is no token; None if there is one."""

    def headers(self, server: Manifest) -> Mapping[str, str]:
        """Return the headers of a request to the pod of a metrics server.

        They are empty without a token.
        """
        now = self._monotonic()
        if self._made_at is None or now >= self._made_at + RENEW_SECONDS:
            self._made_at = now
            self._make(server)
        return {} if self._token is None else {"Authorization": f"Bearer {self._token}"}

    def _make(self, server: Manifest) -> None:
        account, namespace = server["spec"]["serviceAccountName"], server["metadata"]["namespace"]
        try:
            self._token = self._kubectl.run(
                *("create", "token", account, "--namespace", namespace),
                *("--audience", names.METRICS_SERVER_AUDIENCE, "--duration", DURATION),
            ).strip()
        except KubectlFailed as error:
            self._token = None
            self.problem = f"there is no token for the metrics server: {error}"
        else:
            self.problem = None
