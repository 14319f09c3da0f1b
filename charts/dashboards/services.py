"""The dashboard of all services."""

from layout import Dashboard, Graph, Number, Query, Row, Table
from queries import EACH, NAMESPACE, SERVICES, largest, rate

NAME = "{{namespace}}/{{llmservice}}"

DASHBOARD = Dashboard(
    "llmservice-services",
    "LLMService / all services",
    "State, load and SLO of all services.",
    (NAMESPACE, SERVICES),
    (
        Row(
            "State",
            (
                Number(
                    "Services",
                    "Number of LLMServices.",
                    "short",
                    (Query(f"count({largest('llmservice_replicas')})"),),
                ),
                Number(
                    "Ready replicas",
                    "Replicas that answer requests.",
                    "short",
                    (Query(f"sum({largest('llmservice_replicas_ready')})"),),
                ),
                Number(
                    "Desired replicas",
                    "Replicas that should exist.",
                    "short",
                    (Query(f"sum({largest('llmservice_replicas_desired')})"),),
                ),
                Number(
                    "GPUs held",
                    "GPUs of the replicas that exist.",
                    "short",
                    (Query(f"sum({largest('llmservice_gpus')})"),),
                ),
                Number(
                    "GPUs desired",
                    "GPUs of the replicas that should exist.",
                    "short",
                    (Query(f"sum({largest('llmservice_gpus_desired')})"),),
                ),
                Number(
                    "Tokens per second",
                    "Tokens that all services generate.",
                    "short",
                    (Query(f"sum({rate('vllm:generation_tokens_total', EACH)})"),),
                ),
                Table(
                    "Not ready",
                    "Services whose condition Ready is not True, with the reason.",
                    (
                        Query(
                            largest(
                                "llmservice_status_condition",
                                f"{EACH}, reason",
                                'type="Ready"',
                                'status!="True"',
                            )
                        ),
                    ),
                    ("namespace", "llmservice", "reason"),
                ),
                Table(
                    "Models",
                    "Model, vLLM version and image of each service.",
                    (Query(largest("llmservice_info", f"{EACH}, model, engine_version, image")),),
                    ("namespace", "llmservice", "model", "engine_version", "image"),
                ),
                Graph(
                    "Ready share of the desired replicas",
                    "1 while all desired replicas are ready.",
                    "percentunit",
                    (
                        Query(
                            f"{largest('llmservice_replicas_ready')} / "
                            f"({largest('llmservice_replicas_desired')} > 0)",
                            NAME,
                        ),
                    ),
                    width=12,
                    most=1,
                ),
                Graph(
                    "Services at a limit of scaling",
                    "1 while the load needs more replicas than maxReplicas or the cluster allows.",
                    "short",
                    (
                        Query(
                            largest(
                                "llmservice_status_condition",
                                f"{EACH}, reason",
                                'type="AutoscalingActive"',
                                'reason=~"AtMaximum|NoCapacity"',
                            ),
                            f"{NAME} {{{{reason}}}}",
                        ),
                    ),
                    width=12,
                    most=1,
                ),
            ),
        ),
        Row(
            "Load",
            (
                Graph(
                    "Requests",
                    "Answered requests per second.",
                    "reqps",
                    (Query(rate("llm_requests_total", EACH), NAME),),
                ),
                Graph(
                    "Generated tokens",
                    "Generated tokens per second.",
                    "short",
                    (Query(rate("vllm:generation_tokens_total", EACH), NAME),),
                ),
                Graph(
                    "Demand",
                    "Load in percent of what one replica sustains: 170 needs two replicas at 85 %.",
                    "percent",
                    (Query(largest("llm_gpu_demand_percent"), NAME),),
                ),
                Graph(
                    "Cost per hour",
                    "Price of the GPUs of the existing replicas, of services whose accelerator "
                    "class has a pricePerHour.",
                    "currencyUSD",
                    (
                        Query(
                            f"{largest('llmservice_gpus')} * "
                            f"{largest('llmservice_gpu_dollars_per_hour')}",
                            NAME,
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "SLO",
            (
                Graph(
                    "Bad requests",
                    "Share of the requests of the last hour that missed each part of the SLO.",
                    "percentunit",
                    (
                        Query(
                            largest("llmservice:slo_bad:ratio_rate1h", f"{EACH}, slo"),
                            f"{NAME} {{{{slo}}}}",
                        ),
                    ),
                    width=12,
                ),
                Graph(
                    "Rate at which the error budget burns",
                    "Bad requests of the last hour, divided by those that the SLO allows. With 1, "
                    "the budget lasts for exactly 30 days.",
                    "short",
                    (
                        Query(
                            f"{largest('llmservice:slo_bad:ratio_rate1h', f'{EACH}, slo')} / "
                            f"{largest('llmservice:slo_budget:ratio', f'{EACH}, slo')}",
                            f"{NAME} {{{{slo}}}}",
                        ),
                    ),
                    width=12,
                ),
            ),
        ),
    ),
)
