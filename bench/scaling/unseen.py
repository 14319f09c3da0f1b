"""Makes the traffic for which nothing in the product was tuned: shapes that were reported as
served badly, and public traces.

The traces are not part of the repository. `LLMSERVICE_TRACES` names their folder; data/README.md
says where they come from.
"""

import csv
import gzip
import json
import os
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from llmservice_operator.scaling.conditions import EngineLimits, ServiceLevelObjective
from llmservice_operator.scaling.hardware import hardware_class
from llmservice_operator.scaling.step_model import StepModel, prior_step_model
from scaling.engine import Array
from scaling.hardware import A10, H100, SLO, Hardware
from scaling.workloads import (
    Generator,
    Traffic,
    Workload,
    burst,
    lognormal,
    poisson,
    traffic_of,
)

TRACES = Path(os.environ.get("LLMSERVICE_TRACES", "traces"))
AZURE_CODE = TRACES / "azure_llm_code_2023.csv"
MOONCAKE = TRACES / "mooncake_conversation.jsonl.gz"
COPIES = 8
"""Number of requests made of each request of the Azure trace."""

L4 = Hardware(
    StepModel(fixed=48.5e-3, prefill=240e-6, sequence=90e-6, kv=400e-9),
    EngineLimits(max_sequences=128, kv_capacity_tokens=20_000, max_step_tokens=256),
    prior_step_model(
        hardware_class("NVIDIA-L4"),
        weight_bytes=13.4e9,
        parameters=6.7e9,
        kv_bytes_per_token=131_072,
    ),
)
"""Engine with a 6.7-billion-parameter model, whose idle step takes nearly the default ITL limit."""


def _poisson(rng: Generator, rate: float, seconds: float, since: float = 0.0) -> Array:
    return since + np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))


def chat_at(rng: Generator, arrival: Array, seconds: float) -> Traffic:
    """Return requests of a chat with these arrival times."""
    count = len(arrival)
    prompt = lognormal(rng, 500, 1.0, 8, 8000, count)
    return traffic_of(arrival, prompt, lognormal(rng, 210, 0.8, 2, 1500, count), seconds)


def azure_code(rng: Generator) -> Traffic:
    """Return the trace of code completions at eight times its rate."""
    with AZURE_CODE.open() as file:
        rows = list(csv.DictReader(file))
    times = np.array([datetime.fromisoformat(row["TIMESTAMP"]).timestamp() for row in rows])
    lengths = np.array([[int(row["ContextTokens"]), int(row["GeneratedTokens"])] for row in rows])
    times -= times[0]
    which = np.repeat(np.arange(len(times)), COPIES)
    moved = np.clip(times[which] + rng.normal(0, 5, len(which)), 0, times[-1])
    order = np.argsort(moved, kind="stable")
    prompt, answer = lengths[which][order].T
    return traffic_of(moved[order], np.maximum(prompt, 1), np.maximum(answer, 1), times[-1])


def mooncake(rng: Generator) -> Traffic:
    """Return the conversation trace. No prompt is cached, as with random routing to many
    replicas.
    """
    with gzip.open(MOONCAKE, "rt") as file:
        rows = [json.loads(line) for line in file]
    arrival = np.array([row["timestamp"] / 1000 for row in rows])
    # Requests with equal time stamps arrive within the following seconds.
    arrival = np.sort(arrival + rng.uniform(0, 3, len(arrival)))
    prompt = np.array([row["input_length"] for row in rows])
    answer = np.maximum([row["output_length"] for row in rows], 1)
    return traffic_of(arrival, prompt, answer, float(arrival[-1]) + 1)


def sparse_then_rush(rng: Generator) -> Traffic:
    """Return one request a minute for half an hour, and then 25 requests/s."""
    begins, seconds = 1800.0, 3000.0
    arrival = np.concatenate(
        [_poisson(rng, 1 / 60, begins), _poisson(rng, 25, seconds - begins, begins)]
    )
    return chat_at(rng, arrival, seconds)


def whale(rng: Generator) -> Traffic:
    """Return 40 requests/s of chat, and one client that sends a prompt of 100,000 tokens every ten
    seconds.
    """
    seconds = 3600.0
    chat, long = _poisson(rng, 40, seconds), _poisson(rng, 0.1, seconds)
    plain = chat_at(rng, np.concatenate([chat, long]), seconds)
    prompt = plain.prompt.copy()
    prompt[len(chat) :] = 100_000
    order = np.argsort(plain.arrival, kind="stable")
    return traffic_of(plain.arrival[order], prompt[order], plain.answer[order], seconds)


