"""Writes the children of one service separately, so that a refused child does not delay another.

The manifests come from `children`. The module returns the failed writes, and the status reports
them.
"""

import asyncio
import functools
import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from llmservice_operator.api import Manifest
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import CHILDREN, Child, workload_child
from llmservice_operator.cluster import (
    Cache,
    Cluster,
    Key,
    ServedKinds,
    controller_of,
    is_same_version,
    is_service,
    refresh,
    understood,
)
from llmservice_operator.convergence import WHOLE_OBJECT, ConvergenceGuard, Name, Pause
from llmservice_operator.desired import may_change, was_made_by_operator
from llmservice_operator.desired.comparison import Difference, find_differences
from llmservice_operator.desired.ownership import say_contest, say_foreign_cause, say_rewrite
from llmservice_operator.errors import (
    ClusterError,
    Conflict,
    Contested,
    NameTaken,
    OperatorError,
    Rejected,
    StillDeleting,
)
from llmservice_operator.kinds import AUTOSCALERS, LLMSERVICES, SCALED_OBJECTS, Kind
from llmservice_operator.outcome import Outcome, ServiceGone
from llmservice_operator.refusals import failure_of
from llmservice_operator.scaler import Scaler
from llmservice_operator.telemetry import Metrics
from llmservice_operator.workload import (
    ReplicaCount,
    first_replicas,
    is_handed_over,
    workload_of,
)

logger = logging.getLogger(__name__)

BUDGET_SECONDS = 20.0
"""Time in seconds from the start of the writes of a pass, after which no further write starts. One
write may take 15 s, and the status must still be written within the 60 s of a pass."""
WANTED_SECONDS = 5.0
"""Time in seconds for which the API server's confirmation that a service exists is valid. One
confirmation is enough for all children of one pass, even on a busy API server."""
_AUTOSCALING = frozenset({AUTOSCALERS, SCALED_OBJECTS})
"""Kinds of autoscalers. Two of them for one service would compete for the number of replicas."""


