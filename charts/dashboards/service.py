"""The dashboard of one service."""

from layout import Dashboard, Graph, Number, Query, Row, Table, Variable
from queries import EACH, NAMESPACE, SERVICES, largest, percentiles, rate, total

ONE_NAMESPACE = Variable(NAMESPACE.name, NAMESPACE.label, NAMESPACE.values, takes_several=False)
ONE_SERVICE = Variable(SERVICES.name, SERVICES.label, SERVICES.values, takes_several=False)

IS_NOT_READY = 'phase!="ready"'

STATE = Row(
    "State",
    (
        Table(
            "Conditions",
            "The conditions of the service, with their reasons.",
            (Query(largest("llmservice_status_condition", "type, status, reason")),),
            ("type", "status", "reason"),
        ),
        Graph(
            "Replicas",
            "Existing, ready and desired replicas, and the bounds of autoscaling.",
            "short",
            tuple(
                Query(largest(f"llmservice_replicas{suffix}"), legend)
                for suffix, legend in (
                    ("", "existing"),
                    ("_ready", "ready"),
                    ("_desired", "desired"),
                    ("_min", "minimum"),
                    ("_max", "maximum"),
                )
            ),
            width=12,
        ),
        Graph(
            "Phases of the replicas",
            "Number of replicas in each phase of their model server.",
            "short",
            (Query(total("llm_phase", "phase"), "{{phase}}"),),
        ),
        Graph(
            "Age of the phase",
            "Time for which each replica has been loading or draining.",
            "s",
            (
                Query(
                    f"{largest('llm_phase_age_seconds', 'pod')} and on (pod) "
                    f"{largest('llm_phase', 'pod', IS_NOT_READY)} == 1",
                    "{{pod}}",
                ),
            ),
        ),
        Graph(
            "Download",
            "Share of the weights that is on disk.",
            "percentunit",
            (
                Query(
                    f"{largest('llm_download_bytes', 'pod')} / "
                    f"{largest('llm_download_expected_bytes', 'pod')}",
                    "{{pod}}",
                ),
            ),
            most=1,
        ),
    ),
)

REQUESTS = Row(
    "Requests",
    (
        Graph(
            "Requests by route and status",
            "Answered requests per second; 499 is a client that left.",
            "reqps",
            (Query(rate("llm_requests_total", "route, status"), "{{route}} {{status}}"),),
        ),
        Graph(
            "Server errors",
            "Share of the requests with a status of 500 or more, of the router if there is one.",
            "percentunit",
            (Query(largest("llmservice:slo_bad:ratio_rate5m", EACH, 'slo="availability"'), "bad"),),
        ),
        Graph(
            "Refused and ended requests",
            "Requests per second that the server refused or ended, by reason.",
            "reqps",
            (Query(rate("llm_requests_rejected_total", "reason"), "{{reason}}"),),
        ),
        Graph(
            "Requests in progress",
            "Requests that the replicas are answering.",
            "short",
            (Query(total("llm_requests_in_flight", "pod"), "{{pod}}"),),
        ),
        Graph(
            "Clients that left",
            "Requests per second whose client left before the answer ended.",
            "reqps",
            (Query(rate("llm_requests_aborted_total", "route"), "{{route}}"),),
        ),
        Graph(
            "Tokens by API key",
            "Tokens per second of finished requests, by the name of their key.",
            "short",
            (Query(rate("llm_key_tokens_total", "key, type"), "{{key}} {{type}}"),),
        ),
    ),
)

LATENCY = Row(
    "Latency and SLO",
    (
        Graph(
            "Time to first token",
            "From the arrival of a request to its first token.",
            "s",
            percentiles("vllm:time_to_first_token_seconds"),
        ),
        Graph(
            "Inter-token latency",
            "Time between two tokens of an answer.",
            "s",
            percentiles("vllm:inter_token_latency_seconds"),
        ),
        Graph(
            "End to end",
            "From the arrival of a request to its last token.",
            "s",
            percentiles("vllm:e2e_request_latency_seconds"),
        ),
        Graph(
            "Time in the queue",
            "Time for which requests wait for the engine.",
            "s",
            percentiles("vllm:request_queue_time_seconds"),
        ),
        Graph(
            "Bad requests and the share that the SLO allows",
            "Shares of the requests of the last hour that missed each part of the SLO.",
            "percentunit",
            (
                Query(largest("llmservice:slo_bad:ratio_rate1h", "slo"), "{{slo}}"),
                Query(largest("llmservice:slo_budget:ratio", "slo"), "{{slo}} allowed"),
            ),
        ),
        Graph(
            "SLO attainment",
            "Share of the last minute's requests within all limits, and the objective.",
            "percent",
            (
                Query(largest("llm_slo_attainment_percent"), "attained"),
                Query(f"100 * {largest('llmservice_slo_objective_ratio')}", "objective"),
            ),
            most=100,
        ),
    ),
)

