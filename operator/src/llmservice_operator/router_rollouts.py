"""Limits how many routers replace their pods at a time.

A new version of the operator changes the pods of all routers. Without a limit, an error in the new
router would reach every service at the same time.
"""

import asyncio

from llmservice_operator.api import Manifest
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children.router_deployment import PROGRESS_DEADLINE_SECONDS
from llmservice_operator.cluster import Key
from llmservice_operator.desired.comparison import find_differences
from llmservice_operator.workload.deployment import DEPLOYMENT

ROLLOUTS_AT_A_TIME = 4
LOOK_AGAIN_SECONDS = 10.0
"""Delay in seconds until a router that waits for its turn is looked at again."""


class RouterRollouts:
    def __init__(self) -> None:
        self._turns: dict[Key, float] = {}
        """For each service whose router replaces its pods, the time on the event loop's clock until
        which the service counts towards the limit."""

    def forget(self, key: Key) -> None:
        """Drop the state of a service that no longer exists."""
        self._turns.pop(key, None)

    def may_replace_pods(self, service: LLMService, live: Manifest, manifest: Manifest) -> bool:
        """Return whether the router's Deployment may get the pods of the manifest now.

        A change of the spec never waits, because it changes only one router.
        """
        key, now = (service.namespace, service.name), asyncio.get_running_loop().time()
        self._turns = {each: until for each, until in self._turns.items() if until > now}
        until = now + PROGRESS_DEADLINE_SECONDS
        changes = find_differences(live, manifest)
        if not any(each.path.startswith("spec.template") for each in changes):
            if _is_settled(live):
                self._turns.pop(key, None)
            else:
                self._turns.setdefault(key, until)
            return True
        if service.status.observed_generation != service.generation:
            return True
        if key not in self._turns and len(self._turns) >= ROLLOUTS_AT_A_TIME:
            return False
        self._turns.setdefault(key, until)
        return True


def _is_settled(live: Manifest) -> bool:
    """Return whether the router's rollout is complete, or has not progressed for a long time."""
    state = DEPLOYMENT.state_of(live)
    is_complete = state.replicas == state.updated == state.ready == state.desired
    return state.is_current and (is_complete or state.is_stuck)
