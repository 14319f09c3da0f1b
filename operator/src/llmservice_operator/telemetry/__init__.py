"""Reports on the operator itself: JSON logs, Prometheus metrics and health endpoints."""

from llmservice_operator.telemetry.health import Health
from llmservice_operator.telemetry.log import configure_logging, log_fields
from llmservice_operator.telemetry.metrics import (
    CONTROLLER,
    Metrics,
    ProcessMetrics,
    measure_loop_lag,
)
from llmservice_operator.telemetry.web import create_app, start_server

__all__ = [
    "CONTROLLER",
    "Health",
    "Metrics",
    "ProcessMetrics",
    "configure_logging",
    "create_app",
    "log_fields",
    "measure_loop_lag",
    "start_server",
]