class ChildWriter:
    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        served: ServedKinds,
        metrics: Metrics,
        scaler: Scaler,
        guard: ConvergenceGuard,
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._served = served
        self._metrics = metrics
        self._scaler = scaler
        self._guard = guard
        self._slow: dict[Key, tuple[Kind, ...]] = {}
        """For each service, the kinds whose last write got no response. The most recently tried
        kind is last."""
        self._wanted: dict[Key, tuple[str, float]] = {}
        """For each service whose existence the API server has confirmed, its uid and the time until
        which the confirmation is valid, on the event loop's clock."""

    async def live(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """Return the live object of this name, even if the service does not own it; None if there
        is none.

        Raises OperatorError if the object cannot be read.
        """
        # Objects without the operator's labels are not in the cache.
        cached = self._cache.get(kind, namespace, name)
        return cached or await self._read(kind, namespace, name)

    async def kept_revision(self, service: LLMService) -> Manifest | None:
        """Return the object with the pod template to which the service was rolled back.

        Returns None without a rollback, or if the object no longer exists. Raises OperatorError if
        the object cannot be read.
        """
        rollback = service.status.rollback
        kept = rollback and workload_of(service).kept_revision(service, rollback.revision)
        # Such objects are not watched, because they are read only after a rollback.
        return await self._read(kept[0], service.namespace, kept[1]) if kept else None

    async def write(
        self,
        service: LLMService,
        built: Mapping[Child, Manifest | OperatorError],
        replicas: ReplicaCount,
        workload: Manifest | None,
    ) -> Outcome:
        """Apply the children in `built`, and delete the children that the spec no longer needs.

        A child with an error in place of its manifest stays unchanged. `workload` is the live
        workload as this pass has read it. Raises ServiceGone if the service has been deleted.
        """
        key = service.namespace, service.name
        slow, outcome = self._slow.get(key, ()), Outcome(self._now() + BUDGET_SECONDS)
        # Unwanted children are deleted first, because two autoscalers would compete, and KEDA's
        # webhook refuses the second one.
        unremoved = await self._prune(service, built, outcome, put_off=slow)
        # Kinds whose last write got no response come last, so that they do not delay the others.
        ranks = {kind: rank for rank, kind in enumerate(slow)}
        for child, manifest in sorted(built.items(), key=lambda each: ranks.get(each[0].kind, -1)):
            what = f"{child.kind.kind} {child.name(service)}"
            if isinstance(manifest, OperatorError):
                outcome.refuse(what, manifest)
            elif child.kind in _AUTOSCALING and unremoved & _AUTOSCALING:
                continue  # the other autoscaler still exists
            else:
                step = functools.partial(
                    self._write, service, child, manifest, replicas, workload, outcome
                )
                await outcome.attempt(child.kind, what, step, self._now())
        if unremoved & set(slow):
            await self._prune(service, built, outcome)
        untried = [kind for kind in slow if kind not in outcome.tried]
        self._slow[key] = (*untried, *outcome.unanswered)
        return outcome

    def forget(self, key: Key) -> None:
        """Drop the state of a service that no longer exists."""
        self._slow.pop(key, None)
        self._wanted.pop(key, None)

    async def _write(
        self,
        service: LLMService,
        child: Child,
        manifest: Manifest,
        replicas: ReplicaCount,
        workload: Manifest | None,
        outcome: Outcome,
    ) -> bool:
        where = child.kind, service.namespace, manifest["metadata"]["name"]
        live = self._cache.get(*where)
        if live is None and child is workload_child(service):
            live = workload
        try:
            return await self._write_once(service, child, manifest, live, replicas, outcome)
        except Conflict:
            if live is None:
                # Objects without the operator's labels are not in the cache.
                again = await self._read(*where)
            elif replicas.is_kept_now:
                raise  # the number of replicas that was read is outdated
            else:
                await refresh(self._cluster, self._cache, *where)
                again = self._cache.get(*where)
            if again is live:
                raise  # the same write would fail again
            return await self._write_once(service, child, manifest, again, replicas, outcome)

    async def _write_once(
        self,
        service: LLMService,
        child: Child,
        manifest: Manifest,
        live: Manifest | None,
        replicas: ReplicaCount,
        outcome: Outcome,
    ) -> bool:
        kind, name = child.kind, manifest["metadata"]["name"]
        wrote = False
        if child is workload_child(service):
            if live is None:
                manifest = _with(manifest, "spec", replicas=first_replicas(service))
            elif replicas.is_kept_now:
                # The number of replicas was just read. The resource version makes the API server
                # refuse the write if the workload has changed in the meantime.
                version = live["metadata"]["resourceVersion"]
                manifest = _with(manifest, "metadata", resourceVersion=version)
            elif not is_handed_over(service, live):
                # From now on, another client sets the number of replicas. The handover keeps the
                # present number when the operator stops sending it.
                wrote = await self._scaler.hand_over(service, live)
                live = await self.live(kind, service.namespace, name)
        if live is None:
            return await self._create(service, child, manifest, outcome)
        return await self._change(service, child, manifest, live, outcome) or wrote

    async def _create(
        self, service: LLMService, child: Child, manifest: Manifest, outcome: Outcome
    ) -> bool:
        kind, name = child.kind, manifest["metadata"]["name"]
        known_as = _name(service, kind, name)
        said = "The operator creates it, and somebody deletes it, again and again."
        self._check_uncontested(known_as, manifest, outcome, said)
        await self._check_still_wanted(service)
        try:
            stored = await self._cluster.create(manifest)
        except ClusterError as error:
            self._guard.was_refused(known_as, self._now())
            substitute = child.substitute(manifest, error.message)
            if substitute is None:
                raise
            stored = await self._cluster.create(substitute)
            manifest = substitute
        self._cache.observe(stored)
        left = list(find_differences(stored, manifest))
        version = stored["metadata"]["resourceVersion"]
        self._guard.wrote(known_as, manifest, [WHOLE_OBJECT], left, self._now(), version)
        self._metrics.applied(kind.kind, "created")
        logger.info("created %s %s", kind.kind, name)
        return True

    async def _change(
        self,
        service: LLMService,
        child: Child,
        manifest: Manifest,
        live: Manifest,
        outcome: Outcome,
    ) -> bool:
        """Apply one child if it differs from its manifest; return whether it was changed."""
        kind, name = child.kind, manifest["metadata"]["name"]
        _check_owner(live, service, child)
        if "deletionTimestamp" in live["metadata"]:
            raise StillDeleting(f"{kind.kind} {name} is being deleted and will be made anew.")
        known_as, version = _name(service, kind, name), live["metadata"]["resourceVersion"]
        is_settled = self._guard.is_settled(known_as, manifest, version)
        differences = [] if is_settled else list(find_differences(live, manifest))
        if not differences:
            if not is_settled:
                self._guard.settle(known_as, manifest, version)
            self._metrics.applied(kind.kind, "noop")
            return False
        pause = self._guard.pause(known_as, manifest, differences, self._now())
        if pause is not None:
            self._metrics.applied(kind.kind, "paused")
            await self._tell(pause, kind, live, differences, outcome)
            return False
        if controller_of(live) is None:
            await self._check_still_wanted(service)
        try:
            stored = await self._cluster.apply(manifest, live["metadata"]["uid"])
        except ClusterError as error:
            self._guard.was_refused(known_as, self._now())
            substitute = child.substitute(manifest, error.message)
            if substitute is None:
                if isinstance(error, Rejected):
                    owner = await self._owner_of_the_cause(kind, live, error)
                    raise owner or error from error
                raise
            stored = await self._cluster.apply(substitute, live["metadata"]["uid"])
            manifest = substitute
        self._cache.observe(stored)
        left = list(find_differences(stored, manifest))
        version = stored["metadata"]["resourceVersion"]
        self._guard.wrote(known_as, manifest, differences, left, self._now(), version)
        if is_same_version(stored, live):
            # The write changed nothing. The guard has recorded the values that still differ, so
            # the next pass does not send the same manifest.
            self._metrics.applied(kind.kind, "noop")
            return False
        self._metrics.applied(kind.kind, "changed")
        if service.status.observed_generation == service.generation:
            self._metrics.drift_corrected(kind.kind)
        logger.info("changed %s %s: %s", kind.kind, name, differences[0].path)
        return True

    async def _tell(
        self,
        pause: Pause,
        kind: Kind,
        live: Manifest,
        differences: list[Difference],
        outcome: Outcome,
    ) -> None:
        """Record the pause in the writes of an object.

        If a webhook rewrites the object, also record a sentence about that. Otherwise, raise
        Contested.
        """
        outcome.wait(pause.seconds)
        what = f"{kind.kind} {live['metadata']['name']}"
        if pause.is_rewritten:
            outcome.rewrites.append(say_rewrite(what, differences))
            return
        raise Contested(say_contest(differences, await self._with_owners(kind, live)))

    async def _prune(
        self,
        service: LLMService,
        wanted: Iterable[Child],
        outcome: Outcome,
        put_off: Collection[Kind] = (),
    ) -> frozenset[Kind]:
        """Delete the children that the spec no longer needs; return the kinds of those that remain.

        Children of the kinds in `put_off` are not deleted yet, and so remain.
        """
        kept, unremoved = {*wanted}, set[Kind]()
        for child in CHILDREN:
            kind = child.kind
            if not child.is_pruned or child in kept or kind not in self._served:
                continue
            live = self._cache.get(kind, service.namespace, child.name(service))
            if live is None or "deletionTimestamp" in live["metadata"]:
                continue
            if not may_change(live, service):
                continue
            what = f"{kind.kind} {child.name(service)}, which is not wanted any more"
            step = functools.partial(self._delete, service, kind, live, outcome)
            if kind in put_off or not await outcome.attempt(kind, what, step, self._now()):
                unremoved.add(kind)
        return frozenset(unremoved)

    async def _delete(
        self, service: LLMService, kind: Kind, live: Manifest, outcome: Outcome
    ) -> bool:
        name = live["metadata"]["name"]
        known_as = _name(service, kind, name)
        said = "The operator deletes it, and somebody makes it anew, again and again."
        self._check_uncontested(known_as, {}, outcome, said)
        await self._cluster.delete(live)
        self._cache.drop(live)
        self._guard.wrote(known_as, {}, [WHOLE_OBJECT], [], self._now())
        self._metrics.applied(kind.kind, "deleted")
        logger.info("deleted %s %s", kind.kind, name)
        return True

    def _check_uncontested(
        self, known_as: Name, manifest: Manifest, outcome: Outcome, said: str
    ) -> None:
        """Raise Contested if the object must not be created or deleted now."""
        pause = self._guard.pause(known_as, manifest, [WHOLE_OBJECT], self._now())
        if pause is not None:
            outcome.wait(pause.seconds)
            raise Contested(said)

    async def _check_still_wanted(self, service: LLMService) -> None:
        """Check with the API server that the service still exists, because the watch may lag.

        A child that is created for a deleted service might never be removed. Raises ServiceGone if
        the service was deleted or is being deleted.
        """
        key, begun = (service.namespace, service.name), self._now()
        uid, until = self._wanted.get(key, ("", 0.0))
        if uid == service.uid and begun < until:
            return
        live = await self._read(LLMSERVICES, *key)
        if live is None or live["metadata"]["uid"] != service.uid:
            raise ServiceGone("the service was deleted; waiting for the watch to say so")
        if "deletionTimestamp" in live["metadata"]:
            raise ServiceGone("the service is being deleted; nothing is made for it")
        self._wanted[key] = service.uid, begun + WANTED_SECONDS

    async def _owner_of_the_cause(
        self, kind: Kind, live: Manifest, error: Rejected
    ) -> Contested | None:
        """Return an error with the name of the client that owns the rejected field.

        Returns None if the rejection has a known cause, or if no other client is known to own the
        field.
        """
        if failure_of(error).reason is not Reason.INVALID_SPEC:
            return None  # the cause is known
        said = say_foreign_cause(await self._with_owners(kind, live), error.message)
        return None if said is None else Contested(said)

    async def _with_owners(self, kind: Kind, live: Manifest) -> Manifest:
        """Return the object with the managedFields of all clients. The cache keeps only those of
        the operator.
        """
        metadata = live["metadata"]
        return await self._cluster.read(kind, metadata["namespace"], metadata["name"]) or live

    async def _read(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        live = await self._cluster.read(kind, namespace, name)
        return None if live is None else understood(live)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _with(manifest: Manifest, part: str, **fields: Any) -> Manifest:
    """Return the manifest with these fields added to one of its parts."""
    return {**manifest, part: {**manifest[part], **fields}}


def _name(service: LLMService, kind: Kind, name: str) -> Name:
    return (service.namespace, service.name), (kind, name)


def _check_owner(live: Manifest, service: LLMService, child: Child) -> None:
    """Check that the operator may write the object.

    Raises StillDeleting if the object belongs to a deleted service of the same name, and NameTaken
    if it belongs to somebody else.
    """
    # An object that outlives its service has no owner, and a client may have removed its labels.
    is_kept = child.outlives_service(service) and was_made_by_operator(live)
    if is_kept or may_change(live, service):
        return
    metadata, controller = live["metadata"], controller_of(live)
    if controller and is_service(controller) and controller["name"] == service.name:
        raise StillDeleting(f"{live['kind']} {metadata['name']} belongs to a deleted service.")
    owner = f"{controller['kind']} {controller['name']}" if controller else "somebody else"
    raise NameTaken(f"{live['kind']} {metadata['name']} belongs to {owner} and is left alone.")
