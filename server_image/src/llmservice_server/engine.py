"""Wraps vLLM in the few operations that the server needs."""

import re
import uuid
from argparse import Namespace
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from llmservice_server.adapter_files import AdapterLimits
from llmservice_server.body_shape import MAX_INPUTS
from llmservice_server.cache_salt import salted
from llmservice_server.compat import Vllm
from llmservice_server.documentation import document
from llmservice_server.engine_adapters import EngineAdapters
from llmservice_server.engine_usage import EngineUsage
from llmservice_server.errors import (
    ENGINE_FAILED_MESSAGE,
    EngineUnavailable,
    RequestRefused,
    answer_http_exception,
    answer_refused,
    answer_unavailable,
    answer_unexpected,
    answer_unprocessable,
)
from llmservice_server.generate import (
    GenerateRequest,
    Piece,
    TokenizedPrompt,
    create_generate_router,
)
from llmservice_server.lookups import create_lookup_router
from llmservice_server.queue_place import (
    Place,
    PromisedPlaces,
    Refusal,
    current_place,
    note_refusal,
)
from llmservice_server.routers import current_router_headers
from llmservice_server.routes import served_first
from llmservice_server.stored_responses import note_stored_responses
from llmservice_server.stream_chunks import write_chunks_directly
from llmservice_server.stream_errors import begin_responses_with_the_engine, pass_errors_of_messages
from llmservice_server.structures import Compiler, why_not_compiled, why_too_large

_STRUCTURE = "structured_outputs"
"""Name of the request parameter that appears in errors about the structure of the answer."""

_OF_A_FEW_MODELS = {
    "/v1/decisions": "openai_serving_decisions",
    "/v1/systemone": "serving_structured_decisions",
}
"""Route -> attribute of the application's state that contains vLLM's handler. The handler is None
for a model without the route."""

_STEP_OF_BEAMS = re.compile(r"-beam-\d+$")
"""Pattern of the end of the request ids in vLLM's beam search."""


