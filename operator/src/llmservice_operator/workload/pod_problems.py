"""Finds, in the status of a pod, the problem that keeps the pod from being ready, and says how to
solve it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.load_report import ReplicaLoad
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService
from llmservice_operator.api.termination_message import TerminationMessage
from llmservice_operator.workload.replica import condition, is_ready, server_of

_QUOTED_LIMIT: Final = 2000
"""Maximum length, in characters, of another program's text in a message. The limit ensures that
the hint after the text is not cut off."""

_DOWNLOAD_STEP_PERCENT: Final = 5

_IMAGE_REASONS: Final = frozenset(
    {
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImageInspectError",
        "ImagePullBackOff",
        "InvalidImageName",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
_START_REASONS: Final = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)
_NEVER_RAN: Final = frozenset({"ContainerCannotRun", "StartError"})
"""Reasons that the kubelet reports between its attempts to start a container, if the last attempt
failed."""
_SECRET_IS_MISSING: Final = re.compile(r'secret "[^"]+" not found|couldn\'t find key \S+ in Secret')
_DOWNLOADING: Final = ("downloading", "waiting_for_cache")
"""Phases in which a model is being downloaded, by this server or by another one that shares its
cache."""
_DEVICES_ARE_SHORT: Final = re.compile(
    "Insufficient ([a-z0-9.-]+/[A-Za-z0-9._-]*[A-Za-z0-9]|hugepages-[0-9]+[KMGT]i)"
)
"""Message of the scheduler about missing devices or huge pages. The name of a device contains a
domain."""
_CLAIMS_ARE_SHORT: Final = "cannot allocate all claims"
"""Message of the scheduler about missing devices of resource claims."""
_CONFIG_MAP_IS_MISSING: Final = re.compile(
    r'configmap "[^"]+" not found|couldn\'t find key \S+ in ConfigMap'
)
_CLAIM: Final = "persistentVolumeClaim"
_CLAIM_IS_MISSING: Final = re.compile(
    "persistentvolumeclaim|PersistentVolumeClaim|persistent vol|binding volumes"
)
_CLAIM_OF_ONE_POD: Final = "ReadWriteOncePod access mode already in-use"
"""Message of the scheduler about a claim that another pod uses."""
_GATED: Final = "SchedulingGated"


@dataclass(frozen=True)
class Problem:
    """A problem that keeps a replica from being ready, and how to solve it."""

    reason: Reason
    message: str


def with_hint(reason: Reason, said: str) -> Problem:
    """Return a problem whose message ends with the hint of its reason."""
    return Problem(reason, f"{said} {reason.hint}")


_SERVED_BEFORE: Final = with_hint(
    Reason.SERVER_NOT_READY,
    "The model server was ready and does not answer its readiness probe now: it hangs, or it is "
    "being replaced.",
)


def pod_problems(service: LLMService, pod: Manifest, told: ReplicaLoad | None) -> Iterator[Problem]:
    """Yield at most one problem that keeps the pod from being ready.

    `told` is the load report about the replica whose server is in the pod, if there is one.
    """
    scheduled = condition(pod, "PodScheduled")
    server = server_of(pod.get("status", {}).get("containerStatuses", ()))
    waiting = server.get("state", {}).get("waiting", {})
    if is_ready(pod):
        return
    if scheduled.get("status") == "False":
        said = quoted(scheduled.get("message"))
        if scheduled.get("reason") == _GATED:
            said = (
                f"Scheduling gates hold the pod back: {said} Look at the controller that set them,"
            )
            yield Problem(Reason.UNSCHEDULABLE, f"{said} such as a queue for jobs.")
        else:
            yield _scheduling_problem(service, pod, said)
    elif waiting.get("reason") in _IMAGE_REASONS:
        said = quoted(waiting.get("message"))
        yield with_hint(
            Reason.IMAGE_PULL_ERROR,
            f"The node cannot pull the image {server.get('image', '')}: {said}",
        )
    elif waiting.get("reason") in _START_REASONS:
        yield start_problem(quoted(waiting.get("message")))
    elif (beside := _problem_beside(pod, server)) is not None:
        yield beside
    else:
        yield from _running_problems(pod, server, told)


def _scheduling_problem(service: LLMService, pod: Manifest, said: str) -> Problem:
    spec, short = service.spec, dict.fromkeys(_DEVICES_ARE_SHORT.findall(said))
    devices, reason = None, Reason.WAITING_FOR_DEVICE
    if short:
        limits = server_of(pod.get("spec", {}).get("containers", ())).get("resources", {})
        amounts = limits.get("limits", {})
        devices = " and ".join(f"{amounts.get(each, spec.gpus)} {each}" for each in short)
        if short.keys() - spec.resources.extended.keys() and spec.gpus:
            reason = Reason.WAITING_FOR_GPU
    elif _CLAIMS_ARE_SHORT in said:
        devices = "the devices of its resource claims"
        if spec.accelerator.resource_claim_template_name is not None:
            reason = Reason.WAITING_FOR_GPU
    if devices is not None:
        said = f"A replica needs {devices} on one node, and no node has them free: {said}"
        return with_hint(reason, said)
    if _CLAIM_OF_ONE_POD in said:
        return with_hint(Reason.VOLUME_IN_USE, f"Another pod uses a volume of the pod: {said}")
    volumes = pod.get("spec", {}).get("volumes", ())
    claims = [each[_CLAIM]["claimName"] for each in volumes if _CLAIM in each]
    if claims and _CLAIM_IS_MISSING.search(said):
        named = " or ".join(sorted(claims))
        return with_hint(Reason.VOLUME_PENDING, f"The claim {named} cannot be used: {said}")
    return with_hint(Reason.UNSCHEDULABLE, f"No node can take a replica: {said}")


def is_missing_object(said: str) -> bool:
    """Return whether the message says that a Secret or a ConfigMap, or a key of one, is missing."""
    return bool(_SECRET_IS_MISSING.search(said) or _CONFIG_MAP_IS_MISSING.search(said))


def start_problem(said: str) -> Problem:
    """Return the problem of a pod whose start has failed with this message of the node."""
    if _SECRET_IS_MISSING.search(said):
        return with_hint(
            Reason.SECRET_MISSING, f"A Secret that the spec names cannot be read: {said}"
        )
    if _CONFIG_MAP_IS_MISSING.search(said):
        said = f"A ConfigMap that the spec names cannot be read: {said}"
        return with_hint(Reason.CONFIG_MAP_MISSING, said)
    return with_hint(Reason.CONTAINER_START_ERROR, f"The node cannot start the container: {said}")


def _running_problems(
    pod: Manifest, server: Mapping[str, Any], told: ReplicaLoad | None
) -> Iterator[Problem]:
    """Yield the problem of the server's container. Yield nothing before its first start."""
    running = server.get("state", {}).get("running")
    ended = server.get("state", {}).get("terminated") or server.get("lastState", {}).get(
        "terminated"
    )
    restarts = server.get("restartCount", 0)
    if running is not None and server.get("started"):
        # The startup probe succeeds about a second before the first readiness probe.
        yield _SERVED_BEFORE if _was_ready_since(pod, running) else _loading(restarts, told)
    elif ended is not None:
        problem = _crash_problem(pod, ended, restarts)
        # One restart is no loop, because the reboot of a node ends containers too.
        is_retrying = running is not None and restarts < 2
        if is_retrying and problem.reason.is_transient:
            problem = _loading(restarts, told)
        yield problem
    elif running is not None:
        yield _loading(restarts, told)


