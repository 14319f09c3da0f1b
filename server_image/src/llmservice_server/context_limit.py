"""Refuses a request whose prompt and answer together exceed the context.

vLLM refuses a `max_tokens` above the whole context, but silently lowers it to the space that the
prompt leaves. A client that asks for 500 tokens and gets 3 takes them for the complete answer.
OpenAI's API refuses such a request. So does this server, on every route that generates.
"""

from typing import Any

from llmservice_server.compat import Vllm


def why_it_does_not_fit(prompt_tokens: int, max_tokens: int, context: int) -> str | None:
    """Return the message for the client; None when prompt and answer fit the context."""
    room = context - prompt_tokens
    if max_tokens <= room:
        return None
    change = f"lower max_tokens to at most {room}" if room > 0 else "shorten the prompt"
    return (
        f"the prompt has {prompt_tokens} tokens and max_tokens is {max_tokens}, together "
        f"more than the model's context of {context}; {change}"
    )


def refuse_shortened_answers(vllm: Vllm) -> None:
    """Make vLLM check every tokenized prompt together with the requested answer length.

    All routes of vLLM pass through this place with both numbers. The requested length is not
    available later. Call this function once per process.
    """
    check_prompt = vllm.TokenizeParams.apply_post_tokenization

    def check_both(parameters: Any, tokenizer: Any, prompt: Any) -> Any:
        checked = check_prompt(parameters, tokenizer, prompt)
        tokens = checked.get("prompt_token_ids")
        if tokens is None or parameters.max_total_tokens is None:
            return checked
        reason = why_it_does_not_fit(
            len(tokens), parameters.max_output_tokens or 0, parameters.max_total_tokens
        )
        if reason is not None:
            raise vllm.VLLMValidationError(reason, parameter=parameters.max_output_tokens_param)
        return checked

    vllm.TokenizeParams.apply_post_tokenization = check_both
