"""Writes the number of replicas of a service, and the deletion costs of the replicas.

The decisions are made in `desired` and `scaling`.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.autoscaling import Autoscaling, ScalingMode, ScalingProvider
from llmservice_operator.api.load_report import LoadReport
from llmservice_operator.api.schedule import ScheduledReplicas
from llmservice_operator.api.spec import LLMService
from llmservice_operator.api.wake import Wake
from llmservice_operator.cluster import (
    Cache,
    Cluster,
    Key,
    ServedKinds,
    controller_of,
    is_same_version,
)
from llmservice_operator.convergence import ConvergenceGuard
from llmservice_operator.desired import is_owned_by, may_change
from llmservice_operator.desired.comparison import Difference
from llmservice_operator.desired.idle import idle_replicas
from llmservice_operator.desired.provider import ProviderPlan, plan_provider, total_load
from llmservice_operator.desired.schedule import Floor, floor_of
from llmservice_operator.errors import ClusterError, Contested, NotFound
from llmservice_operator.kinds import AUTOSCALERS, PODS, SCALED_OBJECTS, Kind
from llmservice_operator.scaling.cold_start import ColdStarts
from llmservice_operator.scaling.deletion_cost import (
    Occupancy,
    deletion_costs,
    is_removal_near,
)
from llmservice_operator.scaling.demand import REACTION_SECONDS
from llmservice_operator.scaling.direct import SYNC_SECONDS, Sync, sync
from llmservice_operator.scaling.hpa import Decision, HpaSpec
from llmservice_operator.scaling.recommend import behavior_for
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload import (
    build_hand_over,
    desired_replicas,
    is_handed_over,
    replicas_of,
    resumed_replicas,
    workload_of,
)

logger = logging.getLogger(__name__)

REQUEUE_SECONDS = SYNC_SECONDS
"""Period in seconds of the passes over a service whose load report is needed."""

OFFER_AGAIN_SECONDS = 3600.0
"""Time in seconds after which the HPA's tolerance is sent again to an API server that dropped it. A
newer version of Kubernetes stores it."""

MARK_AGAIN_SECONDS = 30.0
"""Shortest time in seconds between two updates of the deletion costs of a service's replicas."""


_Asked = tuple[tuple[ScheduledReplicas, ...], float, datetime | None]
"""Windows, seconds until replicas are ready, and begin of the last window for which they have
started."""


@dataclass(frozen=True)
class _KnownFloor:
    """The floor of a service that was computed last, and its arguments."""

    asked: _Asked
    since: datetime
    floor: Floor

    def answers(self, asked: _Asked, now: datetime) -> bool:
        """Return whether the floor is the same for these arguments."""
        return asked == self.asked and now >= self.since and self.floor.holds(now)


