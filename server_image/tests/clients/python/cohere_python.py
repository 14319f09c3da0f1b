"""Runs the cases of Cohere's client for Python, with embeddings and with reranked documents."""

import cases
import cohere
import cohere.core
from cases import MODEL, TITLES, case

client = cohere.ClientV2(api_key=cases.KEY, base_url=cases.URL)
client_v1 = cohere.Client(api_key=cases.KEY, base_url=cases.URL)
ONCE = {"max_retries": 0}


@case("embed", needs="vectors")
def embed():
    return client.embed(
        model=MODEL,
        texts=TITLES,
        input_type="search_document",
        embedding_types=["float"],
        request_options=ONCE,
    )


@case("embed, as base64", needs="vectors")
def embed_base64():
    return client.embed(
        model=MODEL,
        texts=TITLES,
        input_type="search_query",
        embedding_types=["base64"],
        request_options=ONCE,
    )


@case("embed, truncated", needs="vectors")
def embed_truncated():
    return client.embed(
        model=MODEL,
        texts=["word " * 3000],
        input_type="search_document",
        embedding_types=["float"],
        truncate="END",
        request_options=ONCE,
    )


@case("rerank, version 2", needs="vectors")
def rerank():
    return client.rerank(
        model=MODEL, query="the sea", documents=TITLES, top_n=2, request_options=ONCE
    )


@case("rerank, version 1", needs="vectors")
def rerank_v1():
    return client_v1.rerank(
        model=MODEL, query="the sea", documents=TITLES, return_documents=True, request_options=ONCE
    )


@case("refusal, unknown model", needs="vectors")
def refusal_model():
    return cases.refusal(
        lambda: client.rerank(model="other", query="a", documents=["a"], request_options=ONCE),
        cohere.core.ApiError,
    )


if __name__ == "__main__":
    cases.main()
