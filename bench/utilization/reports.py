"""What the model server tells the autoscaler, read as the metrics server reads it."""

from dataclasses import dataclass

import aiohttp

from llmservice_operator.scaling.signals import Counters, StepSums
from serving.servers import Server


@dataclass(frozen=True)
class Report:
    """The parts of `GET :9090/autoscale` that are compared."""

    counters: Counters
    running: int
    waiting: int
    kv_tokens: float
    kv_capacity_tokens: float
    max_sequences: int
    max_step_tokens: int

    @property
    def unfinished(self) -> int:
        """Requests in the engine or in front of it."""
        return self.running + self.waiting


async def read_report(session: aiohttp.ClientSession, server: Server) -> Report:
    """Ask the management port once."""
    async with session.get(f"{server.management_url}/autoscale") as response:
        body = await response.json()
    counters = dict(body["counters"])
    return Report(
        Counters(
            arrivals=counters["arrivals"],
            prompt_tokens_arrived=counters["promptTokensArrived"],
            prompt_tokens_computed=counters["promptTokensComputed"],
            prompt_tokens_cached=counters["promptTokensCached"],
            generated_tokens=counters["generatedTokens"],
            finished=counters["finished"],
            prompt_lengths=tuple(counters["promptLengths"]),
            answer_lengths=tuple(counters["answerLengths"]),
            answer_tokens=counters["answerTokens"],
            steps=StepSums(tuple(counters["steps"]["moments"])),
        ),
        running=body["running"],
        waiting=body["waiting"],
        kv_tokens=body["kvTokens"],
        kv_capacity_tokens=body["kvCapacityTokens"],
        max_sequences=body["maxSequences"],
        max_step_tokens=body["maxStepTokens"],
    )
