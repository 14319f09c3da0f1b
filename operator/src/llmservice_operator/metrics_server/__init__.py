"""`llmservice-operator metrics-server`: measures and reports the load of every service.

process            the process that runs all parts
members            the other metrics servers of the release
peers              the reports and wakes of the other metrics servers
fleet              one round: query and assess the services of this metrics server
scrapes            the queries of a round, none of which delays the others
turns              the requests that run at the same time
report_builder     the load report of one service
calibration_store  calibrations in the status of the services
report_api         the reports as JSON
callers            the ServiceAccounts that may read them
operator_lease     whether the leading operator sends a token
external_metrics   the reports as external.metrics.k8s.io, for the HorizontalPodAutoscaler
front_proxy        the user on whose behalf the API server sends a request
secure_server      TLS for the API server
certificates       certificates and authorities that are never stored
registration       the APIService that routes requests to this server
gauges             the reports for Prometheus
router_updates     the replicas of a service, for its router pods; the reports of these pods
refused_requests   Events about the requests in these reports
"""

from llmservice_operator.metrics_server.process import MetricsServer

__all__ = ["MetricsServer"]
