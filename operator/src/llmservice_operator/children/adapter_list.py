"""The ConfigMap with the list of LoRA adapters, which the replicas follow while they run.

The list is not part of the pod template, so a change of the list replaces no pod.
"""

from __future__ import annotations

from typing import Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.children.child import Child, Context
from llmservice_operator.desired.adapters import first_list
from llmservice_operator.kinds import CONFIG_MAPS


def _body(context: Context) -> Manifest | None:
    if not context.service.spec.model.takes_adapters:
        return None
    adapters = context.adapters or first_list(context.service)
    return {"data": {names.ADAPTERS_FILE: adapters.render()}}


CHILD: Final = Child(kind=CONFIG_MAPS, body=_body, name=names.adapters, is_pruned=True)
