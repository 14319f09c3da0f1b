"""Implements the policies of other autoscalers from their documented rules.

Each policy computes its averages from metrics that are at most one second old, which is fresher
than in any cluster. Policies have the default settings of their releases. Policies whose name
contains `tuned` have settings for each workload, computed from the true capacity, which no user
knows.
"""

import math
from collections import deque

import numpy as np

from llmservice_operator.scaling.hpa import Behavior, ChangePolicy, PolicyType, ScalingRules
from scaling.choices import Routing
from scaling.dynamo import Dynamo, DynamoSla
from scaling.engine import BUSY_SECONDS
from scaling.llm_d import Held, TokenAware, WvaOne, WvaTwo
from scaling.parts import Average, HpaOn, Newest, clamp, concurrency, waiting
from scaling.simulation import Policy, Simulation
from scaling.truth import Truth


class DutyCycle(HpaOn):
    """HPA on the GPU's duty cycle (NVML utilization), type Pods, target 85 %.

    For a scale-up, pods that are not ready are taken as idle. For a scale-down, they are ignored.
    """

    def __init__(self) -> None:
        super().__init__(self._sum, 85.0)
        self.busy: dict[str, deque[float]] = {}

    def _sum(self, view: Simulation) -> float:
        ready = view.ready
        shares = []
        for pod, totals in zip(ready, view.totals(ready), strict=True):
            seen = self.busy.setdefault(pod.name, deque(maxlen=16))
            seen.append(float(totals[BUSY_SECONDS]))
            shares.append(100 * min((seen[-1] - seen[0]) / max(len(seen) - 1, 1), 1.0))
        total = sum(shares)
        if shares and total / len(shares) <= self.target:
            # For a scale-down, the HPA averages over ready pods only. Assigning this mean to every
            # other pod, too, gives the same average.
            return total / len(shares) * view.desired
        return total


class Kaito(Newest):
    """KAITO: adds at most one replica in five minutes while more than 10 requests per replica wait,
    and removes at most one in ten minutes while fewer wait.
    """

    def __init__(self) -> None:
        behavior = Behavior(
            ScalingRules(60, (ChangePolicy(PolicyType.PODS, 1, 300),)),
            ScalingRules(300, (ChangePolicy(PolicyType.PODS, 1, 600),)),
        )
        self.step = HpaOn(waiting, 10, behavior).step


class KubeAI(Newest):
    """KubeAI: mean number of active requests in ten minutes, divided by a target.

    It removes replicas only when the result has been lower for 30 seconds.
    """

    def __init__(self, target: float = 100.0) -> None:
        self.target, self.active, self.lower_since = target, Average(60), 0.0

    def step(self, view: Simulation) -> int | None:
        if view.now % 10:
            return None
        desired = clamp(view, math.ceil(self.active.add(concurrency(view)) / self.target))
        if desired >= view.desired:
            self.lower_since = view.now
            return desired
        return desired if view.now - self.lower_since >= 30 else None


class Knative(Newest):
    """Knative: concurrency divided by a target, with a stable window of one minute and a panic
    window of six seconds.
    """

    def __init__(self, target: float = 70.0) -> None:
        self.target = target
        self.stable, self.panic = Average(60), Average(6)
        self.panicked_at, self.most = -math.inf, 0

    def step(self, view: Simulation) -> int | None:
        now = concurrency(view)
        self.stable.add(now)
        self.panic.add(now)
        if view.now % 2:
            return None
        ready = max(len(view.ready), 1)
        desired = math.ceil(self.stable.mean / self.target)
        urgent = math.ceil(self.panic.mean / self.target)
        if urgent / ready >= 2:
            if view.now - self.panicked_at > 60:
                self.most = 0
            self.panicked_at = view.now
        if view.now - self.panicked_at <= 60:
            self.most = max(self.most, urgent, desired, view.desired)
            return clamp(view, self.most)
        return clamp(view, min(max(desired, math.floor(ready / 2)), 1000 * ready))


