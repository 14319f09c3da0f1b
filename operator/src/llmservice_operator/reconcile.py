"""Runs one pass over one LLMService: builds its children, applies the differences, and reports the
observed state in the status.

A pass depends only on the present state. Its result is therefore correct after a restart, a missed
event or a crash in the middle of the last pass. A second pass over the same state writes nothing.
"""

import logging
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime

from llmservice_operator import router_rollouts, scaler
from llmservice_operator.adapter_status import see_adapters
from llmservice_operator.api import Manifest
from llmservice_operator.api.load_report import LoadReport
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService, LLMServiceSpec
from llmservice_operator.api.wake import Wake
from llmservice_operator.child_writer import ChildWriter
from llmservice_operator.children import (
    Child,
    adapter_list,
    http_route,
    router_deployment,
    workload_child,
)
from llmservice_operator.children.attempt import build_around_pods
from llmservice_operator.children.router_deployment import keep_router_pods
from llmservice_operator.cluster import Cache, Cluster, EventRecorder, Key, PodEvents, ServedKinds
from llmservice_operator.convergence import ConvergenceGuard
from llmservice_operator.desired import is_owned_by
from llmservice_operator.desired.accelerator_class import gpu_price
from llmservice_operator.desired.provider import ProviderPlan
from llmservice_operator.desired.router import decide_router
from llmservice_operator.errors import ClusterError, InvalidSpec, OperatorError, StillDeleting
from llmservice_operator.kinds import HTTP_ROUTES, INFERENCE_POOLS, PODS
from llmservice_operator.load_report_client import LoadReportClient
from llmservice_operator.load_status import LoadView
from llmservice_operator.outcome import Outcome, ServiceGone
from llmservice_operator.refusals import Refusal, failure_of, failure_of_all
from llmservice_operator.releases import RENEWAL, Releases, say_shared
from llmservice_operator.route_status import RouteView
from llmservice_operator.router_rollouts import RouterRollouts
from llmservice_operator.router_status import RouterView
from llmservice_operator.scaler import Scaler
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.status import (
    Failure,
    StatusUpdate,
    build_status,
    build_status_of_failure,
)
from llmservice_operator.status_writer import StatusWriter, Written
from llmservice_operator.telemetry import CONTROLLER, Metrics, log_fields
from llmservice_operator.workload import (
    Restored,
    is_rolled_back,
    observe_service,
    read_restored,
    replicas_of,
    without_rollback,
)

logger = logging.getLogger(__name__)

REQUEUE_SECONDS = 60.0
"""Delay in seconds after a failure that can end without a watched event, for example when a name
becomes free."""
LOOK_AT_START_SECONDS = 10.0
"""Delay in seconds while a model is downloaded or loaded, because no event of the cluster reports
the progress."""
LOOK_AT_IDLE_SECONDS = 3600.0
"""Delay in seconds while a service is idle. Its next request starts a pass at once, and so does an
outage of the metrics server."""
STARTING = (Reason.LOADING_MODEL, Reason.DOWNLOADING_MODEL)
"""Reasons of a replica whose model server is still starting."""
WAIT_FOR_COLLECTOR_SECONDS = 2.0
"""Delay in seconds while the garbage collector removes the children of a deleted service of the
same name."""


class ToldAlready(ClusterError):
    """The pass must be repeated. The status already reports the reason."""


