"""`llmservice-operator metrics-server`: measures the load of every service and serves it.

process          the parts put together
fleet            one round: ask every pod, assess every service
report           what is known about a service, as others read it
checkpoints      what was learned, kept in the services' status
report_api      the reports as JSON
external_metrics the reports as external.metrics.k8s.io, for the HorizontalPodAutoscaler
front_proxy      who asks for them
certificates     TLS without a stored key
registration     the APIService that sends the requests here
gauges           the reports for Prometheus
"""

from llmservice_operator.metrics_server.process import MetricsServer

__all__ = ["MetricsServer"]
