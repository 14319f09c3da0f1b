from server_support.steps import Engine, Found, Iteration, Prompt, Scheduler, StepDetails


def told(engine: Engine) -> tuple[object, object]:
    """Return the reported prompt tokens that wait, and those still to compute."""
    report = engine.usage.report()
    return report["queuedPromptTokens"], report["leftPromptTokens"]


def step(engine: Engine, running: int, computed: int, decoding: int = 0, found: int = 0) -> None:
    """Record a step that yields no first token."""
    details = StepDetails(computed, decoding)
    scheduler = Scheduler(running, iteration_details=details, prefix_cache_stats=Found(found))
    engine.usage.record(scheduler, Iteration(inter_token_latencies_iter=[0.1] * decoding))


def last_step(
    engine: Engine, running: int, computed: int, whole: Prompt, decoding: int = 0
) -> None:
    """Record a step that yields the first token of the oldest prompt."""
    engine.prompts.pop(0)
    gaps = [0.1] * decoding
    iteration = Iteration(whole, 1 + decoding, gaps, time_to_first_tokens_iter=[1.0])
    details = StepDetails(computed, decoding)
    engine.usage.record(Scheduler(running, iteration_details=details), iteration)


def test_a_prompt_waits_until_the_engine_begins_it_and_is_left_until_it_is_computed() -> None:
    engine = Engine()
    assert told(engine) == (0, 0)
    engine.arrive(5000)
    engine.arrive(300)
    engine.arrive(3000)
    assert told(engine) == (8300, 8300)

    step(engine, running=1, computed=2048)
    assert told(engine) == (3300, 6252)
    step(engine, running=1, computed=2048)
    assert told(engine) == (3300, 4204)
    # This step computes 904 tokens of the first prompt, the whole second one, and a part of the
    # third one.
    engine.prompts.pop(0)
    last_step(engine, running=3, computed=2048, whole=Prompt(5300))
    assert told(engine) == (0, 2156)
    step(engine, running=3, computed=2046, decoding=2)
    assert told(engine) == (0, 110)
    last_step(engine, running=3, computed=110, whole=Prompt(3000), decoding=2)
    assert told(engine) == (0, 0)


def test_what_the_cache_holds_is_not_left() -> None:
    engine = Engine()
    engine.arrive(10_000)
    step(engine, running=1, computed=2048, found=6000)
    assert told(engine) == (0, 10_000 - 8048)
    last_step(engine, running=1, computed=1952, whole=Prompt(4000, 6000))
    assert told(engine) == (0, 0)


def test_a_cached_prompt_that_is_looked_up_one_step_early_keeps_its_discount() -> None:
    engine = Engine()
    engine.arrive(1000)
    engine.arrive(9000)
    # While the first step runs, vLLM plans the second one, in which both prompts take part.
    step(engine, running=2, computed=900, found=6000)
    last_step(engine, running=2, computed=2048, whole=Prompt(1000))
    assert told(engine) == (0, 9000 - 6000 - 1948)


def test_tokens_of_a_request_that_was_aborted_are_not_those_of_the_next() -> None:
    engine = Engine()
    engine.arrive(5000)
    step(engine, running=1, computed=2048)
    engine.prompts.clear()
    engine.unfinished = 0
    engine.usage.record(Scheduler(0), Iteration())
    engine.arrive(4000)
    step(engine, running=1, computed=1000)
    assert told(engine) == (0, 3000)


def test_under_constant_load_the_tokens_of_aborted_requests_last_for_one_prompt() -> None:
    engine = Engine()
    engine.arrive(5000)
    engine.arrive(3000)
    step(engine, running=2, computed=4000)
    # The client of the first prompt leaves. The step after that completes the second prompt and
    # begins a third one.
    engine.prompts.pop(0)
    engine.unfinished -= 1
    engine.arrive(6000)
    last_step(engine, running=2, computed=2000, whole=Prompt(3000))
    assert told(engine) == (0, 4000)
    step(engine, running=2, computed=2000, decoding=1)
    assert told(engine) == (0, 2000)


def test_prompts_of_all_engines_count_together() -> None:
    engine = Engine()
    for tokens in (4000, 6000, 500):
        engine.arrive(tokens)
    for number, computed in ((0, 1000), (1, 2000)):
        scheduler = Scheduler(1, iteration_details=StepDetails(computed, 0))
        engine.usage.record(scheduler, Iteration(), number)
    assert told(engine) == (500, 500 + 4000 + 6000 - 3000)


def test_a_running_engine_leaves_nothing_of_sequences_that_decode() -> None:
    engine = Engine()
    engine.arrive(100)
    last_step(engine, running=1, computed=100, whole=Prompt(100))
    for _ in range(3):
        step(engine, running=1, computed=0, decoding=1)
        assert told(engine) == (0, 0)


def test_an_engine_without_statistics_leaves_all_prompts() -> None:
    engine = Engine()
    engine.arrive(100)
    engine.usage.record(None, None)
    assert told(engine) == (100, 100)
