"""The client of the API server.

It takes and returns plain dicts, and converts every error to a ClusterError.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Protocol, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.cluster.answers import foreign_answer, refusal
from llmservice_operator.cluster.overload import Overload
from llmservice_operator.cluster.versions import PARTIAL, page_of
from llmservice_operator.errors import ClusterError, NotFound
from llmservice_operator.kinds import LEASES, SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS, Kind, kind_of

CONNECT_TIMEOUT_SECONDS = 5.0
REQUEST_TIMEOUT_SECONDS = 15.0
UNCOMPRESSED = "identity"
"""Value of Accept-Encoding. Compressed lists cost the API server and the operator CPU time, and the
threads that decompress them cost memory. The traffic stays inside the cluster."""
NO_VERSION = "1"
"""Resource version that no object has, because even the first write to an empty etcd makes version
2."""
LIST_CHUNK = 200
"""Number of objects per page of a LIST. It limits the memory that one page takes."""


class RequestObserver(Protocol):
    def request_finished(self, method: str, host: str, code: str, seconds: float) -> None:
        """Count a request. The code is the HTTP status, or `error` when no response arrived."""


async def load_configuration(configuration: Configuration | None = None) -> Configuration:
    """Read the address and the credentials of the API server.

    In a pod without KUBECONFIG, they come from the pod's service account. Otherwise they come from
    a kubeconfig. An existing configuration is updated. Raises ClusterError with a message that says
    what to set.
    """
    configuration = configuration or Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            # The client reads the token file again every minute, because projected tokens expire.
            load_incluster_config(client_configuration=configuration)
        else:
            await load_kube_config(
                os.environ.get("KUBECONFIG"),
                client_configuration=configuration,
                persist_config=False,
            )
    except (ConfigException, OSError) as error:
        raise ClusterError(
            f"no way to reach a cluster: {error}; set KUBECONFIG to a kubeconfig file,"
            " or run in a pod with a service account token"
        ) from error
    if configuration.proxy is None:
        configuration.proxy = _proxy_of_environment(configuration.host)
    return configuration


def _proxy_of_environment(url: str) -> str | None:
    """Return the proxy that HTTPS_PROXY and NO_PROXY choose for the URL, if there is one."""
    found = urlsplit(url)
    if found.hostname is None or proxy_bypass(found.hostname):
        return None
    return getproxies().get(found.scheme)


class Cluster:
    def __init__(self, client: ApiClient, observer: RequestObserver) -> None:
        self._client = client
        self._observer = observer
        self._overload = Overload(time.monotonic)
        self.may_write: Callable[[], bool] = lambda: True
        """Called before every write except those of the Lease. If it returns False, the write fails
        and is not sent."""

    @classmethod
    async def connect(cls, observer: RequestObserver, identity: str) -> Self:
        """Return a client with the credentials of `load_configuration`. It sends no request yet.

        The audit log of the API server shows `identity`, which tells the operator's replicas apart.
        Raises ClusterError as `load_configuration` does.
        """
        configuration = await load_configuration()
        # Otherwise aiohttp would search the environment and a .netrc file in a thread for every
        # request.
        configuration.client_session_kwargs = {"trust_env": False}
        client = ApiClient(configuration)
        client.user_agent = f"llmservice-operator/{version('llmservice-operator')} ({identity})"
        return cls(client, observer)

    async def close(self) -> None:
        await self._client.close()

    async def list_resources(self, discovery_path: str) -> frozenset[str]:
        """Return the plurals that discovery names at the path of a group and version.

        Discovery lags behind: a kind can be listed some seconds before discovery names it.
        """
        try:
            found = await self._request("GET", discovery_path)
        except NotFound:
            return frozenset()
        try:
            return frozenset(resource["name"] for resource in found["resources"] or ())
        except (KeyError, TypeError) as error:
            raise foreign_answer("GET", discovery_path) from error

    async def read(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        """Return the object as it is now, or None if it does not exist.

        The namespace of a cluster-scoped kind is None.
        """
        path = kind.path(namespace, name)
        # Leader election limits the rate of its requests itself. If they were withheld, the leader
        # would lose the Lease.
        request = self._attempt if kind is LEASES else self._request
        try:
            found = await request("GET", path)
        except NotFound:
            return None
        if not isinstance(found.get("metadata"), dict):
            raise foreign_answer("GET", path)
        return found

    async def list_all(
        self, kind: Kind, namespace: str | None, limit: int = LIST_CHUNK, selector: str = ""
    ) -> AsyncIterator[Manifest]:
        """Yield every object that the selector matches, which is the kind's unless it is given.

        The namespace None means all namespaces.
        """
        query = {"limit": str(limit)}
        if selector := selector or kind.label_selector:
            query["labelSelector"] = selector
        while True:
            page = await self._request("GET", kind.path(namespace), query)
            items, head = page.get("items") or [], page.get("metadata")
            if not isinstance(items, list) or not isinstance(head, dict):
                raise foreign_answer("GET", kind.path(namespace))
            for item in items:
                yield _typed(kind, item)
            if not head.get("continue"):
                return
            query["continue"] = str(head["continue"])

    async def list_versions(
        self, kind: Kind, namespace: str | None
    ) -> AsyncIterator[Mapping[tuple[str, str], int]]:
        """Yield the resource versions of the objects of each page, by namespace and name.

        This costs a fraction of `list_all`. The namespace None means all namespaces.
        """
        path, query = kind.path(namespace), {"limit": str(LIST_CHUNK)}
        if kind.label_selector:
            query["labelSelector"] = kind.label_selector
        while True:
            with self._minding_overload():
                text = await self._exchange("GET", path, query, accept=PARTIAL)
                try:
                    page = page_of(text)
                except ValueError as error:
                    raise foreign_answer("GET", path, text) from error
            yield page.versions
            if not page.metadata.next_page:
                return
            query["continue"] = page.metadata.next_page

    async def list_about(self, kind: Kind, namespace: str, uid: str) -> list[Manifest]:
        """Return the Events about one object, at most one page of them."""
        query = {"fieldSelector": f"involvedObject.uid={uid}", "limit": str(LIST_CHUNK)}
        page = await self._request("GET", kind.path(namespace), query)
        items = page.get("items") or []
        if not isinstance(items, list):
            raise foreign_answer("GET", kind.path(namespace))
        return [each for each in items if isinstance(each, dict)]

    async def create(self, manifest: Manifest) -> Manifest:
        """Create an object by server-side apply; return it as stored.

        Raises Conflict if an object of this name exists, whatever it contains. So the caller need
        not read before it writes.
        """
        metadata = {**manifest["metadata"], "resourceVersion": NO_VERSION}
        return await self.apply({**manifest, "metadata": metadata})

    async def apply(
        self, manifest: Manifest, uid: str | None = None, manager: str = names.FIELD_MANAGER
    ) -> Manifest:
        """Write the manifest by server-side apply; return the object as stored.

        The field manager `manager` takes over fields that other clients own, so an edit of such a
        field is undone. Raises Conflict if `uid` is given and the stored object has another uid.
        """
        if uid is not None:
            manifest = {**manifest, "metadata": {**manifest["metadata"], "uid": uid}}
        return await self._apply(manifest, "", manager)

    async def apply_status(
        self, manifest: Manifest, manager: str = names.FIELD_MANAGER
    ) -> Manifest:
        """Write the status subresource by server-side apply; return the object as stored."""
        return await self._apply(manifest, "status", manager)

    async def review_access(self, spec: Mapping[str, Any]) -> bool:
        """Return whether a user has a right.

        `spec` is the spec of a SubjectAccessReview, which names the user and the right.
        """
        kind = SUBJECT_ACCESS_REVIEWS
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "spec": dict(spec)}
        review = await self._request("POST", kind.path(), None, body)
        status = review.get("status")
        return isinstance(status, dict) and bool(status.get("allowed"))

    async def review_token(self, token: str, audience: str) -> str | None:
        """Return the name of the user of a token that is valid for this audience; None for any
        other token.
        """
        kind = TOKEN_REVIEWS
        spec = {"token": token, "audiences": [audience]}
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "spec": spec}
        review = await self._request("POST", kind.path(), None, body)
        status = review.get("status")
        if not isinstance(status, dict) or not status.get("authenticated"):
            return None
        # An authenticator that knows no audiences leaves them out of its answer.
        if audience not in (status.get("audiences") or ()):
            return None
        user = status.get("user")
        name = user.get("username") if isinstance(user, dict) else None
        return str(name) if name else None

    async def delete(self, live: Manifest) -> None:
        """Delete the object if it has not changed since it was read.

        Raises Conflict if it has changed. An object that does not exist any more causes no error.
        """
        metadata = live["metadata"]
        body = {
            "preconditions": {
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "propagationPolicy": "Background",
        }
        path = kind_of(live).path(metadata.get("namespace"), metadata["name"])
        try:
            await self.write("DELETE", path, body)
        except NotFound:
            return

    async def write(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | str,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        """Send one write. Raises ClusterError without sending it if this process is not the
        leader.
        """
        if not self.may_write():
            said = "not written: this process does not hold the lease any more"
            raise ClusterError(said, requests=0)
        return await self._request(method, path, query, body, content_type)

    async def write_lease(self, method: str, path: str, body: Mapping[str, Any]) -> Manifest:
        """Send one write of leader election, even while this process is not the leader."""
        lease = await self._attempt(method, path, None, body)
        if not isinstance(lease.get("metadata"), dict) or not isinstance(lease.get("spec"), dict):
            raise foreign_answer(method, path)
        return lease

    async def _apply(self, manifest: Manifest, subresource: str, manager: str) -> Manifest:
        metadata = manifest["metadata"]
        path = kind_of(manifest).path(metadata["namespace"], metadata["name"], subresource)
        query = {
            "fieldManager": manager,
            "force": "true",
            "fieldValidation": "Strict",
        }
        content_type = "application/apply-patch+yaml; charset=utf-8"
        return await self.write("PATCH", path, as_yaml(manifest), query, content_type)

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | str | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        """Send a request. Raises ClusterError without sending it while the API server is
        overloaded.
        """
        with self._minding_overload():
            return await self._attempt(method, path, query, body, content_type)

    @contextmanager
    def _minding_overload(self) -> Iterator[None]:
        """Note an overload from the error of the request inside. Raises ClusterError, before the
        request is sent, while the API server is overloaded.
        """
        self._overload.check()
        try:
            yield
        except ClusterError as error:
            self._overload.note(error)
            raise

    async def _attempt(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | str | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        text = await self._exchange(method, path, query, body, content_type)
        try:
            manifest: Manifest = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise foreign_answer(method, path, text) from error
        if not isinstance(manifest, dict):
            raise foreign_answer(method, path, text)
        return manifest

    async def _exchange(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | str | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> bytes:
        """Send a request. Return the text of the response, or raise ClusterError for a refusal."""
        loop = asyncio.get_running_loop()
        started, code = loop.time(), "error"
        try:
            limits = aiohttp.ClientTimeout(
                total=REQUEST_TIMEOUT_SECONDS, sock_connect=CONNECT_TIMEOUT_SECONDS
            )
            # The client's own limit does not include the login, which may run a plugin.
            async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS):
                headers = {
                    "Accept": accept,
                    "Accept-Encoding": UNCOMPRESSED,
                    "Content-Type": content_type,
                }
                answer = await self._send(method, path, query, body, headers, limits)
                text: bytes = await answer.read()
            code = str(answer.status)
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise ClusterError(f"{method} {path}: no answer: {reason}") from error
        except (ConfigException, OSError) as error:
            said = f"{method} {path}: the credentials cannot be read: {error}"
            raise ClusterError(said) from error
        finally:
            self._observer.request_finished(
                method, self._client.configuration.host, code, loop.time() - started
            )
        if answer.status >= 400:
            raise refusal(f"{method} {path}", answer.status, text, answer.headers)
        return text

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | str | None,
        headers: Mapping[str, str],
        limits: aiohttp.ClientTimeout,
    ) -> Any:
        """Return the client's response object as soon as its headers have arrived."""
        method, url, sent, body, _ = await self._client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=dict(headers),
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = await self._client.call_api(method, url, sent, body, _request_timeout=limits)
        if answer.status == 401:
            # The token of a kubeconfig's plugin may have expired. A retry uses a new token.
            await load_configuration(self._client.configuration)
        return answer


def _typed(kind: Kind, item: Any) -> Any:
    """Return an item of a list with its API version and kind, which the list states only once."""
    if not isinstance(item, dict):
        return item
    return {"apiVersion": kind.api_version, "kind": kind.kind, **item}


def as_yaml(manifest: Manifest) -> str:
    """Return JSON that a YAML parser reads as the same value.

    YAML treats some characters as line breaks, refuses others, and does not support the escaped
    surrogate pairs with which JSON represents an emoji.
    """
    text = json.dumps(manifest, ensure_ascii=False)
    return re.sub("[^ -~]", lambda found: f"\\U{ord(found[0]):08x}", text)
