"""spec.model.cache: storage for downloaded weights and compiled kernels."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from llmservice_operator.api.fields import (
    ATOMIC,
    Fields,
    Quantity,
    Rule,
    at_least,
)
from llmservice_operator.api.references import ObjectName

_ON_A_CLAIM: Final = "PersistentVolumeClaim"


class Cache(Fields):
    type: Literal["Ephemeral", "PersistentVolumeClaim"]
    """Storage of the cache. Ephemeral: the node's disk; every new pod downloads the model.
    PersistentVolumeClaim: a claim that the replicas share; the first replica downloads the model
    while the other replicas wait."""
    claim_name: ObjectName | None = None
    """Existing claim in this namespace, as an alternative to size. The replicas need write access
    to the claim. Several LLMServices may share it."""
    size: (
        Annotated[
            Quantity,
            at_least("1Gi", "must be at least 1Gi: no model fits into less"),
        ]
        | None
    ) = None
    """Size of the cache, such as 200Gi. With PersistentVolumeClaim, the operator creates a claim
    NAME-cache of this size. The claim can grow if its storage class allows it, and never shrinks.
    With Ephemeral, the size is the limit of the cache (1Ti if size is unset) and the default
    request for ephemeral-storage."""
    storage_class_name: ObjectName | None = None
    """Storage class of the claim that the operator creates. Default: the cluster's default
    class."""
    access_modes: Annotated[
        tuple[Literal["ReadWriteOnce", "ReadWriteMany"], ...],
        Field(max_length=2, json_schema_extra=ATOMIC),
    ] = ()
    """Access modes of the claim that the operator creates. ReadWriteMany: pods on all nodes can
    mount the claim. ReadWriteOnce: only pods on one node at a time can mount it, so all replicas
    must run on the same node. Default: ReadWriteMany."""
    retention_policy: Literal["Retain", "Delete"] | None = None
    """Deletion policy of the claim that the operator creates. When the LLMService is deleted,
    Retain keeps the claim for a later LLMService of the same name, and Delete deletes it. Default:
    Retain."""
    compile_cache: bool | None = None
    """Whether the claim also stores compiled kernels, so that a new pod starts without compiling.
    Kernels are code: share a claim only between services that trust each other. Default: true on a
    claim that the operator creates, false on an existing one."""

    rules: ClassVar = (
        Rule(
            "type",
            cel=f"self.type == '{_ON_A_CLAIM}' || !(has(self.claimName) || "
            "has(self.storageClassName) || (has(self.accessModes) && size(self.accessModes) > 0) "
            "|| has(self.retentionPolicy) || has(self.compileCache))",
            message=f"must be {_ON_A_CLAIM} when a field other than size is set: set that type, or "
            "remove the other fields",
            holds=lambda self: self.is_on_a_claim or not self.claim_fields - {"size"},
        ),
        Rule(
            "size",
            cel=f"self.type != '{_ON_A_CLAIM}' || has(self.size) != has(self.claimName)",
            message="is an alternative to claimName: set exactly one of the two",
            holds=lambda self: (
                not self.is_on_a_claim or (self.size is None) != (self.claim_name is None)
            ),
        ),
        Rule(
            "claimName",
            cel="!has(self.claimName) || !(has(self.storageClassName) || "
            "(has(self.accessModes) && size(self.accessModes) > 0) || has(self.retentionPolicy))",
            message="names an existing claim: remove storageClassName, accessModes and "
            "retentionPolicy, or set size instead, so that the operator creates a claim",
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
        """Size of the claim that the operator creates; None when the operator creates no claim."""
        return self.size if self.is_on_a_claim else None

    @property
    def node_size(self) -> str | None:
        """Limit of the cache on a node's disk; None for a cache on a claim, and when the spec sets
        no limit.
        """
        return None if self.is_on_a_claim else self.size

    @property
    def claim_fields(self) -> set[str]:
        """Names of the fields that have a value, except `type`."""
        fields = self.model_dump(exclude={"type"}, exclude_none=True)
        return {name for name, value in fields.items() if value != ()}

    @property
    def keeps_kernels(self) -> bool:
        """Whether the claim also stores compiled kernels."""
        if self.compile_cache is not None:
            return self.compile_cache
        return self.claim_size is not None
