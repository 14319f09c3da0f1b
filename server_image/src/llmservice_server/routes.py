"""Lists all routes of the API port that serve clients.

By default, the gate admits only these routes. The limits of a body depend on them. The page at
/docs and docs/routes.md are generated from them.

vLLM also registers administration routes (pausing, weights, adapters, scaling, profiling), most of
which need no key. Because this list names the open routes, new routes of a later vLLM stay closed
until they have been reviewed. `CLOSED` contains the reviewed routes that stay closed.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar
from urllib.parse import unquote

T = TypeVar("T")


class Models(StrEnum):
    """Kinds of models that have a route."""

    ALL = "all"
    GENERATING = "models that generate text"
    DECIDING = "models of the few architectures for which vLLM supports it"
    HEARING = "models that transcribe speech"
    POOLING = "embedding, classification and reward models"
    EMBEDDING = "embedding models"
    CLASSIFYING = "classification models"
    SCORING = "models that score pairs of texts"


@dataclass(frozen=True)
class Route:
    """One path of the API."""

    path: str
    """Path of the route. A name in braces matches any text without a slash. `{model}` also matches
    slashes, because names of models may contain them."""

    purpose: str
    """Short description of the response, for the documentation."""

    models: Models = Models.ALL
    methods: tuple[str, ...] = ("POST",)

    texts: tuple[str, ...] = ()
    """Fields that contain one text or several. Each text becomes a request to the engine."""

    repeated: tuple[str, ...] = ()
    """Fields whose text is repeated in the prompt of every text."""

    slow_fields: tuple[str, ...] = ()
    """Fields that make vLLM tokenize the texts on the event loop that serves every client."""

    max_body_bytes: int | None = None
    """Maximum size of a body in bytes, if the route allows less than the server; otherwise None."""

    asks_for_all: bool = False
    """Whether vLLM requests room in its queue for all texts together. Otherwise, it requests room
    for the answers to each text separately."""

    takes_token_ids: bool = False
    """Whether a body may consist of token ids, which are many small values."""

    example: Mapping[str, object] = field(default_factory=dict)
    """Body that works with the model, without the model's name; empty when there is none."""

    names_model: bool = True
    """Whether a body may contain the model's name."""

    is_of_anthropic: bool = False
    """Whether the route has the form of Anthropic's API, whose clients read the header
    request-id."""

    needs_key: bool = True
    """Whether the route needs an API key if the server has keys."""


_QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
_BEGINNING = "The capital of France is"
_RANKED = {"query": "capital of France", "documents": ["Paris", "Rome"]}
_PAIR = {"text_1": "capital of France", "text_2": "Paris"}
_CUTS = ("max_tokens_per_query", "max_tokens_per_doc")
_SCORED = ("data_1", "data_2", "text_1", "text_2", "queries", "documents", "items")

_SCORE = Route(
    "/score",
    "scores of pairs",
    Models.SCORING,
    texts=_SCORED,
    slow_fields=_CUTS,
    example=_PAIR,
)
_RERANK = Route(
    "/rerank",
    "documents in the order of their relevance, in the form of Jina's API",
    Models.SCORING,
    texts=("documents",),
    repeated=("query",),
    slow_fields=_CUTS,
    example=_RANKED,
)


def _same_as(route: Route, path: str, where: str = "") -> Route:
    """Return a copy of the route at another path; `where` ends the description of its purpose."""
    return replace(route, path=path, purpose=f"the same as `{route.path}`{where}")


