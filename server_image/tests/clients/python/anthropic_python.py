"""Runs the cases of Anthropic's client for Python."""

import anthropic
import cases
from cases import MODEL, QUESTION, WEATHER_QUESTION, case

# vLLM reads the key from the header `Authorization`, where the client writes its `auth_token`.
client = anthropic.Anthropic(base_url=cases.URL, auth_token=cases.KEY, max_retries=0)
MESSAGE = {
    "model": MODEL,
    "messages": [{"role": "user", "content": QUESTION}],
    "max_tokens": 12,
    "extra_body": {"temperature": 0},  # the client no longer has an argument `temperature`
}
TOOLS = {
    **MESSAGE,
    "messages": [{"role": "user", "content": WEATHER_QUESTION}],
    "max_tokens": 64,
    "tools": [
        {
            "name": "get_weather",
            "description": "Weather of a city",
            "input_schema": cases.CITY,
            "strict": True,
        }
    ],
}


@case("models, list")
def models_list():
    return list(client.models.list())


@case("models, retrieve")
def models_retrieve():
    return client.models.retrieve(MODEL)


@case("messages")
def messages():
    return client.messages.create(**MESSAGE, system="You answer in one word.")


@case("messages, streamed")
def messages_streamed():
    return client.messages.create(**MESSAGE, stream=True)


@case("messages, the helper for streams")
def messages_helper():
    with client.messages.stream(**MESSAGE) as stream:
        text = "".join(stream.text_stream)
        return {"text": text, "message": stream.get_final_message()}


@case("messages, the id of a request")
def request_id():
    return bool(client.messages.with_raw_response.create(**MESSAGE).headers.get("request-id"))


@case("messages, max_tokens above the context")
def messages_cap():
    return client.messages.create(
        **{**MESSAGE, "max_tokens": 10_000}, stop_sequences=["France"], timeout=60
    )


@case("tools, any")
def tools_any():
    return client.messages.create(**TOOLS, tool_choice={"type": "any"})


@case("tools, by name, streamed")
def tools_streamed():
    return client.messages.create(
        **TOOLS, tool_choice={"type": "tool", "name": "get_weather"}, stream=True
    )


@case("tools, the result of a call")
def tools_result():
    call = {"type": "tool_use", "id": "call-1", "name": "get_weather", "input": {"city": "Paris"}}
    result = {"type": "tool_result", "tool_use_id": "call-1", "content": "It is sunny."}
    conversation = [
        *TOOLS["messages"],
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]
    return client.messages.create(**{**TOOLS, "messages": conversation, "max_tokens": 12})


@case("count of tokens")
def count():
    return client.messages.count_tokens(model=MODEL, messages=MESSAGE["messages"])


@case("refusal, unknown model")
def refusal_model():
    return cases.refusal(
        lambda: client.messages.create(**{**MESSAGE, "model": "other"}), anthropic.APIError
    )


@case("refusal, wrong value")
def refusal_value():
    return cases.refusal(
        lambda: client.messages.create(**{**MESSAGE, "extra_body": {"temperature": -1}}),
        anthropic.APIError,
    )


@case("refusal, wrong key")
def refusal_key():
    other = client.with_options(auth_token="another")
    return cases.refusal(lambda: other.messages.create(**MESSAGE), anthropic.APIError)


if __name__ == "__main__":
    cases.main()
