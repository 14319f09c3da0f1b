import asyncio
import json
import threading

import pytest
from prometheus_client import CollectorRegistry

from llmservice_server.engine_usage import EngineLimits, Objectives
from llmservice_server.lifecycle import Lifecycle, Phase
from llmservice_server.management import create_management_app
from server_support.in_process import Client, make_management
from server_support.steps import Engine, Finished, Iteration, Prompt, Scheduler, StepDetails


def counters(engine: Engine) -> dict[str, object]:
    report = engine.usage.report()["counters"]
    assert isinstance(report, dict)
    return report


def sums_of(*steps: tuple[float, ...]) -> list[float]:
    """Return the sum over all steps of each product of two of a step's five terms."""
    return [sum(x[i] * x[j] for x in steps) for i in range(5) for j in range(i, 5)]


def test_counts_what_arrives_before_it_is_started() -> None:
    engine = Engine()
    engine.arrive(100)
    engine.arrive(3, sequences=2)

    counted = counters(engine)
    assert (counted["arrivals"], counted["promptTokensArrived"]) == (3, 106)
    lengths = counted["promptLengths"]
    assert isinstance(lengths, list)
    # The length 3 is in (2, 4], and 100 is in (64, 128].
    assert (lengths[2], lengths[7], sum(lengths)) == (2, 1, 3)
    assert engine.usage.report()["waiting"] == 3


def test_what_is_turned_away_adds_to_the_load_and_leaves_the_mix_of_prompts_as_it_is() -> None:
    engine = Engine()
    for _ in range(10):
        engine.arrive(100)
    engine.usage.turn_away(3)
    counted = counters(engine)
    assert (counted["arrivals"], counted["promptTokensArrived"]) == (13, 1300)

    for _ in range(2000):
        engine.arrive(3)
    engine.usage.turn_away(7)
    counted = counters(engine)
    # A refused sequence is counted with a recent length, and the long prompts are no longer recent.
    assert (counted["arrivals"], counted["promptTokensArrived"]) == (2020, 1300 + 2007 * 3)
    lengths = counted["promptLengths"]
    assert isinstance(lengths, list)
    assert (lengths[2], lengths[7], sum(lengths)) == (2007, 13, 2020)
    assert engine.usage.report()["waiting"] == 2010


def test_what_is_turned_away_before_any_prompt_is_known_has_no_length() -> None:
    engine = Engine()
    engine.arrive(5)
    engine.usage.begin()
    engine.usage.turn_away(2)
    counted = counters(engine)
    assert (counted["arrivals"], counted["promptTokensArrived"]) == (2, 0)
    assert counted["promptLengths"] == [0] * 21


def test_a_length_of_nothing_and_one_beyond_every_bucket_have_their_bucket() -> None:
    engine = Engine()
    engine.arrive(0)
    engine.arrive(10**9)
    lengths = counters(engine)["promptLengths"]
    assert isinstance(lengths, list)
    assert (lengths[0], lengths[-1], len(lengths)) == (1, 1, 21)


def test_sums_of_steps_hold_every_product_of_two_terms() -> None:
    engine = Engine()
    engine.arrive(30)
    engine.usage.record(Scheduler(0, 1), None)
    engine.seconds += 0.25
    engine.usage.record(Scheduler(1, 2, 0.1), Iteration(Prompt(30, 10)))
    engine.usage.record(Scheduler(1, 0, 0.2), Iteration(Prompt(), 2, [0.5, 0.5]))

    steps = counters(engine)["steps"]
    # The second step reads the KV cache as the first step left it: a tenth of 1000 tokens.
    first, second = (1, 30, 0, 0, 0.25), (1, 0, 2, 100, 0.5)
    assert steps == {"moments": pytest.approx(sums_of(first, second))}
    counted = counters(engine)
    assert (counted["promptTokensComputed"], counted["promptTokensCached"]) == (30, 10)
    assert counted["generatedTokens"] == 2
    report = engine.usage.report()
    assert (report["running"], report["kvTokens"], report["kvCapacityTokens"]) == (1, 200, 1000)
    assert (report["maxSequences"], report["maxStepTokens"]) == (16, 2048)