class Engine:
    """A running engine, which works in a separate process."""

    def __init__(self, vllm: Vllm, llm: Any, arguments: Namespace) -> None:
        self._vllm = vllm
        self._llm = llm
        self._arguments = arguments

    @property
    def max_model_len(self) -> int:
        return int(self._llm.model_config.max_model_len)

    @property
    def has_died(self) -> bool:
        """Whether the engine is dead. A dead engine never recovers."""
        return bool(self._llm.errored)

    async def tokenize(self, prompt: str) -> TokenizedPrompt:
        """Return the prompt in tokens.

        Raises vLLM's validation error for a prompt that is too long.
        """
        parsed = self._vllm.parse_model_prompt(self._llm.model_config, prompt)
        (engine_input,) = await self._llm.renderer.render_cmpl_async([parsed])
        return TokenizedPrompt(len(engine_input["prompt_token_ids"]), engine_input)

    async def generate(
        self, prompt: TokenizedPrompt, wanted: GenerateRequest
    ) -> AsyncGenerator[Piece, None]:
        """Generate an answer: in pieces when streaming, otherwise in one piece.

        Raises EngineUnavailable when the engine dies or cannot serve the request now.
        """
        kinds = self._vllm.RequestOutputKind
        parameters = self._vllm.SamplingParams(
            output_kind=kinds.DELTA if wanted.stream else kinds.FINAL_ONLY,
            **wanted.model_dump(exclude={"prompt", "stream"}),
        )
        request_id = f"generate-{uuid.uuid4().hex}"
        try:
            async with aclosing(
                self._llm.generate(prompt.engine_input, parameters, request_id)
            ) as outputs:
                async for output in outputs:
                    (completion,) = output.outputs
                    yield Piece(
                        completion.text, len(completion.token_ids), completion.finish_reason
                    )
        except self._vllm.EngineDeadError as death:
            raise EngineUnavailable(ENGINE_FAILED_MESSAGE) from death
        except self._vllm.GracefulHTTPError as error:
            raise EngineUnavailable(str(error)) from error

    async def build_app(
        self, with_administration: bool, requests_in_progress: Callable[[], int]
    ) -> FastAPI:
        """Return vLLM's OpenAI application with the server's own routes added.

        /generate is registered on vLLM's own application, so vLLM's validation errors get the same
        responses there as on other routes.
        """
        tasks = await self._llm.get_supported_tasks()
        app: FastAPI = self._vllm.build_app(self._arguments, tasks, self._llm.model_config)
        await self._vllm.init_app_state(self._llm, app.state, self._arguments, tasks)
        # vLLM's handler of engine errors would stop the server that it finds here. This server
        # exits the process itself.
        app.state.server = None
        if "generate" in tasks:
            app.include_router(create_generate_router(self))
            messages = app.state.anthropic_serving_messages
            pass_errors_of_messages(messages, self._vllm.EngineDeadError)
            responses = app.state.openai_serving_responses
            begin_responses_with_the_engine(responses)
            note_stored_responses(responses)
            write_chunks_directly(
                app.state.openai_serving_completion, app.state.openai_serving_chat
            )
        models = app.state.openai_serving_models
        lookups = create_lookup_router(models, requests_in_progress)
        # The lookup routes come before vLLM's routes, because one of vLLM's has the same path.
        app.router.routes[:0] = lookups.routes
        # Every request is matched against the routes in order, once for its metrics and once for
        # its response. So the most used routes come first.
        app.router.routes[:] = served_first(app.router.routes)
        # A redirect would repeat the client's Host header. The gate's own redirect contains no
        # host.
        app.router.redirect_slashes = False
        app.add_exception_handler(Exception, answer_unexpected)
        app.add_exception_handler(HTTPException, answer_http_exception)
        app.add_exception_handler(RequestRefused, answer_refused)
        app.add_exception_handler(EngineUnavailable, answer_unavailable)
        app.add_exception_handler(self._vllm.EngineDeadError, answer_unavailable)
        app.add_exception_handler(self._vllm.EngineGenerateError, answer_unprocessable)
        # The gate applies the rules for other origins, so that they also cover its own responses.
        app.user_middleware[:] = [
            each
            for each in app.user_middleware
            if each.cls.__name__ != CORSMiddleware.__name__  # type: ignore[attr-defined]
        ]
        # vLLM has already built the middleware stack. None makes the next request build it again,
        # with the server's handlers.
        app.middleware_stack = None
        # vLLM registers these routes for every model, but they work for only a few architectures.
        absent = [
            path
            for path, state in _OF_A_FEW_MODELS.items()
            if getattr(app.state, state, None) is None
        ]
        document(app, models.model_name(), with_administration, absent)
        return app

    def adapters(self, app: FastAPI) -> EngineAdapters:
        """Return the engine's LoRA adapters, which `app` serves."""
        return EngineAdapters(self._vllm, self._llm, app.state.openai_serving_models)

    def adapter_limits(self, max_bytes: int) -> AdapterLimits:
        """Return the limits of a LoRA adapter. `max_bytes` limits the size of its weights."""
        model = self._llm.model_config.hf_text_config
        return AdapterLimits(
            self._llm.vllm_config.lora_config.max_lora_rank,
            max_bytes,
            hidden_size=getattr(model, "hidden_size", None),
            layers=getattr(model, "num_hidden_layers", None),
        )

    async def warm_up(self) -> None:
        """Generate a few tokens, because the first request triggers lazy compilation.

        Does nothing for a model that generates no text.
        """
        if "generate" not in await self._llm.get_supported_tasks():
            return
        wanted = GenerateRequest(prompt="Hello", max_tokens=2, ignore_eos=True)
        pieces = self.generate(await self.tokenize(wanted.prompt), wanted)
        with self.unseen():
            async with aclosing(pieces):
                async for _ in pieces:
                    pass

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Keep the server's own requests out of the engine's metrics and traces.

        While the context is open, they record no request at all.
        """
        loggers, processor = self._llm.logger_manager, self._llm.output_processor
        traces = processor.tracing_enabled
        loggers.record = lambda *_, **__: None
        processor.tracing_enabled = False
        try:
            yield
        finally:
            del loggers.record
            processor.tracing_enabled = traces

    def shutdown(self) -> None:
        """Stop the engine's processes; blocks until they are gone."""
        self._llm.shutdown()


