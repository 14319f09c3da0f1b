"""The HPA behavior that suits the measured cold start and load of a service."""

from llmservice_operator.scaling.hpa import Behavior, ChangePolicy, PolicyType, ScalingRules

UP_PERIOD_SECONDS = 15.0
DOWN_PERIOD_SECONDS = 60.0
DOWN_PERCENT = 50
DOWN_TOLERANCE = 0.0


def behavior_for(max_replicas: int, scale_down_window_seconds: float) -> Behavior:
    """Return the behavior of the HPA: it scales up in one step and, after the scale-down window,
    scales down by at most half of the replicas per minute.
    """
    return Behavior(
        ScalingRules(
            0.0, (ChangePolicy(PolicyType.PODS, max_replicas, UP_PERIOD_SECONDS),), tolerance=0.0
        ),
        ScalingRules(
            scale_down_window_seconds,
            (ChangePolicy(PolicyType.PERCENT, DOWN_PERCENT, DOWN_PERIOD_SECONDS),),
            tolerance=DOWN_TOLERANCE,
        ),
    )
