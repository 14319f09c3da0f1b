"""One pass over one LLMService: load, guard, build, apply what differs, observe, report.

A pass looks at nothing but the present state, so it is right after a restart, a missed event or a
crash in the middle of the last pass; and a second pass in a row writes nothing.
"""

import logging
import uuid
from collections.abc import Callable, Iterable
from datetime import datetime

from llmservice_operator import names, scaler
from llmservice_operator.api import Manifest
from llmservice_operator.api.load_report import LoadReport
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import CHILDREN, Child, Context, build_served, workload_child
from llmservice_operator.cluster import (
    Cache,
    Cluster,
    EventRecorder,
    Key,
    ServedKinds,
    controller_of,
    is_service,
)
from llmservice_operator.desired import is_owned_by, is_up_to_date
from llmservice_operator.errors import (
    ClusterError,
    Forbidden,
    InvalidSpec,
    NameTaken,
    OperatorError,
    Rejected,
)
from llmservice_operator.kinds import (
    LLMSERVICES,
    PODS,
    Kind,
)
from llmservice_operator.load_report_client import LoadReportClient
from llmservice_operator.load_status import LoadView
from llmservice_operator.refusals import failure_of
from llmservice_operator.scaler import Scaler
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.status import (
    Failure,
    StatusUpdate,
    build_status,
    build_status_of_unreadable,
)
from llmservice_operator.telemetry import CONTROLLER, Metrics, log_fields
from llmservice_operator.workload import (
    ReplicaCount,
    first_replicas,
    is_handed_over,
    observe_service,
    replicas_of,
    resolve_pin,
    resolve_replicas,
)

logger = logging.getLogger(__name__)

REQUEUE_SECONDS = 60.0
"""Delay after a failure that can end without a watched event: for example, a name becomes free."""
LOOK_AT_START_SECONDS = 10.0
"""Delay while a model downloads, because no event of the cluster reports the progress."""
STARTING = (Reason.LOADING_MODEL, Reason.DOWNLOADING_MODEL)
"""Reasons of a replica whose model server is still starting."""
WAIT_FOR_COLLECTOR_SECONDS = 2.0
"""Delay while the garbage collector removes the children of a deleted service of the same name."""