class Scaler:
    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        served: ServedKinds,
        settings: OperatorSettings,
        now: Callable[[], datetime],
        guard: ConvergenceGuard | None = None,
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._served = served
        self._settings = settings
        self._now = now
        self._guard = guard or ConvergenceGuard()
        self._syncs: dict[Key, Sync] = {}
        self._marked: dict[Key, datetime] = {}
        self._floors: dict[Key, _KnownFloor] = {}
        self._offered: dict[Key, datetime] = {}
        """Time of the last pass over each service that sent the HPA's tolerance, or of the first
        pass."""

    def forget(self, key: Key) -> None:
        """Drop the state of a service that no longer exists."""
        self._syncs.pop(key, None)
        self._marked.pop(key, None)
        self._floors.pop(key, None)
        self._offered.pop(key, None)

    def live_autoscaler(self, service: LLMService) -> Manifest | None:
        """Return the service's own HPA, if it has one."""
        return self._owned(AUTOSCALERS, service)

    def _owned(self, kind: Kind, service: LLMService) -> Manifest | None:
        live = self._cache.get(kind, service.namespace, names.autoscaler(service))
        return live if live is not None and is_owned_by(live, service) else None

    def _scaled_object_of_keda(self, service: LLMService) -> str | None:
        """Return the name of the ScaledObject with which KEDA scales the service; None without one.

        The operator needs no right on ScaledObjects for this, because the owner reference of KEDA's
        HPA contains the name. The operator watches that HPA, because KEDA copies the operator's
        labels to it.
        """
        for live in self._cache.owned((service.namespace, service.name), AUTOSCALERS):
            controller = controller_of(live)
            if controller is not None and controller["kind"] == SCALED_OBJECTS.kind:
                return str(controller["name"])
        return None

    def _is_known_to_keda(self, service: LLMService) -> bool:
        has_object = self._owned(SCALED_OBJECTS, service) is not None
        return has_object or self._scaled_object_of_keda(service) is not None

    def plan(
        self, service: LLMService, report: LoadReport | None, wake: Wake | None = None
    ) -> ProviderPlan:
        """Decide which autoscaler scales the service in this cluster.

        `wake` describes the requests that wait for an idle service.
        """
        unremovable = None
        if SCALED_OBJECTS in self._served.forbidden:
            unremovable = self._scaled_object_of_keda(service)
        key, now = (service.namespace, service.name), self._now()
        waited = now - self._offered.setdefault(key, now)
        offers_tolerance = waited >= timedelta(seconds=OFFER_AGAIN_SECONDS)
        if offers_tolerance:
            self._offered[key] = now
        floor = self._floor(service, report, now)
        return plan_provider(
            service,
            self._settings,
            report,
            self._owned(AUTOSCALERS, service) or self._owned(SCALED_OBJECTS, service),
            now,
            offers_tolerance=offers_tolerance,
            keda_is_installed=SCALED_OBJECTS in self._served,
            unremovable=unremovable,
            idle_replicas=self._idle_replicas(service, report, wake, floor.replicas),
            floor=floor,
        )

    def _idle_replicas(
        self, service: LLMService, report: LoadReport | None, wake: Wake | None, scheduled: int
    ) -> int | None:
        live = self._live_workload(service)
        # A service that is being resumed, or that gets autoscaling, has its replicas first.
        if live is None or not is_handed_over(service, live):
            return None
        pods = replicas_of(self._cache.owned((service.namespace, service.name), PODS))
        staying = {each.name for each in pods if not each.is_leaving}
        current, now = desired_replicas(live), self._now()
        return idle_replicas(service, current, staying, report, wake, now, scheduled)

    def _floor(self, service: LLMService, report: LoadReport | None, now: datetime) -> Floor:
        """Return the minimum number of replicas by the schedule."""
        key, autoscaling = (service.namespace, service.name), service.spec.autoscaling
        if (
            autoscaling is None
            or autoscaling.mode is not ScalingMode.ACTIVE
            or service.spec.suspend
            or not autoscaling.raising_windows
        ):
            self._floors.pop(key, None)
            return Floor()
        start, started = _longest_start_seconds(service, report), _started_window(service)
        asked = autoscaling.raising_windows, start + REACTION_SECONDS, started
        known = self._floors.get(key)
        if known is None or not known.answers(asked, now):
            windows, seconds, _ = asked
            known = _KnownFloor(asked, now, floor_of(windows, now, seconds, started))
            self._floors[key] = known
        return known.floor

    def _live_workload(self, service: LLMService) -> Manifest | None:
        workload = workload_of(service)
        live = self._cache.get(workload.kind, service.namespace, workload.name(service))
        return live if live is not None and is_owned_by(live, service) else None

    async def hand_over(self, service: LLMService, live: Manifest) -> bool:
        """Write the number of replicas before the operator's manifest omits it; return whether the
        workload was changed.

        Raises Contested if another client or a webhook repeatedly changes the number back.
        """
        return await self._set_replicas(service, live, resumed_replicas(service, live))

    async def scale(
        self, service: LLMService, plan: ProviderPlan, report: LoadReport | None
    ) -> tuple[bool, Decision | None]:
        """Set the number of replicas in direct mode, and start a service that has zero replicas.

        Returns whether anything was written, and the operator's own decision. The decision is None
        if the operator makes none. Raises Contested if another client or a webhook repeatedly
        changes the number back.
        """
        key, autoscaling = (service.namespace, service.name), service.spec.autoscaling
        live = self._live_workload(service)
        if autoscaling is None or service.spec.suspend or live is None:
            self._syncs.pop(key, None)
            return False, None
        current = desired_replicas(live)
        fewest = plan.autoscaler.fewest_running(autoscaling)
        wrote, decision = (
            await self._mark_emptiest(service, autoscaling, report, current, fewest),
            None,
        )
        is_direct = plan.autoscaler.provider is ScalingProvider.DIRECT
        desired = current
        if plan.idle_replicas is not None:
            self._syncs.pop(key, None)  # the last decision is about another load
            # While KEDA still knows the workload, it would start it again.
            desired = current if self._is_known_to_keda(service) else plan.idle_replicas
        elif is_direct or autoscaling.mode is ScalingMode.RECOMMEND:
            decision = self._decide(key, autoscaling, plan, report, current)
            desired = decision.replicas if is_direct else current
        else:
            self._syncs.pop(key, None)
        if current == 0 and plan.idle_replicas is None and autoscaling.mode is ScalingMode.ACTIVE:
            desired = fewest
        if desired != current:
            wrote |= await self._set_replicas(service, live, desired)
        return wrote, decision

    def _decide(
        self,
        key: Key,
        autoscaling: Autoscaling,
        plan: ProviderPlan,
        report: LoadReport | None,
        current: int,
    ) -> Decision:
        now, before = self._now(), self._syncs.get(key)
        if autoscaling.mode is ScalingMode.RECOMMEND and before is not None:
            # The number of replicas does not follow recommendations in this mode. The calculation
            # continues from the last recommendation as if it had been applied.
            current = before.decision.replicas
        spec = HpaSpec(
            behavior_for(autoscaling.max_replicas, plan.autoscaler.window_seconds),
            plan.autoscaler.fewest_running(autoscaling),
            autoscaling.max_replicas,
            autoscaling.target,
        )
        total = total_load(autoscaling, report, now)
        found = sync(before, spec, current, total, now.timestamp())
        if total is not None or before is not None:
            # No period starts before the load is known, so that the first known load has an
            # immediate effect.
            self._syncs[key] = found
        return found.decision

    async def _set_replicas(self, service: LLMService, live: Manifest, number: int) -> bool:
        if "deletionTimestamp" in live["metadata"] or not may_change(live, service):
            return False
        difference = Difference(("f:spec", "f:replicas"), number, desired_replicas(live))
        known_as = (service.namespace, service.name), "replicas"
        wanted, now = {"replicas": number}, self._now().timestamp()
        if self._guard.pause(known_as, wanted, [difference], now) is not None:
            raise Contested(
                f"spec.replicas of {live['kind']} {live['metadata']['name']} is "
                f"{desired_replicas(live)}, and the operator has written {number} several times. "
                "Another client scales it, or an admission webhook rewrites it."
            )
        change = build_hand_over(live, number)
        stored = await self._cluster.apply(change, manager=names.HANDOVER_FIELD_MANAGER)
        self._cache.observe(stored)
        self._guard.wrote(known_as, wanted, [difference], [], now)
        logger.info("set %d replicas, of %d", number, desired_replicas(live))
        return not is_same_version(stored, live)

    async def _mark_emptiest(
        self,
        service: LLMService,
        autoscaling: Autoscaling,
        report: LoadReport | None,
        current: int,
        fewest: int,
    ) -> bool:
        """Write the replicas' deletion costs if a replica may soon be removed; return whether a
        cost was written.

        Every pod of a replica gets the replica's cost, because the workload's controller may
        compare the cost of any of these pods.
        """
        key, now = (service.namespace, service.name), self._now()
        total = total_load(autoscaling, report, now)
        if report is None or total is None or autoscaling.mode is not ScalingMode.ACTIVE:
            return False
        if not is_removal_near(total / autoscaling.target, current, fewest):
            return False
        marked = self._marked.get(key)
        if marked is not None and (now - marked).total_seconds() < MARK_AGAIN_SECONDS:
            return False
        costs = deletion_costs(
            Occupancy(each.pod, each.running_requests, each.kv_cache_percent or 0.0)
            for each in report.replicas
            if each.is_ready and each.running_requests is not None
        )
        try:
            wrote = await self._write_costs(key, costs)
        except ClusterError as error:
            # Scaling continues, because the costs only decide which replica ends first.
            logger.warning("a deletion cost was not written: %s", error)
            self._marked[key] = self._now()
            return False
        if wrote:
            self._marked[key] = now
        return wrote

    async def _write_costs(self, key: Key, costs: Mapping[str, int]) -> bool:
        """Write the costs of replicas to their pods; return whether any cost was written.

        Raises ClusterError if a cost cannot be written.
        """
        wrote = False
        for replica in replicas_of(self._cache.owned(key, PODS)):
            cost = costs.get(replica.name)
            if cost is None:
                continue
            for pod in replica.pods:
                annotations = pod["metadata"].get("annotations") or {}
                if annotations.get(names.DELETION_COST_ANNOTATION) != str(cost):
                    wrote |= await self._mark(pod, cost)
        return wrote

    async def _mark(self, pod: Manifest, cost: int) -> bool:
        metadata = pod["metadata"]
        change = {"metadata": {"annotations": {names.DELETION_COST_ANNOTATION: str(cost)}}}
        try:
            stored = await self._cluster.write(
                "PATCH",
                PODS.path(metadata["namespace"], metadata["name"]),
                change,
                content_type="application/merge-patch+json",
            )
        except NotFound:
            return False  # the pod was deleted in the meantime
        self._cache.observe(stored)
        return not is_same_version(stored, pod)


def _longest_start_seconds(service: LLMService, report: LoadReport | None) -> float:
    """Return the seconds that replicas need until they are ready. Without a report, they follow
    from the stored calibration.
    """
    if report is not None and report.longest_start_seconds is not None:
        return report.longest_start_seconds
    status = service.status.autoscaling
    stored = None if status is None else status.calibration
    if stored is None:
        return ColdStarts().longest_start
    return ColdStarts(stored.cold_start_seconds, stored.node_wait_seconds).longest_start


def _started_window(service: LLMService) -> datetime | None:
    """Return the begin of the last window for which replicas have already started."""
    status = service.status.autoscaling
    if status is None or status.started_window is None:
        return None
    return datetime.fromisoformat(status.started_window)
