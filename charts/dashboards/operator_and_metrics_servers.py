"""The dashboard of the operator and the metrics servers."""

from layout import Dashboard, Graph, Query, Row, Variable

RELEASE = 'namespace="$release"'
SERVER = "llmservice_metrics_server"


def rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{RELEASE}}}[$__rate_interval]))"


def largest(metric: str, by: str) -> str:
    return f"max by ({by}) ({metric}{{{RELEASE}}})"


def p95(histogram: str, by: str) -> str:
    return (
        f"histogram_quantile(0.95, sum by (le, {by}) "
        f"(rate({histogram}_bucket{{{RELEASE}}}[$__rate_interval])))"
    )


OPERATOR = Row(
    "Operator",
    (
        Graph(
            "Leaders",
            "1 on the pod that holds the Lease.",
            "short",
            (Query(largest("leader_election_master_status", "name, pod"), "{{name}} {{pod}}"),),
        ),
        Graph(
            "Passes",
            "Passes over services per second, by result.",
            "short",
            (Query(rate("controller_runtime_reconcile_total", "result"), "{{result}}"),),
        ),
        Graph(
            "Failed passes",
            "Per second: passes that are repeated, that were cancelled because they took too long, "
            "and that found a problem that only a user can solve.",
            "short",
            (
                Query(rate("controller_runtime_reconcile_errors_total", "namespace"), "repeated"),
                Query(
                    rate("controller_runtime_reconcile_timeouts_total", "namespace"), "cancelled"
                ),
                Query(
                    rate("controller_runtime_terminal_reconcile_errors_total", "namespace"),
                    "of users",
                ),
            ),
        ),
        Graph(
            "Queue",
            "Services that wait for a worker, and workers with a pass in progress.",
            "short",
            (
                Query(largest("workqueue_depth", "pod"), "waiting {{pod}}"),
                Query(largest("controller_runtime_active_workers", "pod"), "in progress {{pod}}"),
            ),
        ),
        Graph(
            "Times of the queue",
            "95th percentiles of the wait and of a pass, and the age of the oldest pass.",
            "s",
            (
                Query(p95("workqueue_queue_duration_seconds", "namespace"), "wait"),
                Query(p95("controller_runtime_reconcile_time_seconds", "namespace"), "pass"),
                Query(
                    largest("workqueue_longest_running_processor_seconds", "namespace"),
                    "oldest pass",
                ),
            ),
        ),
        Graph(
            "Children",
            "Children of services per second that were created, changed, deleted or paused.",
            "short",
            (Query(rate("llmservice_apply_total", "result"), "{{result}}"),),
        ),
        Graph(
            "Changes by other clients",
            "Children per second that were restored, by kind.",
            "short",
            (Query(rate("llmservice_drift_corrections_total", "kind"), "{{kind}}"),),
        ),
    ),
)

METRICS_SERVERS = Row(
    "Metrics servers",
    (
        Graph(
            "Round",
            "95th percentile of the time to query all replicas; a round begins every 5 seconds.",
            "s",
            (Query(p95(f"{SERVER}_round_duration_seconds", "pod"), "{{pod}}"),),
        ),
        Graph(
            "Queries of replicas",
            "Per second, by result.",
            "short",
            (Query(rate(f"{SERVER}_scrapes_total", "pod, result"), "{{pod}} {{result}}"),),
        ),
        Graph(
            "APIService of external metrics",
            "1 if the release owns it, and 1 if the API server reaches its server.",
            "short",
            (
                Query(largest(f"{SERVER}_api_service_owned", "pod"), "owned {{pod}}"),
                Query(largest(f"{SERVER}_api_service_available", "pod"), "available {{pod}}"),
            ),
            most=1,
        ),
        Graph(
            "Time until the certificate ends",
            "It is renewed a day before its end.",
            "s",
            (
                Query(
                    f"{largest(f'{SERVER}_certificate_expiry_timestamp_seconds', 'pod')} - time()",
                    "{{pod}}",
                ),
            ),
        ),
    ),
)

BOTH = Row(
    "Both",
    (
        Graph(
            "Requests to the API server",
            "Per second, by method and status.",
            "reqps",
            (Query(rate("rest_client_requests_total", "method, code"), "{{method}} {{code}}"),),
        ),
        Graph(
            "Duration of these requests",
            "95th percentile.",
            "s",
            (Query(p95("rest_client_request_duration_seconds", "verb"), "{{verb}}"),),
        ),
        Graph(
            "Restarts of the watches",
            "Per second. Each restart lists all objects again.",
            "short",
            (Query(rate("llmservice_watch_restarts_total", "pod"), "{{pod}}"),),
        ),
        Graph(
            "Watch events",
            "Per second, by kind.",
            "short",
            (Query(rate("llmservice_watch_events_total", "kind"), "{{kind}}"),),
        ),
        Graph(
            "Objects in the cache",
            "By kind.",
            "short",
            (Query(largest("llmservice_cache_objects", "kind"), "{{kind}}"),),
        ),
        Graph(
            "Objects that need attention",
            "Objects that cannot be read, and those per second that the audit corrected.",
            "short",
            (
                Query(largest("llmservice_unreadable_objects", "kind"), "unreadable {{kind}}"),
                Query(rate("llmservice_cache_divergence_total", "kind"), "wrong {{kind}}"),
            ),
        ),
        Graph(
            "Delay of the event loop",
            "95th percentile.",
            "s",
            (Query(p95("llmservice_event_loop_lag_seconds", "pod"), "{{pod}}"),),
        ),
        Graph(
            "Memory",
            "Resident memory of each pod.",
            "bytes",
            (Query(largest("process_resident_memory_bytes", "pod"), "{{pod}}"),),
        ),
        Graph(
            "CPU",
            "CPU seconds per second of each pod.",
            "short",
            (Query(rate("process_cpu_seconds_total", "pod"), "{{pod}}"),),
        ),
    ),
)

DASHBOARD = Dashboard(
    "llmservice-operator",
    "LLMService / operator and metrics servers",
    "Passes, queue and requests of the operator, and the rounds of the metrics servers.",
    (
        Variable(
            "release",
            "Namespace of the release",
            "label_values(llmservice_build_info, namespace)",
            takes_several=False,
        ),
    ),
    (OPERATOR, METRICS_SERVERS, BOTH),
)
