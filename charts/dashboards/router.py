"""The dashboard of routers."""

from layout import Dashboard, Graph, Query, Row, Variable
from queries import EACH, percentiles, rate, total

PREFIX = "llmservice_router"
CLIENTS = 'envoy_http_conn_manager_prefix="clients"'

NAMESPACE = Variable(
    "namespace", "Namespace", f"label_values({PREFIX}_replicas, namespace)", takes_several=False
)
SERVICE = Variable(
    "llmservice",
    "Service",
    f'label_values({PREFIX}_replicas{{namespace=~"$namespace"}}, llmservice)',
    takes_several=False,
)

DASHBOARD = Dashboard(
    "llmservice-router",
    "LLMService / router",
    "Requests, picks and waiting requests of the router of one service.",
    (NAMESPACE, SERVICE),
    (
        Row(
            "Requests",
            (
                Graph(
                    "Requests by outcome",
                    "Requests of clients per second.",
                    "reqps",
                    (Query(rate(f"{PREFIX}_requests_total", "outcome"), "{{outcome}}"),),
                ),
                Graph(
                    "Responses by class",
                    "Responses that clients got per second: 2 is 200 to 299.",
                    "reqps",
                    (
                        Query(
                            rate(
                                "envoy_http_downstream_rq_xx", "envoy_response_code_class", CLIENTS
                            ),
                            "{{envoy_response_code_class}}xx",
                        ),
                    ),
                ),
                Graph(
                    "Repeated requests",
                    "Requests per second that a second replica has answered.",
                    "reqps",
                    (Query(rate(f"{PREFIX}_retries_total", EACH), "repeated"),),
                ),
                Graph(
                    "Waiting requests",
                    "Requests that wait for a replica, in the picker and in the forwarder.",
                    "short",
                    (
                        Query(total(f"{PREFIX}_held_requests", EACH), "picker"),
                        Query(total(f"{PREFIX}_forwarder_waiting_requests", EACH), "forwarder"),
                    ),
                ),
                Graph(
                    "Time for which requests are held",
                    "Of the requests that had to wait.",
                    "s",
                    percentiles(f"{PREFIX}_held_seconds"),
                ),
                Graph(
                    "Requests that left the forwarder",
                    "Per second, by result.",
                    "reqps",
                    (Query(rate(f"{PREFIX}_forwarded_requests_total", "result"), "{{result}}"),),
                ),
            ),
        ),
        Row(
            "Picks",
            (
                Graph(
                    "Picks by reason",
                    "Picks of a replica per second.",
                    "reqps",
                    (Query(rate(f"{PREFIX}_picks_total", "reason"), "{{reason}}"),),
                ),
                Graph(
                    "Share of the prompts that routing saves",
                    "Tokens that the chosen replica should have in its prefix cache.",
                    "percentunit",
                    (
                        Query(
                            f"{rate(f'{PREFIX}_cached_prompt_tokens_total', EACH)} / "
                            f"{rate(f'{PREFIX}_prompt_tokens_total', EACH)}",
                            "saved",
                        ),
                    ),
                    most=1,
                ),
                Graph(
                    "First token: expected and real",
                    "Mean time from the pick to the first token, and the mean difference.",
                    "s",
                    tuple(
                        Query(
                            f"{rate(f'{PREFIX}_{name}_sum', EACH)} / "
                            f"{rate(f'{PREFIX}_{name}_count', EACH)}",
                            legend,
                        )
                        for name, legend in (
                            ("expected_first_token_seconds", "expected"),
                            ("first_token_seconds", "real"),
                            ("first_token_error_seconds", "difference"),
                        )
                    ),
                ),
            ),
        ),
        Row(
            "Replicas and processes",
            (
                Graph(
                    "Replicas",
                    "Confirmed replicas of each router pod, by state.",
                    "short",
                    (Query(total(f"{PREFIX}_replicas", "pod, state"), "{{pod}} {{state}}"),),
                ),
                Graph(
                    "Ejections",
                    "Replicas per second that lost their requests.",
                    "short",
                    (Query(rate(f"{PREFIX}_ejections_total", "pod"), "{{pod}}"),),
                ),
                Graph(
                    "Restarts of processes",
                    "Per second, by process.",
                    "short",
                    (
                        Query(
                            rate(f"{PREFIX}_process_restarts_total", "pod, process"),
                            "{{pod}} {{process}}",
                        ),
                    ),
                ),
                Graph(
                    "Lists of replicas",
                    "Lists from the metrics servers per second, by result.",
                    "short",
                    (Query(rate(f"{PREFIX}_replica_lists_total", "result"), "{{result}}"),),
                ),
                Graph(
                    "Refused requests that ended two replicas",
                    "Requests that are refused now.",
                    "short",
                    (Query(total(f"{PREFIX}_refused_digests", EACH), "refused"),),
                ),
            ),
        ),
    ),
)