class Reconciler:
    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        served: ServedKinds,
        recorder: EventRecorder,
        metrics: Metrics,
        settings: OperatorSettings,
        now: Callable[[], datetime],
        reports: LoadReportClient,
        on_problem: Callable[[str | None], None] = lambda _: None,
        read_wake: Callable[[str, str], Wake | None] = lambda _, __: None,
    ) -> None:
        """`on_problem` is called with the reason why statuses are incomplete, and with None once
        they are complete. `read_wake` returns the requests that wait for an idle service, by its
        namespace and name.
        """
        self._cache = cache
        self._served = served
        self._recorder = recorder
        self._metrics = metrics
        self._settings = settings
        self._now = now
        self._reports = reports
        self._read_wake = read_wake
        self._guard = ConvergenceGuard()
        self._scaler = Scaler(cluster, cache, served, settings, now, self._guard)
        self._children = ChildWriter(cluster, cache, served, metrics, self._scaler, self._guard)
        self._router_rollouts = RouterRollouts()
        self._releases = Releases(f"{settings.namespace}/{settings.lease_name}")
        self._shared: dict[str, tuple[str, ...]] = {}
        """For each namespace, the last logged list of several releases that serve it."""
        self._pod_events = PodEvents(cluster, now)
        self._statuses = StatusWriter(cluster, cache, self._guard, on_problem)
        self._settled: dict[Key, tuple[Manifest, Manifest]] = {}
        """Services without replicas whose last pass changed nothing, each with its manifest and its
        workload at that time."""

    async def reconcile(self, key: Key) -> float | None:
        """Run one pass over a service; return the seconds until the next pass.

        None means that only an event requires the next pass. Raises ClusterError when the cluster
        prevented the pass and a retry may succeed. The status reports every error before it is
        raised, if the status can be written.
        """
        body = self._cache.service(key)
        if body is None:
            self._metrics.service_gone(*key)
            self._scaler.forget(key)
            self._guard.forget(key)
            self._pod_events.forget(key)
            self._children.forget(key)
            self._router_rollouts.forget(key)
            self._releases.forget(key)
            self._settled.pop(key, None)
            return None
        metadata = body["metadata"]
        if "deletionTimestamp" in metadata:
            # The garbage collector is deleting the children. A child created now could remain.
            return None
        with log_fields(
            controller=CONTROLLER,
            namespace=key[0],
            name=key[1],
            generation=metadata.get("generation"),
            reconcile_id=uuid.uuid4().hex[:8],
        ):
            try:
                return await self._pass(body)
            except ServiceGone as reason:
                logger.info("%s", reason)
                return WAIT_FOR_COLLECTOR_SECONDS
            except ToldAlready:
                raise
            except Exception as error:
                await self._tell(body, error)
                raise

    async def _pass(self, body: Manifest) -> float | None:
        try:
            service = LLMService.parse(body)
        except InvalidSpec as error:
            self._metrics.terminal_error()
            update = build_status_of_failure(body, failure_of(error), self._now())
            written = await self._report(body, update)
            return 0.0 if written.is_changed else written.look_again_seconds
        workload = workload_child(service)
        live, unread = await self._read_workload(service, workload)
        restored = None
        if live is not None and is_rolled_back(service):
            restored, unread = await self._read_restored(service, live)
            if restored is None and unread is None:
                # The pods of the rollback are stored nowhere any more, so the pods follow the spec.
                service = without_rollback(service)
        is_watched = (
            service.spec.autoscaling is not None
            or service.spec.objectives.is_limited
            or service.spec.model.takes_adapters
        )
        report = self._read_report(service) if is_watched else None
        wake = self._read_wake(service.namespace, service.name)
        plan, decision = self._scaler.plan(service, report, wake), None
        key = service.namespace, service.name
        settled_body, settled_workload = self._settled.pop(key, (None, None))
        is_settled = body is settled_body and live is settled_workload
        if is_settled and plan.idle_replicas and await self._start_at_once(service, plan, report):
            return 0.0
        outcome, pin, wanted_pods = Outcome(), None, None
        has_reports = self._settings.metrics_server_url is not None
        adapters = see_adapters(
            service,
            self._owned(service, adapter_list.CHILD),
            replicas_of(self._cache.owned(key, PODS)),
            report,
            has_reports=has_reports,
        )
        live_router = self._owned(service, router_deployment.CHILD)
        router = decide_router(service, self._settings, live_router, self._now())
        lacks_pools = router.has_pool and INFERENCE_POOLS not in self._served
        if lacks_pools:
            router = replace(router, serves_pool=False)
        waits_for_turn = False
        try:
            built = build_around_pods(
                service,
                live,
                self._settings,
                plan.autoscaler,
                self._served,
                adapters.listed,
                router,
                restored,
            )
            waits_for_turn = self._keep_router_pods(service, live_router, built.children)
            pin, wanted_pods = built.pin, built.pods
            if unread is not None:
                # The number of replicas and the image are unknown, so the workload must stay
                # unchanged.
                built.children[workload], pin = unread, None
        except InvalidSpec as error:
            outcome.refuse("the spec", error)
        else:
            outcome = await self._children.write(service, built.children, built.replicas, live)
            if built.unbuilt is not None:
                outcome.refuse(f"the pods of {service.name}", built.unbuilt)
            try:
                scaled, decision = await self._scaler.scale(service, plan, report)
                if scaled and plan.idle_replicas and not outcome.wrote and not outcome.refusals:
                    # Requests wait for the first replicas. Other services that must be woken do not
                    # wait for the status of this one, which the next pass writes.
                    return 0.0
                outcome.wrote |= scaled
            except OperatorError as error:
                outcome.refuse("the number of replicas", error)
        failure = failure_of_all(outcome.refusals)
        if failure is not None:
            self._metrics.terminal_error()
        elif service.spec.autoscaling is None and plan.left_over:
            # With autoscaling, the condition AutoscalingActive reports the remaining ScaledObject.
            failure = Failure(Reason.KEDA_MISSING, plan.left_over)
        # The pods and the workload are read after the writes, because a write may take a long time.
        pods = self._cache.owned(key, PODS)
        # The report is also read if a replica is starting, because it contains the progress of the
        # download.
        may_start = any(each.is_running and not each.is_ready for each in replicas_of(pods))
        if has_reports and report is None and may_start:
            report = self._read_report(service)
        events = await self._pod_events.read(key, pods)
        seen = observe_service(
            service, self._owned(service, workload), pods, report, self._now(), events
        )
        is_starting = has_reports and seen.problem is not None and seen.problem.reason in STARTING
        router_view = RouterView(router, self._owned(service, router_deployment.CHILD), lacks_pools)
        view = LoadView(plan, report, self._scaler.live_autoscaler(service), decision)
        operators = self._choose_releases(key, service.status.operators or ())
        update = build_status(
            service,
            pin,
            seen,
            self._now(),
            failure,
            view,
            tuple(outcome.rewrites),
            adapters.status,
            wanted_pods,
            router_view,
            operators,
            gpu_price(service, self._settings.accelerator_classes),
            RouteView(HTTP_ROUTES in self._served, self._owned(service, http_route.CHILD)),
        )
        try:
            written = await self._report(body, update, service.spec)
        except ClusterError as error:
            error.requests += outcome.refused_requests
            raise
        self._releases.wrote(key, operators, self._now())
        _raise_to_retry(outcome)
        # The wording of a refusal may differ in each attempt, for example if several quotas are
        # exceeded. A status that changes only with the wording must not cause the next attempt.
        is_told_anew = written.is_changed and not outcome.refusals
        if outcome.wrote or is_told_anew or written.has_newer_spec:
            # The response to a write also contains changes that other clients made after the last
            # event. The cache has stored the response, so the events of these changes start no
            # pass. Another pass is therefore due now.
            return 0.0
        if plan.idle_replicas == 0 and live is not None and _is_settled(outcome, failure):
            self._settled[key] = body, live
        waits = (
            update.requeue_after_seconds,
            router.requeue_after_seconds,
            router_rollouts.LOOK_AGAIN_SECONDS if waits_for_turn else None,
            seen.look_again_seconds,
            outcome.look_again_seconds,
            written.look_again_seconds,
            LOOK_AT_START_SECONDS if is_starting else None,
            _look_at_load_seconds(plan, report) if is_watched else None,
            plan.floor.look_again_seconds(self._now()),
            RENEWAL.total_seconds() if len(operators) > 1 else None,
            None if failure is None else _retry_seconds(outcome.refusals),
        )
        return min((each for each in waits if each is not None), default=None)

    async def _start_at_once(
        self, service: LLMService, plan: ProviderPlan, report: LoadReport | None
    ) -> bool:
        """Set the first replicas of a service whose children need no change; return whether they
        were set.
        """
        try:
            return (await self._scaler.scale(service, plan, report))[0]
        except OperatorError:
            return False  # the rest of the pass repeats it, and reports the error

    def _choose_releases(self, key: Key, listed: tuple[str, ...]) -> tuple[str, ...]:
        """Return the releases that the status must list. If there are several, log this once per
        namespace.
        """
        operators = self._releases.choose(key, listed, self._now())
        for problem in say_shared(operators):
            if self._shared.get(key[0]) != operators:
                self._shared[key[0]] = operators
                logger.warning("%s", problem)
        return operators

    def _keep_router_pods(
        self,
        service: LLMService,
        live: Manifest | None,
        children: dict[Child, Manifest | OperatorError],
    ) -> bool:
        """Keep the router's present pods in `children` if they must not be replaced yet.

        Return whether the present pods are kept.
        """
        manifest = children.get(router_deployment.CHILD)
        if live is None or manifest is None or isinstance(manifest, OperatorError):
            return False
        if self._router_rollouts.may_replace_pods(service, live, manifest):
            return False
        children[router_deployment.CHILD] = keep_router_pods(manifest, live)
        return True

    async def _read_workload(
        self, service: LLMService, workload: Child
    ) -> tuple[Manifest | None, OperatorError | None]:
        """Return the live workload, or the error that prevented reading it.

        Both are None if there is no workload.
        """
        name = workload.name(service)
        try:
            return await self._children.live(workload.kind, service.namespace, name), None
        except OperatorError as error:
            return None, error

    async def _read_restored(
        self, service: LLMService, live: Manifest
    ) -> tuple[Restored | None, OperatorError | None]:
        """Return the pods to which the service was rolled back, or the error that prevented reading
        them.

        Both are None if no object contains these pods any more.
        """
        try:
            kept = await self._children.kept_revision(service)
        except OperatorError as error:
            return None, error
        return read_restored(service, live, kept), None

    async def _tell(self, body: Manifest, error: Exception) -> None:
        """Report in the status an error that ended a pass early."""
        update = build_status_of_failure(body, failure_of(error), self._now())
        try:
            await self._report(body, update)
        except OperatorError as untold:
            logger.warning("the status could not be written either: %s", untold)

    def _read_report(self, service: LLMService) -> LoadReport | None:
        return self._reports.read(service.namespace, service.name)

    def _owned(self, service: LLMService, child: Child) -> Manifest | None:
        live = self._cache.get(child.kind, service.namespace, child.name(service))
        return live if live is not None and is_owned_by(live, service) else None

    async def _report(
        self, body: Manifest, update: StatusUpdate, spec: LLMServiceSpec | None = None
    ) -> Written:
        """Write the status if it differs, then record the Events about its changes.

        `spec` is None if the pass could not read it.
        """
        metadata = body["metadata"]
        written = await self._statuses.write(body, update.status)
        if written.is_changed:
            logger.info("wrote the status")
        self._metrics.service_seen(metadata["namespace"], metadata["name"], update.status, spec)
        if written.look_again_seconds is None:
            for event in update.events:
                await self._recorder.record(body, event.type, event.reason, event.message)
        return written


