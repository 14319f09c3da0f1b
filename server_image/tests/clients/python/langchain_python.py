"""Runs the cases of LangChain's classes for OpenAI, Anthropic and Cohere."""

import os
from importlib.util import find_spec
from pathlib import Path

import cases
import cohere.core
from cases import MODEL, QUESTION, TITLES, WEATHER_QUESTION, case
from langchain_anthropic import ChatAnthropic
from langchain_cohere import CohereRerank
from langchain_core.documents import Document
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

# The class for embeddings would download OpenAI's vocabulary. LiteLLM contains a copy.
_litellm = Path(find_spec("litellm").origin).parent
os.environ["TIKTOKEN_CACHE_DIR"] = str(_litellm / "litellm_core_utils" / "tokenizers")

SERVER = {"base_url": f"{cases.URL}/v1", "api_key": cases.KEY, "max_retries": 0}
GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": 12}


def get_weather(city: str) -> str:
    """Weather of a city."""
    return city


@case("ChatOpenAI, invoke")
def chat():
    return ChatOpenAI(**SERVER, **GREEDY).invoke(QUESTION)


@case("ChatOpenAI, stream")
def chat_streamed():
    return ChatOpenAI(**SERVER, **GREEDY, stream_usage=True).stream(QUESTION)


@case("ChatOpenAI, batch")
def chat_batch():
    return ChatOpenAI(**SERVER, **GREEDY).batch([QUESTION] * 3, {"max_concurrency": 1})


@case("ChatOpenAI, tools")
def tools():
    model = ChatOpenAI(**SERVER, **{**GREEDY, "max_tokens": 64})
    return model.bind_tools([get_weather], tool_choice="any", strict=True).invoke(WEATHER_QUESTION)


@case("ChatOpenAI, structured output")
def structured():
    schema = {"title": "city", "description": "A city", **cases.CITY}
    model = ChatOpenAI(**SERVER, **{**GREEDY, "max_tokens": 64})
    return model.with_structured_output(schema, include_raw=True).invoke(WEATHER_QUESTION)


@case("ChatOpenAI, responses")
def responses():
    return ChatOpenAI(**SERVER, **GREEDY, use_responses_api=True).invoke(QUESTION)


@case("ChatAnthropic, invoke")
def messages():
    headers = {"Authorization": f"Bearer {cases.KEY}"}
    model = ChatAnthropic(
        base_url=cases.URL, api_key=cases.KEY, default_headers=headers, max_retries=0, **GREEDY
    )
    return model.invoke(QUESTION)


@case("OpenAIEmbeddings, with its default, which sends OpenAI's token ids", needs="vectors")
def embeddings_default():
    return OpenAIEmbeddings(**SERVER, model=MODEL).embed_documents(TITLES)


@case("OpenAIEmbeddings, 1,500 texts in batches of its default size", needs="vectors")
def embeddings_batches():
    model = OpenAIEmbeddings(**SERVER, model=MODEL, check_embedding_ctx_length=False)
    return model.embed_documents(["a title"] * 1500)


@case("OpenAIEmbeddings, a query", needs="vectors")
def embeddings_query():
    model = OpenAIEmbeddings(**SERVER, model=MODEL, check_embedding_ctx_length=False)
    return model.embed_query("the sea")


reranker = CohereRerank(base_url=cases.URL, cohere_api_key=cases.KEY, model=MODEL, top_n=2)


@case("CohereRerank, rerank with max_tokens_per_doc", needs="vectors")
def rerank():
    return reranker.rerank(TITLES, "the sea", max_tokens_per_doc=100)


@case("CohereRerank, refused without max_tokens_per_doc, sent as null", needs="vectors")
def rerank_default():
    documents = [Document(title) for title in TITLES]
    return cases.refusal(
        lambda: reranker.compress_documents(documents, "the sea"), cohere.core.ApiError
    )


if __name__ == "__main__":
    cases.main()
