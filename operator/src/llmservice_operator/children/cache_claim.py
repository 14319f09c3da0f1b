"""The PersistentVolumeClaim of the model cache, if the spec requests that the operator creates one.

Services share only weights on a claim. The Python modules of a model and compiled kernels are code,
so they are stored in the pod's own cache. Kernels may also be stored on the claim, in a separate
folder for each service.
"""

from __future__ import annotations

from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children.child import Child, Context
from llmservice_operator.kinds import CLAIMS


def _outlives_service(service: LLMService) -> bool:
    """Return whether the claim is retained when the service is deleted.

    A new service of the same name then uses the claim again.
    """
    cache = service.spec.model.cache
    return cache is not None and cache.retention_policy != "Delete"


def _body(context: Context) -> Manifest | None:
    cache = context.service.spec.model.cache
    if cache is None or cache.claim_size is None:
        return None
    spec: dict[str, Any] = {
        "accessModes": list(cache.access_modes) or ["ReadWriteMany"],
        "resources": {"requests": {"storage": cache.claim_size}},
    }
    if cache.storage_class_name is not None:
        spec["storageClassName"] = cache.storage_class_name
    return {"spec": spec}


CHILD: Final = Child(
    kind=CLAIMS,
    body=_body,
    name=names.cache_claim,
    outlives_service=_outlives_service,
)