def test_drafts_that_are_accepted_are_more_tokens_of_the_same_sequences() -> None:
    engine = Engine()
    engine.arrive(3)
    engine.usage.record(Scheduler(1), Iteration(Prompt(3), 1, [], time_to_first_tokens_iter=[0.1]))
    assert counters(engine)["decodedTokens"] == 0
    # This step yields the first token of another prompt. Of two decoding sequences, one
    # gets three tokens and the other gets one.
    first = Iteration(Prompt(3), 5, [0.1, 0.1], time_to_first_tokens_iter=[0.2])
    engine.usage.record(Scheduler(3), first)

    counted = counters(engine)
    assert (counted["generatedTokens"], counted["decodedTokens"]) == (6, 4)


def test_a_prompt_counts_in_the_steps_that_compute_it_and_not_where_its_first_token_comes() -> None:
    engine = Engine()
    engine.arrive(3000)
    # This step decodes another sequence before the prompt's first tokens are computed.
    engine.usage.record(Scheduler(2), Iteration(Prompt(), 1, [0.1]))
    first = Scheduler(2, iteration_details=StepDetails(2047, 1))
    engine.usage.record(first, Iteration(Prompt(), 1, [0.5]))
    last = Scheduler(2, iteration_details=StepDetails(953, 1))
    engine.usage.record(last, Iteration(Prompt(3000), 2, [0.25]))

    steps = counters(engine)["steps"]
    rows = [(1, 0, 1, 0, 0.1), (1, 2047, 1, 0, 0.5), (1, 953, 1, 0, 0.25)]
    assert steps == {"moments": pytest.approx(sums_of(*rows))}
    assert counters(engine)["promptTokensComputed"] == 3000


def test_a_step_that_ends_a_silence_teaches_nothing_for_nobody_knows_when_it_began() -> None:
    engine = Engine()
    engine.arrive(30)
    engine.seconds += 0.25
    engine.usage.record(Scheduler(1), Iteration(Prompt(30)))

    assert counters(engine)["steps"] == {"moments": [0.0] * 15}
    assert counters(engine)["promptTokensComputed"] == 30


def test_each_engine_has_steps_of_its_own_and_the_report_has_them_together() -> None:
    engine = Engine()
    engine.usage.limits = EngineLimits(16, 2048, 1000, engines=2)
    engine.arrive(500)
    engine.usage.record(Scheduler(1, 0, 0.5), None, 1)
    engine.seconds += 0.01
    engine.usage.record(Scheduler(3, 1, 0.25), Iteration(Prompt(), 3, [0.01] * 3), 0)
    engine.seconds += 0.19
    chunk = Scheduler(1, 2, 0.6, StepDetails(400, 0))
    engine.usage.record(chunk, None, 1)

    steps = counters(engine)["steps"]
    # No sequence decoded in the second step, so no KV tokens were read.
    rows = [(1, 0, 3, 0, 0.01), (1, 400, 0, 0, 0.2)]
    assert steps == {"moments": pytest.approx(sums_of(*rows))}
    report = engine.usage.report()
    assert report["running"] == 4
    assert (report["kvTokens"], report["kvCapacityTokens"], report["engines"]) == (850, 2000, 2)


def test_a_step_of_a_pipeline_reads_the_kv_tokens_of_its_own_batch() -> None:
    engine = Engine()
    engine.usage.limits = EngineLimits(16, 2048, 1000, pipeline_stages=2)
    engine.arrive(500)
    engine.usage.record(Scheduler(6, 0, 0.5), None)
    engine.seconds += 0.01
    engine.usage.record(Scheduler(6, 0, 0.5), Iteration(Prompt(), 3, [0.02] * 3))

    # Two batches share 500 KV tokens. A token takes as long as a pass through the whole pipeline.
    steps = {"moments": pytest.approx(sums_of((1, 0, 3, 250, 0.02)))}
    assert counters(engine)["steps"] == steps
    assert engine.usage.report()["pipelineStages"] == 2


def test_a_prefill_in_a_pipeline_teaches_nothing_because_its_step_began_before_the_last_ended() -> (
    None
):
    engine = Engine()
    engine.usage.limits = EngineLimits(16, 2048, 1000, pipeline_stages=2)
    engine.arrive(500)
    engine.usage.record(Scheduler(1), None)
    engine.seconds += 0.01
    engine.usage.record(Scheduler(1, 0, 0.1, StepDetails(400, 0)), None)

    assert counters(engine)["steps"] == {"moments": [0.0] * 15}


