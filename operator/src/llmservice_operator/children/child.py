"""The declaration of a child, and the code that all children share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired import Autoscaler, check_fits_a_node, with_class, with_defaults
from llmservice_operator.desired.adapters import AdapterList
from llmservice_operator.desired.manifest import build_metadata
from llmservice_operator.desired.router import NO_ROUTER, RouterDecision
from llmservice_operator.kinds import Kind
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload import EnginePin, ReplicaCount, resolve_replicas


@dataclass(frozen=True)
class Context:
    """The input from which the children of one service are built."""

    service: LLMService
    """The service, including the chart's defaults and the settings of its accelerator class. If the
    pods of the service cannot be built, the settings of the class are left out."""
    settings: OperatorSettings
    pin: EnginePin
    replicas: ReplicaCount
    autoscaler: Autoscaler
    adapters: AdapterList | None = None
    """The list of LoRA adapters; None means the list of a service without replicas."""
    router: RouterDecision = NO_ROUTER

    @classmethod
    def of(
        cls,
        service: LLMService,
        settings: OperatorSettings,
        pin: EnginePin,
        replicas: ReplicaCount | None = None,
        autoscaler: Autoscaler | None = None,
        adapters: AdapterList | None = None,
        router: RouterDecision | None = None,
    ) -> Self:
        """Return the context. By default, `replicas` and `autoscaler` are those of a new service,
        and `router` is the state that a new service reaches.

        A new service gets the autoscaler that its spec requests. Raises InvalidSpec if the
        accelerator class cannot be applied, or if no node has enough GPUs for a replica.
        """
        check_fits_a_node(service, settings.accelerator_classes, settings.gpus_per_node)
        return cls(
            with_defaults(
                with_class(service, settings.accelerator_classes), settings.server_defaults
            ),
            settings,
            pin,
            replicas or resolve_replicas(service, None),
            autoscaler or Autoscaler.of_spec(service),
            adapters,
            router or RouterDecision.settled(service, settings),
        )


@dataclass(frozen=True)
class Grant:
    """A value of the chart that decides whether the operator gets the rights on a kind."""

    chart_value: str
    """Path below the chart's values, such as `keda.enabled`."""
    is_given: Callable[[OperatorSettings], bool]
    """Function that returns whether the value is set, according to the operator's settings."""


def _never(_: LLMService) -> bool:
    return False


def _no_annotations(_: Context) -> Mapping[str, str]:
    return {}


def _no_substitute(_: Manifest, __: str) -> Manifest | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Child:
    """Declaration of an object. A service has at most one object of each declaration. Several
    declarations may be of one kind, if the names of their objects differ.
    """

    kind: Kind
    body: Callable[[Context], Manifest | None]
    """Function that returns the manifest without apiVersion, kind and metadata; None if the service
    needs no such object. It raises InvalidSpec when the object cannot be built as the spec
    requires."""
    name: Callable[[LLMService], str] = names.child
    annotations: Callable[[Context], Mapping[str, str]] = _no_annotations
    is_pruned: bool = False
    """Whether the operator deletes the object when the service no longer needs it."""
    outlives_service: Callable[[LLMService], bool] = _never
    """Function that returns whether the object stays when the service is deleted. An object that
    stays has no owner."""
    is_optional_api: bool = False
    """Whether a cluster may lack the kind. The operator then works without such objects."""
    grant: Grant | None = None
    """Chart value on which the rights on the kind depend; None if they are always granted."""
    substitute: Callable[[Manifest, str], Manifest | None] = _no_substitute
    """Function that takes a manifest that the API server has refused, and the message of the
    refusal. It returns a replacement for the manifest; None if there is none. It raises InvalidSpec
    if the user must change something."""

    def __post_init__(self) -> None:
        if self.kind.label_selector != names.CHILD_SELECTOR:
            raise ValueError(f"{self.kind.kind} must be watched by the labels of children")

    def build(self, context: Context) -> Manifest | None:
        """Return the manifest of the object; None if the service needs no such object.

        The service owns the object if the object does not outlive the service. Raises InvalidSpec
        when the object cannot be built as the spec requires.
        """
        body = self.body(context)
        return None if body is None else self.complete(context, body)

    def complete(self, context: Context, body: Manifest) -> Manifest:
        """Return the manifest with this body, the labels of a child, and the owner."""
        service = context.service
        metadata = build_metadata(service, self.name(service), self.annotations(context))
        if self.outlives_service(service):
            metadata.pop("ownerReferences", None)
            del metadata["labels"][names.INSTANCE_LABEL]
        return {
            "apiVersion": self.kind.api_version,
            "kind": self.kind.kind,
            "metadata": metadata,
            **body,
        }

    @property
    def verbs(self) -> tuple[str, ...]:
        """Verbs that the operator uses on the object. They are the same for all objects, except
        that only a pruned object has `delete`.
        """
        return (*_KEPT, "delete") if self.is_pruned else _KEPT


_KEPT: Final = ("get", "list", "watch", "create", "patch")
"""Verbs on an object that is not pruned. Server-side apply needs patch, and also create if
the object does not exist yet. The garbage collector deletes children with their owner."""
