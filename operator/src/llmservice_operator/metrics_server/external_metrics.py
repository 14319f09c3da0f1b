"""Serves external.metrics.k8s.io/v1beta1 to the API server, which sends requests on behalf of
users.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from llmservice_operator import api, names
from llmservice_operator.api.autoscaling import ScalingMetric
from llmservice_operator.api.fields import timestamp
from llmservice_operator.api.load_report import LoadReport
from llmservice_operator.cluster import Key
from llmservice_operator.errors import ClusterError
from llmservice_operator.metrics_server.front_proxy import FrontProxy, Unauthenticated, User

GROUP, VERSION = names.EXTERNAL_METRICS_GROUP, names.EXTERNAL_METRICS_VERSION
ROOT = f"/apis/{GROUP}"
WINDOW_SECONDS = 60
REMEMBERED_SECONDS = 10.0
"""Time in seconds that a response of the authorizer is reused."""
REMEMBERED_ANSWERS = 1000


def _value(metric: ScalingMetric, report: LoadReport) -> float | None:
    """Return the total of the metric; a demand is rounded to a whole percent for each replica.

    The HorizontalPodAutoscaler divides the total by the number of replicas, and `kubectl get hpa`
    prints the quotient. 71/85 is easy to read, but 70867m/85 is not.
    """
    total = report.total(metric)
    if total is None or metric is not ScalingMetric.EFFECTIVE_GPU_UTILIZATION:
        return total
    replicas = len(report.replicas) or 1
    return round(total / replicas) * replicas


METRICS: Mapping[str, ScalingMetric] = {it.external_name: it for it in ScalingMetric}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Reports = Callable[[], Mapping[Key, LoadReport]]
Authorizer = Callable[[Mapping[str, Any]], Awaitable[bool]]
"""Sends the spec of a SubjectAccessReview, and returns whether the access is allowed."""


class Refused(Exception):
    """An error response. Users read its message in `kubectl describe hpa`."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason

    @property
    def body(self) -> dict[str, Any]:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "code": self.status,
        }