def test_a_step_that_computes_a_sequence_anew_teaches_nothing() -> None:
    engine = Engine()
    engine.arrive(30)
    engine.usage.record(Scheduler(0, 1), None)
    engine.seconds += 0.2
    engine.usage.record(Scheduler(1, iteration_details=StepDetails(0, 1)), None)

    assert counters(engine)["steps"] == {"moments": [0.0] * 15}


def test_an_engine_that_has_run_dry_begins_its_next_step_nobody_knows_when() -> None:
    engine = Engine()
    engine.arrive(30)
    engine.usage.record(Scheduler(0, 0), Iteration(Prompt(), 1, [0.1]))
    engine.seconds += 5
    engine.usage.record(Scheduler(1), Iteration(Prompt(30)))

    steps = counters(engine)["steps"]
    assert isinstance(steps, dict)
    assert steps["moments"][:3] == [1, 0, 1]


def test_a_step_without_statistics_is_still_a_sign_of_life() -> None:
    engine = Engine()
    engine.arrive(1)
    engine.seconds += 5
    assert engine.usage.stalled_seconds() == 5

    engine.usage.record(None, None)

    assert engine.usage.stalled_seconds() == 0
    assert counters(engine)["steps"] == {"moments": [0.0] * 15}


def test_the_warm_up_is_forgotten() -> None:
    engine = Engine()
    engine.arrive(5)
    engine.usage.begin()
    assert counters(engine)["arrivals"] == 0

    # The warm-up's request no longer counts as waiting, so the next 50 seconds are not a stall.
    engine.seconds += 50
    engine.arrive(1)
    assert engine.usage.stalled_seconds() == 0


@pytest.mark.parametrize(
    ("objectives", "judged", "ttft", "itl", "slo"),
    [
        (Objectives(), 0, 0, 0, 0),
        (Objectives(ttft=0.5), 1, 1, 1, 1),
        (Objectives(ttft=0.4), 1, 0, 1, 0),
        (Objectives(itl=0.1), 1, 1, 1, 1),
        (Objectives(ttft=0.5, itl=0.05), 1, 1, 0, 0),
    ],
)
def test_judges_finished_requests_by_the_objectives(
    objectives: Objectives, judged: int, ttft: int, itl: int, slo: int
) -> None:
    engine = Engine(objectives)
    engine.usage.record(None, Iteration(finished_requests=[Finished(), Finished("abort")]))

    counted = counters(engine)
    assert (counted["finished"], counted["answerTokens"]) == (2, 10)
    found = tuple(counted[name] for name in ("judged", "ttftMet", "itlMet", "sloMet"))
    assert found == (judged, ttft, itl, slo)


def test_an_idle_engine_does_not_stall_however_long() -> None:
    engine = Engine()
    engine.seconds += 1e6
    assert engine.usage.stalled_seconds() == 0
    engine.arrive(1)
    engine.usage.record(Scheduler(1), Iteration(Prompt(1)))
    engine.unfinished = 0
    engine.usage.record(Scheduler(0), Iteration(Prompt(), 1, [0.1]))
    engine.seconds += 1e6
    engine.arrive(1)
    assert engine.usage.stalled_seconds() == 0


def test_clients_that_give_up_and_come_back_do_not_hide_a_hang() -> None:
    engine = Engine()
    for _ in range(10):
        engine.arrive(1)
        engine.seconds += 30
        engine.unfinished = 0
        engine.seconds += 1
    engine.arrive(1)
    assert engine.usage.stalled_seconds() == 310


def test_a_wait_that_nobody_came_back_to_is_forgotten() -> None:
    engine = Engine()
    engine.arrive(1)
    engine.unfinished = 0
    engine.seconds += 61
    engine.arrive(1)
    assert engine.usage.stalled_seconds() == 0


def test_what_is_turned_away_leaves_no_wait_behind() -> None:
    engine = Engine()
    for _ in range(10):
        engine.usage.turn_away(1)
        engine.seconds += 30
    engine.arrive(1)
    assert engine.usage.stalled_seconds() == 0


def test_an_answer_that_was_complete_before_it_was_counted_leaves_no_wait_behind() -> None:
    engine = Engine()
    engine.usage.arrive(1, 1)
    engine.seconds += 30
    engine.arrive(1)
    assert engine.usage.stalled_seconds() == 0