ENGINE = Row(
    "Engine",
    (
        Graph(
            "Running and waiting requests",
            "Requests in the batches of all engines, and in their queues.",
            "short",
            (
                Query(total("vllm:num_requests_running", EACH), "running"),
                Query(total("vllm:num_requests_waiting", EACH), "waiting"),
            ),
        ),
        Graph(
            "Tokens",
            "Tokens of prompts and answers per second.",
            "short",
            (
                Query(rate("vllm:prompt_tokens_total", EACH), "prompts"),
                Query(rate("vllm:generation_tokens_total", EACH), "answers"),
            ),
        ),
        Graph(
            "Generated tokens of each replica",
            "Tokens per second.",
            "short",
            (Query(rate("vllm:generation_tokens_total", "pod"), "{{pod}}"),),
        ),
        Graph(
            "Dollars per million generated tokens",
            "Price of the GPUs of the existing replicas, divided by the generated tokens. Shown if "
            "the accelerator class has a pricePerHour.",
            "currencyUSD",
            (
                Query(
                    f"1000000 / 3600 * {largest('llmservice_gpus')} * "
                    f"{largest('llmservice_gpu_dollars_per_hour')} / "
                    f"({rate('vllm:generation_tokens_total', EACH)} > 0)",
                    "{{llmservice}}",
                ),
            ),
        ),
        Graph(
            "Generated tokens per GPU",
            "Tokens per second, divided by the GPUs of the existing replicas.",
            "short",
            (
                Query(
                    f"{rate('vllm:generation_tokens_total', EACH)} / "
                    f"({largest('llmservice_gpus')} > 0)",
                    "per GPU",
                ),
            ),
        ),
        Graph(
            "KV cache",
            "KV cache in use on each replica.",
            "percentunit",
            (Query(largest("vllm:kv_cache_usage_perc", "pod, engine"), "{{pod}} {{engine}}"),),
            most=1,
        ),
        Graph(
            "Preemptions",
            "Requests per second whose KV cache was dropped for lack of room.",
            "short",
            (Query(rate("vllm:num_preemptions_total", "pod"), "{{pod}}"),),
        ),
        Graph(
            "Prefix cache hits",
            "Share of the prompt tokens that were found in the prefix cache.",
            "percentunit",
            (
                Query(
                    f"{rate('vllm:prefix_cache_hits_total', EACH)} / "
                    f"{rate('vllm:prefix_cache_queries_total', EACH)}",
                    "hits",
                ),
            ),
            most=1,
        ),
        Graph(
            "Length of prompts",
            "Tokens of a prompt.",
            "short",
            percentiles("vllm:request_prompt_tokens"),
        ),
        Graph(
            "Length of answers",
            "Tokens of an answer.",
            "short",
            percentiles("vllm:request_generation_tokens"),
        ),
        Graph(
            "Accepted share of drafted tokens",
            "With speculative decoding. Below about 20 %, the drafts cost more than they save.",
            "percentunit",
            (
                Query(
                    f"{rate('vllm:spec_decode_num_accepted_tokens_total', EACH)} / "
                    f"{rate('vllm:spec_decode_num_draft_tokens_total', EACH)}",
                    "accepted",
                ),
            ),
            most=1,
        ),
    ),
)

SCALING = Row(
    "Autoscaling",
    (
        Graph(
            "Demand",
            "Load in percent of what one replica sustains: 170 needs two replicas at 85 %.",
            "percent",
            (Query(largest("llm_gpu_demand_percent"), "demand"),),
        ),
        Graph(
            "Effective GPU utilization",
            "Work of each replica, in percent of what it sustains within the SLO.",
            "percent",
            (Query(largest("llm_effective_gpu_utilization_percent", "pod"), "{{pod}}"),),
        ),
        Graph(
            "Capacity of one replica",
            "Requests per second that one replica sustains within the SLO.",
            "reqps",
            (Query(largest("llm_capacity_requests_per_second"), "capacity"),),
        ),
        Graph(
            "Capacity factor",
            "Correction of the modelled capacity by the measured misses of the SLO.",
            "short",
            (Query(largest("llm_capacity_factor"), "factor"),),
        ),
        Graph(
            "Backlog",
            "Queued work, in seconds of one replica.",
            "s",
            (Query(largest("llm_backlog_gpu_seconds"), "backlog"),),
        ),
        Graph(
            "Cold start",
            "Time until a replica has a node, and from then until it is ready.",
            "s",
            (
                Query(largest("llm_node_wait_seconds"), "wait for a node"),
                Query(largest("llm_cold_start_seconds"), "cold start"),
            ),
        ),
    ),
)

GPUS = Row(
    "GPUs",
    (
        Number(
            "GPUs held",
            "GPUs of the replicas that exist.",
            "short",
            (Query(largest("llmservice_gpus")),),
        ),
        Number(
            "GPUs desired",
            "GPUs of the replicas that should exist.",
            "short",
            (Query(largest("llmservice_gpus_desired")),),
        ),
        Graph(
            "Memory",
            "Share of each GPU's memory that is in use.",
            "percentunit",
            (
                Query(
                    f"{largest('llm_gpu_memory_used_bytes', 'pod, gpu')} / "
                    f"{largest('llm_gpu_memory_total_bytes', 'pod, gpu')}",
                    "{{pod}} {{gpu}}",
                ),
            ),
            width=16,
            most=1,
        ),
        Graph(
            "Power",
            "Power that each GPU draws.",
            "watt",
            (Query(largest("llm_gpu_power_watts", "pod, gpu"), "{{pod}} {{gpu}}"),),
        ),
        Graph(
            "Clock",
            "Clock of the streaming multiprocessors.",
            "hertz",
            (Query(largest("llm_gpu_sm_clock_hertz", "pod, gpu"), "{{pod}} {{gpu}}"),),
        ),
        Graph(
            "Throttling",
            "1 while the clock is lowered for the reason.",
            "short",
            (
                Query(
                    f"{largest('llm_gpu_throttled', 'pod, gpu, reason')} == 1",
                    "{{pod}} {{gpu}} {{reason}}",
                ),
            ),
            most=1,
        ),
    ),
)

DASHBOARD = Dashboard(
    "llmservice-service",
    "LLMService / one service",
    "State, requests, latency, engine, autoscaling and GPUs of one service.",
    (ONE_NAMESPACE, ONE_SERVICE),
    (STATE, REQUESTS, LATENCY, ENGINE, SCALING, GPUS),
)