class NotNow(OperatorError):
    """The pass must end without a report, because its observations are about to change."""


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
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._served = served
        self._recorder = recorder
        self._metrics = metrics
        self._settings = settings
        self._now = now
        self._reports = reports
        self._scaler = Scaler(cluster, cache, served, settings, now)

    async def reconcile(self, key: Key) -> float | None:
        """Bring one service closer to its spec; return when to look again, in seconds, if at all.

        Raises ClusterError when the cluster prevented the pass, which a retry may repair.
        """
        body = self._cache.service(key)
        if body is None:
            self._metrics.service_gone(*key)
            self._scaler.forget(key)
            return None
        metadata = body["metadata"]
        if "deletionTimestamp" in metadata:
            # The garbage collector is taking the children. A child made now would be left behind.
            return None
        with log_fields(
            controller=CONTROLLER,
            namespace=key[0],
            name=key[1],
            generation=metadata["generation"],
            reconcile_id=uuid.uuid4().hex[:8],
        ):
            try:
                return await self._pass(body)
            except NotNow as reason:
                logger.info("%s", reason)
                return WAIT_FOR_COLLECTOR_SECONDS

    async def _pass(self, body: Manifest) -> float | None:
        try:
            service = LLMService.parse(body)
        except InvalidSpec as error:
            self._metrics.terminal_error()
            wrote = await self._report(body, build_status_of_unreadable(body, error, self._now()))
            return 0.0 if wrote else None
        workload = workload_child(service)
        live = await self._live(workload.kind, service.namespace, workload.name(service))
        is_watched = service.spec.autoscaling is not None or service.spec.objectives.is_limited
        report = self._read_report(service) if is_watched else None
        plan, decision = self._scaler.plan(service, report), None
        wrote, failure, pin = False, None, None
        try:
            pin = resolve_pin(service, live, self._settings)
            replicas = resolve_replicas(service, live)
            context = Context.of(service, self._settings, pin, replicas, plan.autoscaler)
            children = build_served(context, self._served)
            # Remove unwanted children first. Two autoscalers would conflict, and KEDA's webhook
            # refuses the second.
            wrote |= await self._prune(service, children)
            wrote |= await self._keep_replicas(service, children[workload], live, replicas)
            for child, manifest in children.items():
                wrote |= await self._apply(service, child, manifest)
            scaled, decision = await self._scaler.scale(service, plan, report)
            wrote |= scaled
        except (InvalidSpec, NameTaken, Rejected, Forbidden) as error:
            failure = failure_of(error)
            self._metrics.terminal_error()
            logger.warning("%s: %s", failure.reason, failure.message)
        if failure is None and service.spec.autoscaling is None and plan.left_over:
            # With autoscaling, the condition AutoscalingActive reports this.
            failure = Failure(Reason.KEDA_MISSING, plan.left_over)
        pods = self._cache.owned((service.namespace, service.name), PODS)
        has_reports = self._settings.metrics_server_url is not None
        # The report contains the download progress of a replica that starts.
        may_start = any(each.is_running and not each.is_ready for each in replicas_of(pods))
        if has_reports and report is None and may_start:
            report = self._read_report(service)
        seen = observe_service(service, self._owned(service, workload), pods, report)
        is_starting = has_reports and seen.problem is not None and seen.problem.reason in STARTING
        view = LoadView(plan, report, self._scaler.live_autoscaler(service), decision)
        update = build_status(service, pin, seen, self._now(), failure, view)
        wrote |= await self._report(body, update)
        if wrote:
            # The answer to a write also contains the changes of others since the last event. The
            # cache has already taken them from the answer, so their events start no pass; this pass
            # requests one.
            return 0.0
        waits = (
            update.requeue_after_seconds,
            LOOK_AT_START_SECONDS if is_starting else None,
            scaler.REQUEUE_SECONDS if is_watched else None,
            None if failure is None else REQUEUE_SECONDS,
        )
        return min((each for each in waits if each is not None), default=None)

    def _read_report(self, service: LLMService) -> LoadReport | None:
        return self._reports.read(service.namespace, service.name)

    async def _keep_replicas(
        self,
        service: LLMService,
        manifest: Manifest,
        live: Manifest | None,
        replicas: ReplicaCount,
    ) -> bool:
        """Keep the workload's number of replicas when the owner of that number changes.

        Completes the manifest, and returns whether anything was written.
        """
        if live is None:
            manifest["spec"]["replicas"] = first_replicas(service)
        elif replicas.is_kept_now:
            # Send a number that was just read only if it has not changed since.
            manifest["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
        elif not is_handed_over(service, live):
            return await self._scaler.hand_over(service, live)
        return False

    async def _apply(self, service: LLMService, child: Child, manifest: Manifest) -> bool:
        """Apply one child unless it is as desired already; return whether it was written."""
        kind, name = child.kind, manifest["metadata"]["name"]
        live = await self._live(kind, service.namespace, name)
        if live is None:
            await self._check_still_wanted(service)
            self._cache.observe(await self._create(child, manifest))
            self._metrics.applied(kind.kind, "created")
            logger.info("created %s %s", kind.kind, name)
            return True
        _check_owner(live, service)
        if "deletionTimestamp" in live["metadata"]:
            # The object's last event starts the next pass.
            return False
        if is_up_to_date(live, manifest):
            self._metrics.applied(kind.kind, "noop")
            return False
        uid = live["metadata"]["uid"]
        if controller_of(live) is None:
            await self._check_still_wanted(service)
        self._cache.observe(await self._cluster.apply(manifest, uid))
        self._metrics.applied(kind.kind, "changed")
        if service.status.observed_generation == service.generation:
            self._metrics.drift_corrected(kind.kind)
        logger.info("changed %s %s", kind.kind, name)
        return True

    async def _create(self, child: Child, manifest: Manifest) -> Manifest:
        try:
            return await self._cluster.apply(manifest)
        except ClusterError as error:
            substitute = child.substitute(manifest, error.message)
            if substitute is None:
                raise
            return await self._cluster.apply(substitute)

    async def _prune(self, service: LLMService, wanted: Iterable[Child]) -> bool:
        """Delete the children that an earlier spec needed and this one does not; return whether
        there were any.
        """
        key = service.namespace, service.name
        kept = {(child.kind, child.name(service)) for child in wanted}
        removed = False
        pruned = (child.kind for child in CHILDREN if child.is_pruned)
        for kind in (kind for kind in pruned if kind in self._served):
            for live in self._cache.owned(key, kind):
                name = live["metadata"]["name"]
                is_going = "deletionTimestamp" in live["metadata"]
                if (kind, name) in kept or is_going or not is_owned_by(live, service):
                    continue
                await self._cluster.delete(live)
                self._cache.drop(live)
                self._metrics.applied(kind.kind, "deleted")
                logger.info("deleted %s %s", kind.kind, name)
                removed = True
        return removed

    async def _check_still_wanted(self, service: LLMService) -> None:
        """Ask the API server whether the service still exists before a child is made, because the
        watch may be behind.

        A child created for a deleted service would have no owner and never be removed.
        """
        live = await self._cluster.read(LLMSERVICES, service.namespace, service.name)
        if live is None or live["metadata"]["uid"] != service.uid:
            raise NotNow("the service was deleted; waiting for the watch to say so")
        if "deletionTimestamp" in live["metadata"]:
            raise NotNow("the service is being deleted; nothing is made for it")

    async def _live(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        # An object without our labels, which is not watched, may hold the name.
        cached = self._cache.get(kind, namespace, name)
        return cached or await self._cluster.read(kind, namespace, name)

    def _owned(self, service: LLMService, child: Child) -> Manifest | None:
        live = self._cache.get(child.kind, service.namespace, child.name(service))
        return live if live is not None and is_owned_by(live, service) else None

    async def _report(self, body: Manifest, update: StatusUpdate) -> bool:
        """Write the status if it differs, then the Events of the changes; return whether the status
        was written.
        """
        metadata = body["metadata"]
        changed = not is_up_to_date(body, {"status": update.status}, "status")
        if changed:
            stored = await self._cluster.apply_status(
                {
                    "apiVersion": body["apiVersion"],
                    "kind": body["kind"],
                    # The uid keeps the write from a new service of the same name.
                    "metadata": {key: metadata[key] for key in ("name", "namespace", "uid")},
                    "status": update.status,
                }
            )
            self._cache.observe(stored)
            logger.info("wrote the status")
        self._metrics.service_seen(metadata["namespace"], metadata["name"], update.status)
        for event in update.events:
            await self._recorder.record(body, event.type, event.reason, event.message)
        return changed


def _check_owner(live: Manifest, service: LLMService) -> None:
    """Return if the operator may write the object; raise NameTaken if another owner has it.

    It may write an object without any controller that has our labels: the service was deleted with
    `--cascade=orphan`, or a user removed the reference.
    """
    if is_owned_by(live, service):
        return
    metadata, controller = live["metadata"], controller_of(live)
    if controller is None:
        labels = metadata.get("labels") or {}
        if names.labels(service).items() <= labels.items():
            return
    elif is_service(controller) and controller["name"] == service.name:
        raise NotNow(f"{live['kind']} {metadata['name']} of a deleted service is being collected")
    owner = f"{controller['kind']} {controller['name']}" if controller else "somebody else"
    raise NameTaken(f"{live['kind']} {metadata['name']} belongs to {owner} and is left alone.")