class AIBrix(Newest):
    """AIBrix: mean KV usage of the pods, divided by a target. A step at most doubles or halves the
    number of replicas.

    With `is_kpa`, the mean is not multiplied by the number of pods, as in AIBrix's source. The
    scale-down "cooldown" uses the lowest recommendation of 300 seconds, also as in the source. With
    `guarded`, it uses the highest recommendation.
    """

    def __init__(self, target: float = 0.5, *, is_kpa: bool = False, guarded: bool = False) -> None:
        self.target, self.is_kpa, self.guarded = target, is_kpa, guarded
        self.stable, self.panic = Average(180), Average(60)
        self.recommended: deque[int] = deque(maxlen=30)

    def step(self, view: Simulation) -> int | None:
        ready = view.ready
        mean = float(np.mean(view.kv_usage(ready))) if ready else 0.0
        self.stable.add(mean)
        self.panic.add(mean)
        if view.now % 10:
            return None
        value = self.stable.mean
        if self.is_kpa and self.panic.mean > 2 * value:
            value = self.panic.mean
        pods = 1 if self.is_kpa else view.desired
        desired = math.ceil(pods * value / self.target)
        if abs(value / self.target - 1) <= 0.1 and not self.is_kpa:
            desired = view.desired
        desired = clamp(view, min(max(desired, view.desired // 2), 2 * view.desired))
        self.recommended.append(desired)
        if desired < view.desired:
            choose = max if self.guarded else min
            desired = min(choose(self.recommended), view.desired)
        return clamp(view, desired)


def peers(truth: Truth) -> dict[str, Policy]:
    """Return every peer by name. The tuned peers aim at 85 % of the true capacity."""
    requests = max(truth.running_at_target, 1.0)
    kv = max(truth.kv_at_target, 0.01)
    return {
        "hpa-duty-cycle": DutyCycle(),
        "keda-waiting": HpaOn(waiting, 5),
        "llm-d-concurrency-tuned": HpaOn(concurrency, requests),
        "llm-d-wva1": WvaOne(),
        "llm-d-wva2-fast": WvaTwo(0),
        "llm-d-wva2-chart": WvaTwo(240),
        "llm-d-token-aware": TokenAware(),
        "llm-d-token-aware-tuned": TokenAware(is_tuned=True),
        "llm-d-held": Held(),
        "llm-d-held-tuned": Held(requests),
        "kubeai": KubeAI(),
        "kubeai-tuned": KubeAI(requests),
        "knative": Knative(),
        "knative-tuned": Knative(requests),
        "aibrix-apa": AIBrix(),
        "aibrix-apa-tuned": AIBrix(kv, guarded=True),
        "aibrix-kpa": AIBrix(is_kpa=True),
        "kaito": Kaito(),
        "dynamo-throughput": Dynamo(),
        "dynamo-latency": Dynamo(0.4, 0.1),
        "dynamo-sla": DynamoSla(truth.capacity),
        "dynamo-sla-load": DynamoSla(truth.capacity, by_load=True),
    }


SHIPPED_BY_PEERS = {
    # Plain Services: kube-proxy chooses at random (Kubernetes: Virtual IPs and Service Proxies).
    "hpa-duty-cycle": Routing.RANDOM,
    "keda-waiting": Routing.RANDOM,
    "kaito": Routing.RANDOM,
    # llm-d's optimized baseline, on which its autoscaling guides build, scores replicas by
    # token-load-scorer: the uncached prompt tokens that were sent and have no first token yet.
    "llm-d-concurrency-tuned": Routing.LEAST_PROMPT_TOKENS,
    "llm-d-wva1": Routing.LEAST_PROMPT_TOKENS,
    "llm-d-wva2-fast": Routing.LEAST_PROMPT_TOKENS,
    "llm-d-wva2-chart": Routing.LEAST_PROMPT_TOKENS,
    "llm-d-token-aware": Routing.LEAST_PROMPT_TOKENS,
    "llm-d-token-aware-tuned": Routing.LEAST_PROMPT_TOKENS,
    # The guide for KEDA on held requests switches flow control on, whose default is off.
    "llm-d-held": Routing.FLOW_CONTROL,
    "llm-d-held-tuned": Routing.FLOW_CONTROL,
    # LeastLoad is the default of Model.spec.loadBalancing.strategy.
    "kubeai": Routing.LEAST_REQUESTS,
    "kubeai-tuned": Routing.LEAST_REQUESTS,
    # The activator sends a request to the better of two random pods if containerConcurrency is not
    # set, which is its default (Knative Serving: Load balancing).
    "knative": Routing.BETTER_OF_TWO,
    "knative-tuned": Routing.BETTER_OF_TWO,
    # AIBrix has no single default: a request without a strategy goes to the model's Service through
    # Envoy. Its examples use least-request, which is at least as good.
    "aibrix-apa": Routing.LEAST_REQUESTS,
    "aibrix-apa-tuned": Routing.LEAST_REQUESTS,
    "aibrix-kpa": Routing.LEAST_REQUESTS,
    # Dynamo's KV router takes the worker with the fewest prefill and decode blocks (Routing
    # Concepts). The frontend's own default is round robin.
    "dynamo-throughput": Routing.LEAST_TOKENS,
    "dynamo-latency": Routing.LEAST_TOKENS,
    "dynamo-sla": Routing.LEAST_TOKENS,
    "dynamo-sla-load": Routing.LEAST_TOKENS,
}
"""Routing that each peer ships with, by its documentation. Where a project has a
choice, this is the routing of the guide for its autoscaler."""
