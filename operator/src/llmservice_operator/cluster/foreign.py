"""Ensures that every object from the cluster has the form that the API promises.

Any client may have written an object, and the code that uses the object does not check its form.
So each object is checked once, when it enters the process. The models in this module declare the
fields whose type the operator relies on.
"""

import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.errors import Unreadable
from llmservice_operator.kinds import (
    AUTOSCALERS,
    DEPLOYMENTS,
    HTTP_ROUTES,
    PODS,
    SCALED_OBJECTS,
    Kind,
    kind_of,
)


def _check_moment(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("has no time zone")
    return text


Moment = Annotated[str, AfterValidator(_check_moment)]
_Text = Annotated[str, Field(min_length=1)]


class _Shape(BaseModel):
    """Form of one part of an object. A field without a default is required."""

    model_config = ConfigDict(
        strict=True, extra="ignore", alias_generator=to_camel, hide_input_in_errors=True
    )


class _Owner(_Shape):
    api_version: _Text
    kind: _Text
    name: _Text
    uid: str = ""
    controller: bool = False


class _Metadata(_Shape):
    name: _Text
    namespace: _Text
    uid: _Text
    resource_version: Annotated[str, Field(pattern="^[0-9]{1,20}$")]
    generation: Annotated[int, Field(ge=0)] = 0
    creation_timestamp: Moment = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: list[_Owner] = []


class _Object(_Shape):
    metadata: _Metadata


class _Plain(_Object):
    spec: dict[str, Any] = {}
    status: dict[str, Any] = {}


class _Condition(_Shape):
    type: str
    status: str = ""
    reason: str = ""
    message: str = ""
    last_transition_time: Moment = ""


class _Container(_Shape):
    name: str
    image: str = ""


class _Probe(_Shape):
    period_seconds: int = 0
    failure_threshold: int = 0


class _Resources(_Shape):
    limits: dict[str, str | int] = {}
    requests: dict[str, str | int] = {}


class _PodContainer(_Container):
    resources: _Resources = _Resources()
    startup_probe: _Probe | None = None


class _MountedClaim(_Shape):
    claim_name: str


class _Volume(_Shape):
    persistent_volume_claim: _MountedClaim | None = None


class _Waiting(_Shape):
    reason: str = ""
    message: str = ""


class _Running(_Shape):
    started_at: Moment = ""


class _Terminated(_Waiting):
    exit_code: int = 0
    started_at: Moment = ""
    finished_at: Moment = ""


class _ContainerState(_Shape):
    waiting: _Waiting | None = None
    running: _Running | None = None
    terminated: _Terminated | None = None


class _ContainerStatus(_Container):
    state: _ContainerState | None = None
    last_state: _ContainerState | None = None
    restart_count: int = 0
    started: bool = False
    ready: bool = False


class _PodSpec(_Shape):
    containers: list[_PodContainer] = []
    volumes: list[_Volume] = []
    node_name: str = ""


class _PodStatus(_Shape):
    phase: str = ""
    reason: str = ""
    message: str = ""
    start_time: Moment = ""
    pod_ip: Annotated[str, Field(alias="podIP")] = ""
    conditions: list[_Condition] = []
    container_statuses: list[_ContainerStatus] = []
    init_container_statuses: list[_ContainerStatus] = []


class _PodMetadata(_Metadata):
    creation_timestamp: Moment
    deletion_timestamp: Moment = ""


class _Pod(_Object):
    metadata: _PodMetadata
    spec: _PodSpec = _PodSpec()
    status: _PodStatus = _PodStatus()


class _TemplateSpec(_Shape):
    containers: list[_Container] = []


class _Template(_Shape):
    metadata: dict[str, Any] = {}
    spec: _TemplateSpec = _TemplateSpec()


class _DeploymentSpec(_Shape):
    replicas: int = 1
    paused: bool = False
    template: _Template = _Template()


class _DeploymentStatus(_Shape):
    observed_generation: int = 0
    replicas: int = 0
    updated_replicas: int = 0
    ready_replicas: int = 0
    conditions: list[_Condition] = []


class _Deployment(_Object):
    spec: _DeploymentSpec = _DeploymentSpec()
    status: _DeploymentStatus = _DeploymentStatus()


class _ScaleDown(_Shape):
    stabilization_window_seconds: int = 0


class _Behavior(_Shape):
    scale_up: dict[str, Any] = {}
    scale_down: _ScaleDown = _ScaleDown()


class _HpaSpec(_Shape):
    behavior: _Behavior = _Behavior()


class _HpaStatus(_Shape):
    desired_replicas: int = 0
    conditions: list[_Condition] = []


class _Hpa(_Object):
    spec: _HpaSpec = _HpaSpec()
    status: _HpaStatus = _HpaStatus()


class _AdvancedHpa(_Shape):
    horizontal_pod_autoscaler_config: _HpaSpec = _HpaSpec()


class _ScaledObjectSpec(_Shape):
    advanced: _AdvancedHpa = _AdvancedHpa()


class _ScaledObject(_Object):
    spec: _ScaledObjectSpec = _ScaledObjectSpec()
    status: dict[str, Any] = {}


class _Parent(_Shape):
    name: str
    namespace: str = ""
    kind: str = ""
    section_name: str = ""


class _RouteCondition(_Condition):
    observed_generation: int = 0


class _RouteParent(_Shape):
    parent_ref: _Parent
    conditions: list[_RouteCondition] = []


class _RouteStatus(_Shape):
    parents: list[_RouteParent] = []


class _HttpRoute(_Object):
    spec: dict[str, Any] = {}
    status: _RouteStatus = _RouteStatus()


_SHAPES: dict[Kind, type[_Object]] = {
    AUTOSCALERS: _Hpa,
    DEPLOYMENTS: _Deployment,
    HTTP_ROUTES: _HttpRoute,
    PODS: _Pod,
    SCALED_OBJECTS: _ScaledObject,
}
"""Kinds whose spec or status the operator reads field by field. The spec of an LLMService is
checked where it is parsed."""


def understood(manifest: Any) -> Manifest:
    """Check that every part has the type that the API promises, and return the object without
    nulls.

    The field ownership of other managers is left out, because it is half of a manifest's bytes and
    unused. Raises Unreadable if a part has another type.
    """
    if not isinstance(manifest, Mapping) or not isinstance(manifest.get("metadata"), Mapping):
        raise Unreadable("an object without metadata")
    try:
        kind = kind_of(manifest)
    except (KeyError, TypeError) as error:
        raise Unreadable("an object of an unknown kind") from error
    metadata = dict(manifest["metadata"])
    entries = metadata.pop("managedFields", None)
    ours = list(filter(_is_ours, entries if isinstance(entries, list) else ()))
    found: Manifest = _without_nulls({**manifest, "metadata": metadata})
    if ours:
        # The field ownership is added only here, after the recursion. Any client can use the
        # operator's manager name, and write a record that is nested too deep for the recursion.
        found["metadata"]["managedFields"] = ours
    try:
        _SHAPES.get(kind, _Plain).model_validate(found)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        path = ".".join(map(str, problem["loc"]))
        name = " ".join(identity(manifest))
        raise Unreadable(f"{name}: {path}: {problem['msg']}") from error
    return found


def identity(manifest: Any) -> tuple[str, str, str]:
    """Return kind, namespace and name of any object as texts, whatever its content."""
    metadata = manifest.get("metadata") if isinstance(manifest, Mapping) else None
    head = manifest if isinstance(manifest, Mapping) else {}
    body = metadata if isinstance(metadata, Mapping) else {}
    return str(head.get("kind")), str(body.get("namespace")), str(body.get("name"))


def _is_ours(entry: Any) -> bool:
    return (
        isinstance(entry, Mapping)
        and entry.get("manager") == names.FIELD_MANAGER
        and _is_moment(entry.get("time"))
    )


def _is_moment(value: Any) -> bool:
    """Return whether a time is absent or readable."""
    try:
        return value is None or bool(_check_moment(value))
    except (TypeError, ValueError):
        return False


def _without_nulls(value: Any) -> Any:
    """Return the value without nulls, which the API treats as absent fields.

    Equal texts of all objects share one copy. Repeated texts would be a third of the memory of the
    objects, because the names of a service are in all of its objects.
    """
    if isinstance(value, dict):
        return {
            sys.intern(key): _without_nulls(each) for key, each in value.items() if each is not None
        }
    if isinstance(value, list):
        return [_without_nulls(each) for each in value if each is not None]
    return sys.intern(value) if isinstance(value, str) else value
