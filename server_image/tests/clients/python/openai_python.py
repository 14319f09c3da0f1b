"""Runs the cases of OpenAI's client for Python."""

import cases
import openai
from cases import MODEL, QUESTION, WEATHER_QUESTION, case

client = openai.OpenAI(base_url=f"{cases.URL}/v1", api_key=cases.KEY, max_retries=0)
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "strict": True,
        "parameters": cases.CITY,
    },
}
TOOLS = {
    **CHAT,
    "messages": [{"role": "user", "content": WEATHER_QUESTION}],
    "tools": [TOOL],
    "max_tokens": 64,
}


@case("models, list")
def models_list():
    return list(client.models.list())


@case("models, retrieve")
def models_retrieve():
    return client.models.retrieve(MODEL)


@case("chat")
def chat():
    return client.chat.completions.create(**CHAT, max_tokens=12, logprobs=True, top_logprobs=2)


@case("chat, streamed")
def chat_streamed():
    usage = {"stream_options": {"include_usage": True}}
    return client.chat.completions.create(
        **CHAT, **usage, max_tokens=12, logprobs=True, top_logprobs=2, stream=True
    )


@case("chat, two answers")
def chat_two_answers():
    return client.chat.completions.create(**{**CHAT, "temperature": 0.5}, n=2, seed=1, max_tokens=8)


@case("chat, a conversation with a system prompt and a stop")
def chat_conversation():
    messages = [
        {"role": "system", "content": "You answer in one word."},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": "Paris"},
        {"role": "user", "content": "And of Italy?"},
    ]
    return client.chat.completions.create(
        **{**CHAT, "messages": messages}, max_completion_tokens=8, stop=["."]
    )


@case("chat, JSON schema")
def chat_schema():
    schema = {"name": "city", "schema": cases.CITY, "strict": True}
    return client.chat.completions.create(
        **CHAT, max_tokens=24, response_format={"type": "json_schema", "json_schema": schema}
    )


@case("chat, max_tokens above the context")
def chat_cap():
    return client.chat.completions.create(**CHAT, max_tokens=100_000, stop=["France"])


@case("tools, required")
def tools_required():
    return client.chat.completions.create(**TOOLS, tool_choice="required")


@case("tools, by name, streamed")
def tools_streamed():
    choice = {"type": "function", "function": {"name": "get_weather"}}
    return client.chat.completions.create(**TOOLS, tool_choice=choice, stream=True)


@case("tools, auto")
def tools_auto():
    return client.chat.completions.create(**{**TOOLS, "max_tokens": 12})


@case("completions")
def completions():
    return client.completions.create(
        model=MODEL, prompt=["The capital of France is", "Hello"], max_tokens=8, temperature=0
    )


@case("completions, streamed")
def completions_streamed():
    return client.completions.create(
        model=MODEL, prompt="The sea", max_tokens=8, temperature=0, stream=True
    )


@case("responses")
def responses():
    return client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=12)


@case("responses, streamed")
def responses_streamed():
    return client.responses.create(
        model=MODEL, input=QUESTION, temperature=0, max_output_tokens=12, stream=True
    )


@case("responses, tools")
def responses_tools():
    tool = {"type": "function", "name": "get_weather", "strict": True, "parameters": cases.CITY}
    return client.responses.create(
        model=MODEL,
        input=WEATHER_QUESTION,
        tools=[tool],
        tool_choice="required",
        temperature=0,
        max_output_tokens=64,
    )


@case("responses, unknown id")
def responses_unknown():
    return cases.refusal(lambda: client.responses.retrieve("resp_unknown"), openai.APIError)


@case("refusal, unknown model")
def refusal_model():
    return cases.refusal(
        lambda: client.chat.completions.create(**{**CHAT, "model": "other"}), openai.APIError
    )


@case("refusal, wrong value")
def refusal_value():
    return cases.refusal(
        lambda: client.chat.completions.create(**{**CHAT, "temperature": -1}), openai.APIError
    )


@case("refusal, wrong key")
def refusal_key():
    other = client.with_options(api_key="another")
    return cases.refusal(lambda: list(other.models.list()), openai.APIError)


@case("refusal, prompt longer than the context")
def refusal_context():
    return cases.refusal(
        lambda: client.completions.create(model=MODEL, prompt="word " * 5000), openai.APIError
    )


@case("embeddings", needs="vectors")
def embeddings():
    return client.embeddings.create(model=MODEL, input=cases.TITLES)


@case("embeddings, as floats", needs="vectors")
def embeddings_floats():
    return client.embeddings.create(model=MODEL, input="the sea", encoding_format="float")


@case("embeddings, of token ids", needs="vectors")
def embeddings_of_tokens():
    return client.embeddings.create(model=MODEL, input=[[5, 6, 7], [8, 9]])


@case("embeddings, 2,048 texts", needs="vectors")
def embeddings_many():
    return client.embeddings.create(model=MODEL, input=["a title"] * 2048)


@case("audio, transcription", needs="hearing")
def transcription():
    return client.audio.transcriptions.create(
        model=MODEL, file=cases.recording(), language="en", temperature=0
    )


@case("audio, transcription, streamed", needs="hearing")
def transcription_streamed():
    return client.audio.transcriptions.create(
        model=MODEL, file=cases.recording(), language="en", temperature=0, stream=True
    )


@case("audio, transcription, as text", needs="hearing")
def transcription_text():
    return client.audio.transcriptions.create(
        model=MODEL, file=cases.recording(), language="en", temperature=0, response_format="text"
    )


@case("audio, translation", needs="hearing")
def translation():
    return client.audio.translations.create(model=MODEL, file=cases.recording(), temperature=0)


if __name__ == "__main__":
    cases.main()
