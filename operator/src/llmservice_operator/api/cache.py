"""spec.model.cache: where downloaded weights and compiled kernels are kept."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from llmservice_operator.api.fields import (
    Fields,
    Quantity,
    Rule,
    ValueRule,
    quantity_value,
)
from llmservice_operator.api.references import ObjectName

_ON_A_CLAIM: Final = "PersistentVolumeClaim"
_GIBIBYTE: Final = 1024**3


class Cache(Fields):
    type: Literal["Ephemeral", "PersistentVolumeClaim"]
    """Ephemeral: every replica downloads into its own node's disk, and again when it is replaced.
    PersistentVolumeClaim: the replicas share a claim, which the first of them fills while the
    others wait."""
    claim_name: ObjectName | None = None
    """A claim of this namespace that exists; several LLMServices may share one. The replicas must
    be able to write to it. Instead of size."""
    size: (
        Annotated[
            Quantity,
            ValueRule(
                cel="!isQuantity(string(self)) || "
                "quantity(string(self)).compareTo(quantity('1Gi')) >= 0",
                message="must be at least 1Gi: less holds no model",
                holds=lambda text: quantity_value(text) >= _GIBIBYTE,
            ),
        ]
        | None
    ) = None
    """Size of the cache, such as 200Gi. PersistentVolumeClaim: of a claim that the operator makes,
    NAME-cache, instead of claimName; it can grow where the storage class can, and never shrinks.
    Ephemeral: disk that a node must have free for each replica, unless resources say how much
    ephemeral-storage, and the most that its cache may take. Default of the latter: whatever the
    node has, up to 1Ti."""
    storage_class_name: ObjectName | None = None
    """Storage class of that claim. Default: the cluster's."""
    access_modes: Annotated[
        tuple[Literal["ReadWriteOnce", "ReadWriteMany"], ...],
        Field(max_length=2, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """How that claim can be mounted: ReadWriteMany by pods on all nodes; ReadWriteOnce by those on
    one node only, where then every replica must run. Default: ReadWriteMany."""
    retention_policy: Literal["Retain", "Delete"] | None = None
    """What becomes of that claim when the LLMService is deleted: Retain leaves it, for the next one
    of this name, Delete deletes it with the service. Default: Retain."""
    compile_cache: bool | None = None
    """Whether compiled kernels are kept on the claim too, so that a new pod need not compile. They
    are code: share a claim only between services that trust each other. Default: true on a claim
    that the operator makes, false on one of claimName."""

    rules: ClassVar = (
        Rule(
            "type",
            cel=f"self.type == '{_ON_A_CLAIM}' || !(has(self.claimName) || "
            "has(self.storageClassName) || (has(self.accessModes) && size(self.accessModes) > 0) "
            "|| has(self.retentionPolicy) || has(self.compileCache))",
            message=f"must be {_ON_A_CLAIM} for the fields beside size to mean something: write "
            "that or remove them",
            holds=lambda self: self.is_on_a_claim or not self.claim_fields - {"size"},
        ),
        Rule(
            "size",
            cel=f"self.type != '{_ON_A_CLAIM}' || has(self.size) != has(self.claimName)",
            message="must be set, or claimName instead: keep one of the two",
            holds=lambda self: (
                not self.is_on_a_claim or (self.size is None) != (self.claim_name is None)
            ),
        ),
        Rule(
            "claimName",
            cel="!has(self.claimName) || !(has(self.storageClassName) || "
            "(has(self.accessModes) && size(self.accessModes) > 0) || has(self.retentionPolicy))",
            message="names a claim that exists: remove storageClassName, accessModes and "
            "retentionPolicy, or set size instead to have one made",
            holds=lambda self: (
                self.claim_name is None
                or not self.claim_fields - {"claim_name", "size", "compile_cache"}
            ),
        ),
    )

    @property
    def is_on_a_claim(self) -> bool:
        return self.type == _ON_A_CLAIM

    @property
    def claim_size(self) -> str | None:
        """Size of the claim that the operator is to make, if it is."""
        return self.size if self.is_on_a_claim else None

    @property
    def node_size(self) -> str | None:
        """What the cache may take of a node's disk, if the spec says it."""
        return None if self.is_on_a_claim else self.size

    @property
    def claim_fields(self) -> set[str]:
        """Names of the fields that are set and say something of a claim."""
        fields = self.model_dump(exclude={"type"}, exclude_none=True)
        return {name for name, value in fields.items() if value != ()}

    @property
    def keeps_kernels(self) -> bool:
        """Whether compiled kernels are kept on the claim."""
        if self.compile_cache is not None:
            return self.compile_cache
        return self.claim_size is not None