ROUTES = (
    Route(
        "/v1/chat/completions",
        "answer to a conversation",
        Models.GENERATING,
        example={"messages": _QUESTION, "max_tokens": 16},
    ),
    Route(
        "/v1/chat/completions/batch",
        "answers to several conversations",
        Models.GENERATING,
        texts=("messages",),
        example={"messages": [_QUESTION], "max_tokens": 16},
    ),
    Route(
        "/v1/completions",
        "continuation of one prompt or several",
        Models.GENERATING,
        texts=("prompt", "prompt_embeds"),
        takes_token_ids=True,
        example={"prompt": _BEGINNING, "max_tokens": 16},
    ),
    Route(
        "/v1/responses",
        "answer in the form of OpenAI's Responses API",
        Models.GENERATING,
        example={"input": "Say hello.", "max_output_tokens": 16},
    ),
    Route(
        "/v1/responses/{response_id}",
        "stored or running response",
        Models.GENERATING,
        ("GET",),
    ),
    Route(
        "/v1/responses/{response_id}/cancel",
        "end of a running response",
        Models.GENERATING,
    ),
    Route(
        "/v1/messages",
        "answer in the form of Anthropic's API",
        Models.GENERATING,
        is_of_anthropic=True,
        example={"messages": _QUESTION, "max_tokens": 16},
    ),
    Route(
        "/v1/messages/count_tokens",
        "number of tokens of a conversation, in the form of Anthropic's API",
        Models.GENERATING,
        is_of_anthropic=True,
        example={"messages": _QUESTION},
    ),
    Route(
        "/generate",
        "continuation of a prompt, in a minimal form",
        Models.GENERATING,
        takes_token_ids=True,
        example={"prompt": _BEGINNING, "max_tokens": 16},
        names_model=False,
    ),
    Route(
        "/generative_scoring",
        "probabilities of given next tokens, for several items",
        Models.GENERATING,
        texts=("items",),
        repeated=("query",),
        # vLLM tokenizes the texts on the event loop that serves every client.
        max_body_bytes=256 * 1024,
        asks_for_all=True,
        takes_token_ids=True,
        example={"query": "Is it a city? ", "items": ["Paris", "Seine"], "label_token_ids": [1, 2]},
    ),
    Route(
        "/v1/systemone",
        "answers to questions with given options",
        Models.DECIDING,
        texts=("questions",),
        repeated=("state", "instructions"),
        asks_for_all=True,
    ),
    Route(
        "/v1/decisions",
        "answers to questions with given options, in the form of OpenAI's Decisions API, since "
        "vLLM 0.33",
        Models.DECIDING,
        texts=("questions",),
        repeated=("input",),
        asks_for_all=True,
    ),
    Route("/v1/audio/transcriptions", "text of a recording", Models.HEARING),
    Route("/v1/audio/translations", "English text of a recording", Models.HEARING),
    Route(
        "/v1/embeddings",
        "vectors of texts",
        Models.EMBEDDING,
        texts=("input",),
        takes_token_ids=True,
        example={"input": "The capital of France is Paris."},
    ),
    Route(
        "/v2/embed",
        "vectors of texts, in the form of Cohere's API",
        Models.EMBEDDING,
        texts=("texts", "images", "inputs"),
        example={
            "texts": ["The capital of France is Paris."],
            "embedding_types": ["float"],
        },
    ),
    Route(
        "/classify",
        "probabilities of the labels of texts",
        Models.CLASSIFYING,
        texts=("input",),
        takes_token_ids=True,
        example={"input": "The food was good."},
    ),
    Route(
        "/pooling",
        "output of the model's pooler, such as the vector or the reward of each token",
        Models.POOLING,
        texts=("input", "data"),
        takes_token_ids=True,
        example={"input": "The capital of France is Paris."},
    ),
    _SCORE,
    _same_as(_SCORE, "/v1/score"),
    _RERANK,
    _same_as(_RERANK, "/v1/rerank"),
    _same_as(_RERANK, "/v2/rerank", ", where Cohere's clients expect it"),
    Route(
        "/tokenize",
        "tokens of a text or a conversation",
        # vLLM has no limit for this text, and the texts of other requests wait while it is
        # tokenized.
        max_body_bytes=1024 * 1024,
        takes_token_ids=True,
        example={"prompt": _BEGINNING},
    ),
    Route(
        "/detokenize",
        "text of tokens",
        takes_token_ids=True,
        example={"tokens": [1, 2, 3]},
    ),
    Route("/v1/models", "names of the served models", methods=("GET",)),
    Route("/v1/models/{model}", "one of the served models", methods=("GET",)),
    Route("/health", "200 while the server serves, else 503", methods=("GET",), needs_key=False),
    Route(
        "/ping",
        "the same as `/health`",
        methods=("GET", "POST"),
        needs_key=False,
    ),
    Route("/load", "number of requests in progress", methods=("GET",)),
    Route("/version", "version of vLLM", methods=("GET",)),
    Route("/docs", "page with an example for each route of the model", methods=("GET",)),
    Route("/openapi.json", "OpenAPI document of the model's routes", methods=("GET",)),
)
"""Every route for clients."""