def test_one_engine_that_hangs_shows_while_another_makes_steps() -> None:
    engine = Engine()
    engine.arrive(1, sequences=2)
    engine.usage.record(Scheduler(1), None, 1)
    for _ in range(10):
        engine.seconds += 1
        engine.usage.record(Scheduler(1), Iteration(Prompt(), 1, [0.1]), 0)
    assert engine.usage.stalled_seconds() == 10

    engine.usage.record(Scheduler(1), Iteration(Prompt(), 1, [0.1]), 1)
    engine.seconds += 2
    assert engine.usage.stalled_seconds() == 2


def test_an_engine_without_work_does_not_stall_while_another_makes_steps() -> None:
    engine = Engine()
    engine.arrive(1, sequences=2)
    engine.usage.record(Scheduler(1), None, 1)
    engine.unfinished = 1
    engine.usage.record(Scheduler(0), Iteration(Prompt(), 1, [0.1]), 1)
    engine.seconds += 10
    engine.usage.record(Scheduler(1), Iteration(Prompt(), 1, [0.1]), 0)
    assert engine.usage.stalled_seconds() == 0


async def test_is_served_on_the_management_port_with_the_phase() -> None:
    lifecycle = Lifecycle()
    lifecycle.enter(Phase.READY)
    engine = Engine()
    engine.arrive(7)
    app = create_management_app(
        lifecycle, CollectorRegistry(), engine.usage, asyncio.get_running_loop()
    )

    answer = await Client(app).get("/autoscale")

    assert answer.status == 200
    told = json.loads(json.dumps(engine.usage.report()))
    phase = {"phase": "ready", "draining": False}
    assert answer.json() == {**told, "gpuDutyCyclePercent": None, **phase}
    assert answer.json()["started"] == 1e9


@pytest.mark.parametrize(
    ("phase", "is_draining"),
    [(Phase.LOADING, False), (Phase.READY, False), (Phase.DRAINING, True), (Phase.FAILED, True)],
)
async def test_a_server_that_ends_tells_it_before_its_pod_is_unready(
    phase: Phase, is_draining: bool
) -> None:
    lifecycle = Lifecycle()
    lifecycle.enter(phase)
    report = (await Client(make_management(lifecycle)).get("/autoscale")).json()
    assert report["draining"] is is_draining
    assert "replica" not in report


def test_latencies_of_answers_are_counted_by_quarters_of_a_doubling() -> None:
    engine = Engine()
    single = Finished(num_generation_tokens=1, e2e_latency=0.0005, decode_time=0.0)
    endless = Finished(e2e_latency=1e6)
    engine.usage.record(None, Iteration(finished_requests=[Finished(), single, endless]))
    engine.usage.record(None, Iteration(finished_requests=[Finished("abort")]))

    counted = counters(engine)
    ttft, itl = counted["ttftMilliseconds"], counted["itlMilliseconds"]
    assert isinstance(ttft, list)
    assert isinstance(itl, list)
    # A latency of 500 ms is in (2^8.75, 2^9], and 100 ms is in (2^6.5, 2^6.75].
    assert (ttft[36], ttft[0], ttft[-1], sum(ttft), len(ttft)) == (1, 1, 1, 3, 73)
    assert (itl[27], sum(itl)) == (2, 2)


async def test_a_slow_gpu_driver_holds_up_nothing_but_the_report_that_asks_it() -> None:
    engine, asked, may_answer = Engine(), threading.Event(), threading.Event()

    def duty_cycle() -> float | None:
        asked.set()
        return 97.0 if may_answer.wait(5) else None

    engine.usage.gpu_duty_cycle_percent = duty_cycle
    app = create_management_app(
        Lifecycle(), CollectorRegistry(), engine.usage, asyncio.get_running_loop()
    )
    asking = asyncio.ensure_future(Client(app).get("/autoscale"))
    assert await asyncio.to_thread(asked.wait, 5)
    assert (await Client(app).get("/livez")).status == 200
    assert not asking.done()
    engine.arrive(7)

    may_answer.set()

    report = (await asking).json()
    assert report["gpuDutyCyclePercent"] == 97
    assert report["counters"]["arrivals"] == report["waiting"] == 1