def long_answers(rng: Generator) -> Traffic:
    """Return a constant 3 requests/s with answers of 8,000 tokens."""
    seconds = 7200.0
    arrival = _poisson(rng, 3, seconds)
    prompt = lognormal(rng, 500, 1.0, 8, 8000, len(arrival))
    answer = lognormal(rng, 8000, 0.4, 500, 20_000, len(arrival))
    return traffic_of(arrival, prompt, answer, seconds)


def new_service(rng: Generator) -> Traffic:
    """Return the first hour of a service with answers of 6,000 tokens and 2 requests/s."""
    seconds = 3600.0
    arrival = _poisson(rng, 2, seconds)
    prompt = lognormal(rng, 500, 1.0, 8, 8000, len(arrival))
    answer = lognormal(rng, 6000, 0.8, 50, 20_000, len(arrival))
    return traffic_of(arrival, prompt, answer, seconds)


def cache_collapse(rng: Generator) -> Traffic:
    """Return 40 requests/s with long prompts, of which the prefix cache saves 90 % until it saves
    nothing any more.
    """
    seconds, collapses = 3000.0, 1200.0
    arrival = _poisson(rng, 40, seconds)
    prompt = lognormal(rng, 2500, 0.5, 100, 8000, len(arrival))
    answer = lognormal(rng, 150, 0.8, 2, 1000, len(arrival))
    saved = np.where(arrival < collapses, 0.9, 0.0)
    cached = np.minimum((prompt * saved).astype(np.int64), prompt - 1)
    return traffic_of(arrival, prompt, answer, seconds, cached)


def steady_chat(rng: Generator) -> Traffic:
    """Return 50 requests/s of chat for an hour."""
    return chat_at(rng, _poisson(rng, 50, 3600), 3600)


def small_model(rng: Generator) -> Traffic:
    """Return 2 requests/s of short chat for an hour."""
    arrival = poisson(rng, lambda t: np.full(len(t), 2.0), 2.0, 3600.0)
    prompt = lognormal(rng, 300, 0.8, 8, 1500, len(arrival))
    return traffic_of(arrival, prompt, lognormal(rng, 150, 0.8, 2, 1000, len(arrival)), 3600.0)


PATIENT = ServiceLevelObjective(ttft_seconds=5.0, itl_seconds=0.1, objective=0.95)

UNSEEN = (
    Workload("azure-code", H100, 60, azure_code, needs=AZURE_CODE),
    Workload("mooncake", H100, 80, mooncake, needs=MOONCAKE),
    Workload("mooncake-patient", H100, 60, mooncake, slo=PATIENT, needs=MOONCAKE),
    Workload("sparse-then-rush", H100, 12, sparse_then_rush, burst_at=1800.0),
    Workload("whale", H100, 20, whale),
    Workload("long-answers", H100, 36, long_answers),
    Workload("new-service", H100, 24, new_service, first_replicas=1),
    Workload("cache-collapse", H100, 40, cache_collapse, burst_at=1200.0),
    Workload("hung-replica", H100, 16, steady_chat, event="hung"),
    Workload("restart-in-burst", H100, 30, burst, burst_at=900.0, event="restart"),
    Workload("itl-hardly-attained", L4, 40, small_model),
    Workload("itl-not-attained", A10, 40, small_model, slo=replace(SLO, itl_seconds=0.0302)),
)
"""Workloads of which no figure was known when the product was tuned. A workload whose trace is
absent is left out, and its gates then miss."""


@dataclass(frozen=True)
class Constant:
    """Traffic at a constant rate for two hours. Lengths are in tokens."""

    rate: float
    """Requests per second."""
    prompt: float
    answer: float
    spread: float = 0.8
    """Coefficient of variation of both lengths."""
    saved: float = 0.0
    """Share of each prompt that the prefix cache saves."""

    def __call__(self, rng: Generator) -> Traffic:
        seconds = 7200.0
        arrival = _poisson(rng, self.rate, seconds)
        prompt = lognormal(rng, self.prompt, self.spread, 8, 16_000, len(arrival))
        answer = lognormal(rng, self.answer, self.spread, 2, 20_000, len(arrival))
        cached = (self.saved * prompt).astype(np.int64)
        return traffic_of(arrival, prompt, answer, seconds, cached)


CONSTANT = (
    Workload("constant-chat", H100, 12, Constant(20, 600, 200)),
    Workload("constant-long-prompts", H100, 12, Constant(12, 4000, 60)),
    Workload("constant-long-answers", H100, 24, Constant(2, 400, 4000, 0.4)),
    Workload("constant-uneven", H100, 12, Constant(10, 800, 300, 2.0)),
    Workload("constant-cached", H100, 12, Constant(20, 2500, 150, 0.5, 0.8)),
    Workload("constant-small-gpu", A10, 24, Constant(6, 300, 150)),
)
"""Mixes at a constant rate, for which a policy need not change the replicas."""