CLOSED: Mapping[str, tuple[str, ...]] = {
    "They change the server, or are meant for its administrator.": (
        "/abort_requests",
        "/collective_rpc",
        "/fault_tolerance/apply",
        "/fault_tolerance/status",
        "/finish_weight_update",
        "/get_world_size",
        "/init_weight_transfer_engine",
        "/is_paused",
        "/is_scaling_elastic_ep",
        "/is_sleeping",
        "/kv_event_sources",
        "/pause",
        "/release_kv_cache_memory",
        "/reset_encoder_cache",
        "/reset_mm_cache",
        "/reset_prefix_cache",
        "/resume",
        "/scale_elastic_ep",
        "/server_info",
        "/shutdown_weight_transfer_engine",
        "/sleep",
        "/start_draft_weight_update",
        "/start_profile",
        "/start_weight_update",
        "/stop_profile",
        "/update_weight_version",
        "/update_weights",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/wake_up",
        "/weight_checker",
        "/weight_info",
    ),
    "They pass tokens between servers that together do the work of one server.": (
        "/inference/v1/abort_requests",
        "/inference/v1/generate",
        "/v1/chat/completions/derender",
        "/v1/chat/completions/render",
        "/v1/completions/derender",
        "/v1/completions/render",
        "/v1/messages/render",
        "/v1/responses/render",
    ),
    "The management port has the metrics.": ("/metrics",),
    "The server's page at `/docs` replaces them.": ("/docs/oauth2-redirect", "/redoc"),
    "Its body can be that of any other route, and the limits of a body depend on the route.": (
        "/invocations",
    ),
    "It shows files of the model, such as its chat template.": ("/tokenizer_info",),
    "It is a websocket, which the server does not support.": ("/v1/realtime",),
    "They need a library that the image does not have.": (
        "/cohere/v2/chat",
        "/cohere/v2/chat/render",
    ),
}
"""Reason -> routes of vLLM that stay closed for this reason."""

ROUTE_OF_PATH: Mapping[str, Route] = {route.path: route for route in ROUTES}
"""Path -> route, for every route. A path may contain a name in braces."""


def _pattern(path: str) -> re.Pattern[str]:
    """Return the pattern for request paths, given a route's path with a name in braces."""
    any_text = {"model": ".*[^/]"}
    plain_and_names = re.split(r"\{(\w+)\}", path)
    return re.compile(
        "".join(
            any_text.get(part, "[^/]+") if number % 2 else re.escape(part)
            for number, part in enumerate(plain_and_names)
        )
    )


_PATTERNS = tuple((_pattern(route.path), route) for route in ROUTES if "{" in route.path)


def find_route(method: str, path: str) -> Route | None:
    """Return the route of a request; None if no route matches.

    For a plain path, any method matches, because the framework answers a wrong method with 405. For
    a path with a name in braces, the method must match, because vLLM may have another route there
    for another method.
    """
    if "{" not in path and (route := ROUTE_OF_PATH.get(path)) is not None:
        return route
    for pattern, route in _PATTERNS:
        if method in route.methods and pattern.fullmatch(path):
            return route
    return None


def served_first(registered: Iterable[T]) -> list[T]:
    """Return the framework's routes in the order of `ROUTES`, which begins with the most used ones.

    All other routes follow in their original order. Routes with the same path also keep their
    order.
    """
    places = {path: place for place, path in enumerate(ROUTE_OF_PATH)}
    return sorted(registered, key=lambda route: places.get(getattr(route, "path", ""), len(places)))


def without_slashes(method: str, raw_path: bytes) -> str | None:
    """Return the address of the route that matches the path once its trailing slashes are removed.

    Returns None if the path has no trailing slash or no such route exists. The address has no host,
    because the only known host is the one that the client sent. For one trailing slash, the address
    is relative, so it also works behind a proxy that serves the API below a prefix. For several
    slashes, it is an absolute path, because clients resolve relative addresses differently in this
    case.
    """
    path = raw_path.rstrip(b"/")
    slashes = len(raw_path) - len(path)
    if not slashes or find_route(method, unquote(path.decode("ascii"))) is None:
        return None
    plain = path.decode("ascii")
    return f"../{plain.rpartition('/')[2]}" if slashes == 1 else plain
