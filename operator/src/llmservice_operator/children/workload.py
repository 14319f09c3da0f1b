"""The workload, which runs the model servers: its kind and builder are named here alone."""

from collections.abc import Mapping
from typing import Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.children.child import Child, Context
from llmservice_operator.desired.deployment import build_deployment_spec
from llmservice_operator.desired.pin import pin_annotations
from llmservice_operator.kinds import DEPLOYMENTS


def _body(context: Context) -> Manifest:
    return {
        "spec": build_deployment_spec(
            context.service, context.settings, context.pin, context.replicas
        )
    }


def _annotations(context: Context) -> Mapping[str, str]:
    return {**pin_annotations(context.pin), **context.replicas.annotations}


CHILD: Final = Child(kind=DEPLOYMENTS, body=_body, name=names.deployment, annotations=_annotations)