class Access:
    """Client of the cluster's authorizer. It reuses responses for some seconds."""

    def __init__(self, ask: Authorizer, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._answers: dict[str, tuple[float, bool]] = {}

    async def check(self, user: User, attributes: Mapping[str, Any]) -> None:
        """Raise Refused if the user may not do what `attributes` describe, or if the authorizer
        fails.
        """
        spec = {**user.access_review, **attributes}
        key = repr(spec)
        at, allowed = self._answers.get(key, (-REMEMBERED_SECONDS, False))
        if self._clock() - at >= REMEMBERED_SECONDS:
            try:
                allowed = await self._ask(spec)
            except ClusterError as error:
                raise Refused(
                    503, "ServiceUnavailable", f"the user's rights cannot be looked up: {error}"
                ) from error
            if len(self._answers) >= REMEMBERED_ANSWERS:
                self._answers.clear()
            self._answers[key] = self._clock(), allowed
        if not allowed:
            raise Refused(403, "Forbidden", f"user {user.name!r} may not read this")


def create_external_metrics_app(
    reports: Reports,
    front_proxy: Callable[[], FrontProxy | None],
    ask: Authorizer,
    now: Callable[[], float] = time.time,
) -> web.Application:
    """Return the application for the API server's aggregation layer."""
    access = Access(ask)

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            user = _user(request, front_proxy())
            await access.check(user, _attributes(request))
            return await handler(request)
        except Unauthenticated as error:
            refusal = Refused(401, "Unauthorized", str(error))
        except web.HTTPNotFound:
            refusal = Refused(404, "NotFound", f"there is nothing at {request.path}")
        except web.HTTPMethodNotAllowed:
            refusal = Refused(405, "MethodNotAllowed", "metrics can only be read")
        except Refused as error:
            refusal = error
        return web.json_response(refusal.body, status=refusal.status)

    async def values(request: web.Request) -> web.Response:
        namespace, wanted = request.match_info["namespace"], request.match_info["metric"]
        metric = METRICS.get(wanted)
        if metric is None:
            raise Refused(
                404, "NotFound", f"there is no metric {wanted}; there are {', '.join(METRICS)}"
            )
        name = selected_service(request.query.get("labelSelector", ""))
        found = {
            key: report
            for key, report in reports().items()
            if key[0] == namespace and name in (None, key[1])
        }
        if name is not None and not found:
            raise Refused(
                404,
                "NotFound",
                f"the metrics server knows no {api.KIND} {name} in namespace {namespace}",
            )
        items = [_item(metric, key[1], report, now()) for key, report in sorted(found.items())]
        return web.json_response(
            {
                "kind": "ExternalMetricValueList",
                "apiVersion": f"{GROUP}/{VERSION}",
                "metadata": {},
                "items": items,
            }
        )

    app = web.Application(middlewares=[guard])
    app.router.add_get("/apis", _answer(GROUP_LIST))
    app.router.add_get(ROOT, _answer(API_GROUP))
    app.router.add_get(f"{ROOT}/{VERSION}", _answer(RESOURCE_LIST))
    app.router.add_get(f"{ROOT}/{VERSION}/namespaces/{{namespace}}/{{metric}}", values)
    return app


def selected_service(selector: str) -> str | None:
    """Return the LLMService that a label selector names. None if the selector matches all
    services.

    Raises Refused for a selector that is not of the form llmservice=NAME.
    """
    if not selector:
        return None
    key, separator, name = selector.partition("=")
    name = name.removeprefix("=")
    if key.strip() != names.METRIC_SERVICE_LABEL or not separator or set(name) & set("=,! "):
        raise Refused(
            400,
            "BadRequest",
            f"the selector {selector!r} is none of this metric: write matchLabels"
            f" {names.METRIC_SERVICE_LABEL}: NAME",
        )
    return name


def _item(metric: ScalingMetric, name: str, report: LoadReport, now: float) -> dict[str, Any]:
    value = _value(metric, report)
    if report.is_stale(now):
        raise Refused(
            503,
            "ServiceUnavailable",
            f"the metrics server has not looked at {name} for {now - report.at:.0f} s",
        )
    if value is None:
        message = _unknown(metric, report)
        raise Refused(503, "ServiceUnavailable", message)
    return {
        "metricName": metric.external_name,
        "metricLabels": {names.METRIC_SERVICE_LABEL: name},
        "timestamp": timestamp(datetime.fromtimestamp(report.at, UTC)),
        "windowSeconds": WINDOW_SECONDS,
        # The HorizontalPodAutoscaler reads the quantity in thousandths.
        "value": f"{round(1000 * value)}m",
    }


def _unknown(metric: ScalingMetric, report: LoadReport) -> str:
    if metric is ScalingMetric.EFFECTIVE_GPU_UTILIZATION:
        return report.message
    if metric is ScalingMetric.GPU_DUTY_CYCLE and report.kv_cache_percent is not None:
        return "no replica reports a GPU duty cycle: choose another autoscaling metric"
    return "too few Ready replicas report their load, so the number of replicas is held"


def _user(request: web.Request, front_proxy: FrontProxy | None) -> User:
    if front_proxy is None:
        raise Unauthenticated("how the API server signs in is not known yet")
    transport = request.transport
    certificate = transport.get_extra_info("peercert") if transport is not None else None
    return front_proxy.user(certificate, request.headers)


def _attributes(request: web.Request) -> dict[str, Any]:
    """Return the attributes of the request for a SubjectAccessReview."""
    if "metric" not in request.match_info:
        return {"nonResourceAttributes": {"path": request.path, "verb": request.method.lower()}}
    return {
        "resourceAttributes": {
            "group": GROUP,
            "version": VERSION,
            "resource": request.match_info["metric"],
            "namespace": request.match_info["namespace"],
            "verb": "list",
        }
    }


def _answer(body: Mapping[str, Any]) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(body)

    return answer


_VERSION_ENTRY = {"groupVersion": f"{GROUP}/{VERSION}", "version": VERSION}
API_GROUP = {
    "kind": "APIGroup",
    "apiVersion": "v1",
    "name": GROUP,
    "versions": [_VERSION_ENTRY],
    "preferredVersion": _VERSION_ENTRY,
}
GROUP_LIST = {"kind": "APIGroupList", "apiVersion": "v1", "groups": [API_GROUP]}
RESOURCE_LIST = {
    "kind": "APIResourceList",
    "apiVersion": "v1",
    "groupVersion": f"{GROUP}/{VERSION}",
    "resources": [
        {
            "name": metric,
            "singularName": "",
            "namespaced": True,
            "kind": "ExternalMetricValueList",
            "verbs": ["get"],
        }
        for metric in METRICS
    ],
}