def _problem_beside(pod: Manifest, server: Mapping[str, Any]) -> Problem | None:
    """Return the problem of a pod if its model server is not the cause.

    None if the model server may be the cause.
    """
    status = pod.get("status", {})
    if (server.get("state") or {}).get("running") is None:
        failed = [each for each in status.get("initContainerStatuses") or () if _has_failed(each)]
        return _sidecar_problem("The init container", failed) if failed else None
    if not server.get("ready"):
        return None
    others = [
        each
        for each in (
            *(status.get("containerStatuses") or ()),
            *(it for it in status.get("initContainerStatuses") or () if it.get("started")),
        )
        if not each.get("ready") and each.get("name") != names.SERVER_CONTAINER
    ]
    if others:
        return _sidecar_problem("The model server is ready, but the container", others)
    ready = condition(pod, "Ready")
    if ready.get("reason") == "ReadinessGatesNotReady":
        said = f"The model server is ready, but a readiness gate is not: {ready.get('message')}."
        return Problem(Reason.SERVER_NOT_READY, said)
    node = pod.get("spec", {}).get("nodeName") or "of the pod"
    # The kubelet's last report says that all containers are ready. So it was the control plane that
    # set the pod to not ready, because the kubelet has stopped reporting.
    return with_hint(Reason.NODE_LOST, f"The node {node} does not report any more.")


def _has_failed(container: Mapping[str, Any]) -> bool:
    """Return whether an init container keeps the other containers of its pod from starting."""
    state = container.get("state") or {}
    ended = state.get("terminated") or {}
    reason = (state.get("waiting") or {}).get("reason")
    return bool(
        ended.get("exitCode") or reason in (_IMAGE_REASONS | _START_REASONS | {"CrashLoopBackOff"})
    )


