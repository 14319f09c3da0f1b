"""Runs the cases of LiteLLM, with its providers for vLLM and for the APIs that this server has."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise, LiteLLM downloads the map

import cases
import litellm
from cases import MODEL, QUESTION, TITLES, WEATHER_QUESTION, case

litellm.telemetry = False
SERVER = {"api_base": f"{cases.URL}/v1", "api_key": cases.KEY, "num_retries": 0}
CHAT = {
    "model": f"hosted_vllm/{MODEL}",
    "messages": [{"role": "user", "content": QUESTION}],
    "temperature": 0,
    "max_tokens": 12,
    **SERVER,
}


@case("hosted_vllm, chat")
def chat():
    return litellm.completion(**CHAT)


@case("hosted_vllm, chat, streamed")
def chat_streamed():
    return litellm.completion(**CHAT, stream=True, stream_options={"include_usage": True})


@case("hosted_vllm, tools")
def tools():
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": cases.CITY}}
    asked = {**CHAT, "messages": [{"role": "user", "content": WEATHER_QUESTION}], "max_tokens": 64}
    return litellm.completion(**asked, tools=[tool], tool_choice="required")


@case("openai, responses")
def responses():
    return litellm.responses(
        model=f"openai/{MODEL}", input=QUESTION, temperature=0, max_output_tokens=12, **SERVER
    )


@case("anthropic, messages")
def messages():
    asked = {**CHAT, **SERVER, "model": f"anthropic/{MODEL}", "api_base": cases.URL}
    headers = {"Authorization": f"Bearer {cases.KEY}"}
    return litellm.completion(**asked, extra_headers=headers)


@case("text-completion-openai, completions")
def completions():
    return litellm.text_completion(
        model=f"text-completion-openai/{MODEL}",
        prompt="The sea",
        temperature=0,
        max_tokens=8,
        **SERVER,
    )


@case("hosted_vllm, refusal of an unknown model")
def refusal_model():
    return cases.refusal(
        lambda: litellm.completion(**{**CHAT, "model": "hosted_vllm/other"}), Exception
    )


@case("hosted_vllm, embeddings", needs="vectors")
def embeddings():
    return litellm.embedding(model=f"hosted_vllm/{MODEL}", input=TITLES, **SERVER)


@case("hosted_vllm, rerank", needs="vectors")
def rerank():
    return litellm.rerank(model=f"hosted_vllm/{MODEL}", query="the sea", documents=TITLES, **SERVER)


@case("jina_ai, rerank", needs="vectors")
def rerank_jina():
    asked = {**SERVER, "api_base": cases.URL}
    return litellm.rerank(
        model=f"jina_ai/{MODEL}", query="the sea", documents=TITLES, top_n=2, **asked
    )


@case("jina_ai, embeddings", needs="vectors")
def embeddings_jina():
    return litellm.embedding(model=f"jina_ai/{MODEL}", input=TITLES, **SERVER)


@case("cohere, rerank", needs="vectors")
def rerank_cohere():
    asked = {**SERVER, "api_base": f"{cases.URL}/v2/rerank"}
    return litellm.rerank(model=f"cohere/{MODEL}", query="the sea", documents=TITLES, **asked)


@case("hosted_vllm, transcription", needs="hearing")
def transcription():
    return litellm.transcription(
        model=f"hosted_vllm/{MODEL}", file=cases.recording(), language="en", temperature=0, **SERVER
    )


if __name__ == "__main__":
    cases.main()