def observed_llm(vllm: Vllm, usage: EngineUsage, max_choices: int) -> Any:
    """Return a subclass of AsyncLLM that counts and limits its requests."""
    promised, compiler = PromisedPlaces(), Compiler()
    max_sequences = max(MAX_INPUTS, max_choices)

    def prepare(request: Any, llm: Any) -> None:
        """Change a request before the engine gets it."""
        request.cache_salt = salted(request.cache_salt)
        usage.keys.begin(request.request_id)
        if not _STEP_OF_BEAMS.search(request.request_id):
            # vLLM measures TTFT from the arrival. A beam search sends a request for each of its
            # tokens, and the router held none of these.
            request.arrival_time -= current_router_headers.get().held_seconds
        if getattr(request.sampling_params, "structured_outputs", None) is not None:
            compiler.choose(llm.vllm_config, llm.renderer.tokenizer, request.sampling_params)

    class ObservedLLM(vllm.AsyncLLM):  # type: ignore[misc,name-defined]
        async def add_request(
            self, request_id: str, prompt: Any, params: Any, *arguments: Any, **more: Any
        ) -> Any:
            if structure := getattr(params, "structured_outputs", None):
                reason = why_too_large(structure)
                if reason is not None:
                    raise vllm.VLLMValidationError(reason, parameter=_STRUCTURE)
            try:
                queue = await super().add_request(request_id, prompt, params, *arguments, **more)
            except vllm.VLLMValidationError as error:
                if words := why_not_compiled(error):
                    raise vllm.VLLMValidationError(words, parameter=_STRUCTURE) from error
                raise
            except (OverflowError, TypeError, ValueError) as error:
                # Some values cannot be sent to the engine, such as a number beyond 64 bits or a
                # lone surrogate. vLLM would report an internal error, with the status 500 in a
                # stream.
                raise vllm.VLLMValidationError(
                    f"a value of the request cannot be encoded: {error}"
                ) from error
            tokens = prompt.get("prompt_token_ids", ()) if isinstance(prompt, dict) else ()
            sequences, place = getattr(params, "n", 1), current_place.get()
            is_step_of_beams = _STEP_OF_BEAMS.search(request_id) is not None
            if place is None or place.is_demand(sequences) or not is_step_of_beams:
                usage.arrive(len(tokens), sequences)
            return queue

        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            processor = self.input_processor
            assign = processor.assign_request_id

            def prepare_and_assign(request: Any) -> None:
                prepare(request, self)
                assign(request)

            # vLLM calls this function once for each request. For a request with several answers, it
            # then makes a copy for each answer.
            processor.assign_request_id = prepare_and_assign

        async def _add_request(self, request: Any, *arguments: Any, **more: Any) -> None:
            try:
                await super()._add_request(request, *arguments, **more)
            except BaseException:
                # vLLM counts the request as unfinished before it sends the request to the engine.
                # Without an abort, the request would stay in the queue for ever and the engine
                # would look hung.
                await self.abort(request.request_id, internal=True)
                raise

        def generate(
            self, prompt: Any, sampling_params: Any, request_id: str, *arguments: Any, **more: Any
        ) -> AsyncGenerator[Any, None]:
            outputs = super().generate(prompt, sampling_params, request_id, *arguments, **more)
            if getattr(sampling_params, "structured_outputs", None) is None:
                return outputs  # type: ignore[no-any-return]

            def why_it_failed() -> str | None:
                tokenizer = self.renderer.tokenizer
                return compiler.why_it_failed(self.vllm_config, tokenizer, sampling_params)

            return _followed(vllm, outputs, why_it_failed)

        def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
            # vLLM calls this method first. A request for too many answers is an error of the
            # client. A retry would not help, in contrast to a full queue.
            place = current_place.get()
            choices = n if place is None else place.choices(n)
            if choices > max_choices:
                raise vllm.VLLMValidationError(
                    f"n is {choices}; one request may ask for at most {max_choices} answers",
                    parameter="n",
                )
            if place is None:
                self._check_queue(n, n, request_id)
                return
            if not place.is_admitted:
                self._admit(place, n, request_id)
            if request_id is not None:
                # vLLM calls this method without an id first. After a call with an id, the sequences
                # enter the queue.
                place.enter(n)

        def _admit(self, place: Place, n: int, request_id: str | None) -> None:
            wanted = place.wanted(n)
            if wanted > max_sequences:
                raise vllm.VLLMValidationError(
                    f"the request asks for {wanted} answers in all; one request may ask for at "
                    f"most {max_sequences}, so split it into several requests",
                    parameter="n",
                )
            if usage.waiting() or promised.count:
                self._check_queue(promised.count + wanted, wanted, request_id)
            # While no request waits, a request of any size is admitted, because a retry would find
            # no more room.
            place.admit(wanted, promised)

        def _check_queue(self, places: int, wanted: int, request_id: str | None) -> None:
            try:
                super().check_admission(places, request_id)
            except Exception:
                # vLLM calls this method before it reads the prompt, and again when it adds the
                # request. A refusal ends the request, so its sequences are counted only once. If a
                # router sends the request to another replica, only that replica counts them.
                note_refusal(Refusal.QUEUE_FULL)
                if not current_router_headers.get().will_retry:
                    usage.turn_away(wanted)
                raise

    return ObservedLLM