def _sidecar_problem(what: str, containers: list[Mapping[str, Any]]) -> Problem:
    named = ", ".join(sorted(str(each.get("name")) for each in containers))
    states = (each.get("state") or {} for each in containers)
    words = [
        f"{part.get('reason') or 'waits'} {part.get('message') or ''}".strip()
        for state in states
        for part in (state.get("waiting"), state.get("terminated"))
        if part
    ]
    why = f": {quoted('; '.join(words))}" if words else "."
    return with_hint(Reason.SIDECAR_NOT_READY, f"{what} {named} is not{why}")


def _was_ready_since(pod: Manifest, state: Mapping[str, Any]) -> bool:
    """Return whether a pod that is not ready was ready at some time since a container started.

    In that case, its Ready condition changed after that start. Otherwise, the condition last
    changed when the pod was created, or when a previous container stopped being ready.
    """
    changed = condition(pod, "Ready").get("lastTransitionTime") or ""
    return bool(changed > state.get("startedAt", ""))


def _loading(restarts: int, told: ReplicaLoad | None) -> Problem:
    again = f" The container was restarted {restarts} time(s)." if restarts else ""
    if told is not None and told.phase in _DOWNLOADING and told.total_bytes:
        total = told.total_bytes
        # The reported size grows in steps, because every new message costs a write of the status.
        percent = 100 * (told.downloaded_bytes or 0) // total
        percent -= percent % _DOWNLOAD_STEP_PERCENT
        done = f"{_size(total * percent // 100)} of {_size(total)} ({percent} %)"
        return with_hint(
            Reason.DOWNLOADING_MODEL, f"The model server downloads the model: {done}.{again}"
        )
    return with_hint(Reason.LOADING_MODEL, f"The model server downloads or loads the model.{again}")


def _size(number: int) -> str:
    """Return a number of bytes as text, in GB or in MB."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _crash_problem(pod: Manifest, ended: Mapping[str, Any], restarts: int) -> Problem:
    said = str(ended.get("message", "")).strip()
    parsed = TerminationMessage.parse(said)
    problem = None if parsed is None else _last_words(parsed, restarts)
    if problem is not None:
        return problem
    message = parsed.message if parsed else said
    if ended.get("reason") in _NEVER_RAN:
        return start_problem(quoted(message))
    if ended.get("reason") == "OOMKilled":
        return with_hint(Reason.OUT_OF_MEMORY, "The container was killed at its memory limit.")
    probe = _startup_probe(pod)
    period = probe.get("periodSeconds", 0)
    budget = period * probe.get("failureThreshold", 0)
    # The first probe is sent within the first period, so the last probe may come up to one
    # period before the budget ends.
    if budget and _seconds(ended) >= budget - period and not _was_ready_since(pod, ended):
        return with_hint(
            Reason.STARTUP_TIMEOUT,
            f"The model was not loaded within {budget} seconds. The container was restarted "
            f"{restarts} time(s).",
        )
    words = quoted(message) if message else "It left no message."
    return with_hint(
        Reason.CRASH_LOOP,
        f"The model server ended with exit code {ended.get('exitCode')} and was restarted "
        f"{restarts} time(s). {words}",
    )


def _startup_probe(pod: Manifest) -> Mapping[str, Any]:
    probe: Mapping[str, Any] = server_of(pod.get("spec", {}).get("containers", ())).get(
        "startupProbe", {}
    )
    return probe


def _seconds(ended: Mapping[str, Any]) -> float:
    """Return the time in seconds that a container ran. 0 if the kubelet did not report it."""
    try:
        started, finished = (
            datetime.fromisoformat(ended[moment]) for moment in ("startedAt", "finishedAt")
        )
    except (KeyError, TypeError, ValueError):
        return 0.0
    return (finished - started).total_seconds()


def _last_words(said: TerminationMessage, restarts: int) -> Problem | None:
    """Return the problem that a model server reported.

    None if this operator does not know its reason.
    """
    reason, message = said.known_reason, _beginning(said.message)
    if reason is None:
        return None
    if reason.is_transient:
        message = f"{message} The container was restarted {restarts} time(s)."
    return Problem(reason, message) if said.has_advice else with_hint(reason, message)


def quoted(text: object) -> str:
    """Return another program's text as sentences.

    Only the end of a long text is kept, because the end of a log is more informative than its
    beginning.
    """
    words = _one_line(text)
    if len(words) > _QUOTED_LIMIT:
        words = f"... {words[-_QUOTED_LIMIT:]}"
    return _sentence(words)


def _beginning(text: str) -> str:
    """Return a model server's text as sentences.

    Only the beginning of a long text is kept, because it names the cause.
    """
    words = _one_line(text)
    if len(words) > _QUOTED_LIMIT:
        return f"{words[:_QUOTED_LIMIT]} ..."
    return _sentence(words)


def _one_line(text: object) -> str:
    return " ".join(str(text or "").split()) or "no reason given"


def _sentence(words: str) -> str:
    return words if words.endswith((".", "!", "?")) else f"{words}."
