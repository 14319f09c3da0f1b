"""Continue prompts greedily with transformers in fp32, and print the tokens with their gaps.

The Python of the engine's environment runs `greedy_reference.py MODEL_FOLDER TOKENS`, with a JSON
list of prompts on standard input. The script prints a JSON list with an object for each prompt:
`prompt`, `text`, `token_ids` and `gaps`. `token_ids` include an end-of-text token. The gap of a
token is its log-probability (natural logarithm) minus that of the second-best token.
"""

import json
import sys
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM


def continue_greedily(model: Any, tokenizer: Any, prompt: str, tokens: int) -> dict[str, Any]:
    encoded = tokenizer(prompt, return_tensors="pt")
    answer = model.generate(
        **encoded,
        max_new_tokens=tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    token_ids = answer.sequences[0, encoded["input_ids"].shape[1] :]
    best = torch.stack(answer.logits)[:, 0].log_softmax(dim=-1).topk(2).values
    return {
        "prompt": prompt,
        "text": tokenizer.decode(token_ids, skip_special_tokens=True),
        "token_ids": token_ids.tolist(),
        "gaps": (best[:, 0] - best[:, 1]).tolist(),
    }


def main() -> None:
    folder, tokens = sys.argv[1], int(sys.argv[2])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = json.load(sys.stdin)
    answers = [continue_greedily(model, tokenizer, prompt, tokens) for prompt in prompts]
    json.dump(answers, sys.stdout)


main()