def prompts_without_token(llm: Any) -> Iterator[int]:
    """Yield the prompt length of each sequence without a first token, in order of arrival."""
    for state in llm.output_processor.request_states.values():
        if state.is_prefilling:
            yield state.prompt_len


def report_aborts(vllm: Vllm, llm: Any) -> None:
    """Report an abort by the engine as an error of the request, not as the end of its answer.

    An engine that is stopped aborts its requests. With data parallelism, the death of one engine
    stops the others. An abort by a client does not come from the engine, so it is not affected.
    """
    processor = llm.output_processor
    process = processor.process_outputs

    def process_honestly(outputs: Any, *arguments: Any, **more: Any) -> Any:
        for output in outputs:
            if output.finish_reason is not None and str(output.finish_reason) == "abort":
                state = processor.request_states.get(output.request_id)
                if state is not None and state.queue is not None:
                    # The queue keeps an error even when an output follows it. vLLM returns the
                    # status of this error on every route, even before it has noticed that the
                    # engine is dead.
                    state.queue.put(
                        vllm.GracefulHTTPError(
                            ENGINE_FAILED_MESSAGE, HTTPStatus.SERVICE_UNAVAILABLE
                        )
                    )
        return process(outputs, *arguments, **more)

    processor.process_outputs = process_honestly


async def _followed(
    vllm: Vllm, outputs: AsyncGenerator[Any, None], why_it_failed: Callable[[], str | None]
) -> AsyncGenerator[Any, None]:
    """Yield the outputs; raise vLLM's validation error if the engine rejects the structure.

    The error contains the cause. vLLM detects a rejected structure only at the first token, and
    reports an internal error. Since 0.33, vLLM reports some rejections in words that only help the
    owner of the server.
    """
    async with aclosing(outputs):
        try:
            async for output in outputs:
                if any(choice.finish_reason == "error" for choice in output.outputs):
                    raise vllm.VLLMValidationError(
                        why_it_failed()
                        or "the engine could not follow the requested structure; it may refer to "
                        "itself endlessly, or allow no text",
                        parameter=_STRUCTURE,
                    )
                yield output
        except vllm.VLLMValidationError as error:
            if error.parameter is None and (words := why_it_failed()):
                raise vllm.VLLMValidationError(words, parameter=_STRUCTURE) from error
            raise


def step_recorder(vllm: Vllm, usage: EngineUsage, *, logs_steps: bool) -> Any:
    """Return the class of a stat logger that records every step of the engine in `usage`.

    vLLM calls this logger before its own loggers. Without `logs_steps`, this logger removes the
    data from which vLLM's loggers would write one line per step.
    """

    class StepRecorder(vllm.StatLoggerBase):  # type: ignore[misc,name-defined]
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def record(
            self,
            scheduler_stats: Any = None,
            iteration_stats: Any = None,
            *_: Any,
            engine_idx: int = 0,
            **__: Any,
        ) -> None:
            usage.record(scheduler_stats, iteration_stats, engine_idx)
            if not logs_steps and scheduler_stats is not None:
                scheduler_stats.iteration_details = None

        def log_engine_initialized(self) -> None:
            pass

    return StepRecorder
