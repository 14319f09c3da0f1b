"""Runs lm_eval, EleutherAI's evaluation of models, on the project's questions.

The replies contain all samples.
"""

import os
from pathlib import Path

import cases

os.environ |= {"OPENAI_API_KEY": cases.KEY, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import lm_eval
from cases import case
from lm_eval.tasks import TaskManager

QUESTIONS = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": str(Path(__file__).with_name("questions.jsonl"))}},
    "test_split": "test",
    "doc_to_text": "{{question}}",
}
CHOICES = {
    **QUESTIONS,
    "task": "choices",
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
}
ANSWERS = {
    **QUESTIONS,
    "task": "answers",
    "output_type": "generate_until",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "temperature": 0},
    "metric_list": [{"metric": "exact_match", "ignore_case": True}],
}
API = {"model": cases.MODEL, "num_concurrent": 1, "max_retries": 1, "max_length": 512}


def evaluated(model, path, task, **arguments):
    done = lm_eval.simple_evaluate(
        model=model,
        model_args={**API, "base_url": f"{cases.URL}{path}", **arguments},
        tasks=[task],
        task_manager=TaskManager(),
        bootstrap_iters=0,
        apply_chat_template="chat" in model,
    )
    name = task["task"]
    answers = [sample["filtered_resps"] for sample in done["samples"][name]]
    scores = {key: value for key, value in done["results"][name].items() if key != "sample_len"}
    return {"scores": scores, "answers": answers}


@case("local-completions, choices by their log-likelihood")
def choices():
    tokenizer = {"tokenizer": os.environ["TOKENIZER"], "tokenizer_backend": "huggingface"}
    return evaluated("local-completions", "/v1/completions", CHOICES, **tokenizer)


@case("local-chat-completions, generated answers")
def answers():
    return evaluated("local-chat-completions", "/v1/chat/completions", ANSWERS)


if __name__ == "__main__":
    cases.main()
