"""Reads the API server's audit log: user, verb, object and time of each request."""

import datetime
import json
from collections.abc import Iterator
from typing import Any

from localkube.cluster import Cluster
from localkube.errors import LocalkubeError

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


def events(
    cluster: Cluster,
    *,
    since: str | None = None,
    user: str | None = None,
    writes_only: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the audit events, oldest first.

    `since` is an RFC 3339 time. `user` is the complete name, as in
    system:serviceaccount:NAMESPACE:NAME.

    Raises LocalkubeError if `since` is not a time.
    """
    begin = moment(since) if since else None
    with cluster.audit_log.open(encoding="utf-8") as log:
        for line in log:
            if not line.endswith("\n"):
                return  # the API server is still writing this line
            event: dict[str, Any] = json.loads(line)
            if begin and moment(event["requestReceivedTimestamp"]) < begin:
                continue
            if user and event["user"].get("username") != user:
                continue
            if writes_only and event["verb"] not in WRITES:
                continue
            yield event


def moment(text: str) -> datetime.datetime:
    """Parse an ISO 8601 time. A time without an offset is in UTC.

    Raises LocalkubeError if the text is not a time.
    """
    try:
        parsed = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise LocalkubeError(
            f"{text!r} is not a time: write it like 2030-01-31T12:00:00Z (UTC)."
        ) from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.UTC)