def _raise_to_retry(outcome: Outcome) -> None:
    """Raise ToldAlready if a refused write may succeed when it is retried within seconds."""
    errors = (each.error for each in outcome.refusals)
    asked = max(
        (each.retry_after_seconds or 0.0 for each in errors if isinstance(each, ClusterError)),
        default=0.0,
    )
    for refusal in outcome.refusals:
        if refusal.may_end_soon:
            raise ToldAlready(
                str(refusal.error),
                retry_after_seconds=asked,
                requests=outcome.refused_requests,
            ) from refusal.error


def _is_settled(outcome: Outcome, failure: Failure | None) -> bool:
    """Return whether all children are as their manifests say."""
    return failure is None and not outcome.refusals and outcome.look_again_seconds is None


def _look_at_load_seconds(plan: ProviderPlan, report: LoadReport | None) -> float:
    """Return the seconds after which the load is looked at again.

    The report of a service that has just lost its replicas may still be about them.
    """
    is_current = report is None or report.demand_percent is None
    rests = plan.idle_replicas == 0 and is_current
    return LOOK_AT_IDLE_SECONDS if rests else scaler.REQUEUE_SECONDS


def _retry_seconds(refusals: Iterable[Refusal]) -> float:
    """Return the seconds after which refused writes are tried again, even without an event."""
    is_deleting = any(isinstance(each.error, StillDeleting) for each in refusals)
    return WAIT_FOR_COLLECTOR_SECONDS if is_deleting else REQUEUE_SECONDS
