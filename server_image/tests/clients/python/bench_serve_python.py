"""Runs vLLM's load generator, and compares its figures with the server's metrics."""

import argparse
import json
import os
from pathlib import Path

import cases

os.environ |= {"OPENAI_API_KEY": cases.KEY, "HF_HUB_OFFLINE": "1"}

from cases import case
from load_figures import FEATURE, agreement, metrics, seen_by_the_server
from vllm.benchmarks import serve


@case(FEATURE)
def bench_serve():
    result = Path(os.environ["HOME"]) / f"bench-{os.getpid()}.json"
    parser = argparse.ArgumentParser()
    serve.add_cli_args(parser)
    flags = {
        "backend": "openai",
        "base-url": cases.URL,
        "endpoint": "/v1/completions",
        "model": cases.MODEL,
        "tokenizer": os.environ["TOKENIZER"],
        "dataset-name": "random",
        "random-input-len": 300,
        "random-output-len": 48,
        "num-prompts": 24,
        "max-concurrency": 3,
        "ready-check-timeout-sec": 0,
        "percentile-metrics": "ttft,tpot,itl,e2el",
        "result-filename": result,
    }
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    before = metrics()
    serve.main(parser.parse_args([*arguments, "--ignore-eos", "--save-result", "--disable-tqdm"]))
    told = json.loads(result.read_text())
    return agreement(
        {
            "requests": told["completed"],
            "prompt tokens": told["total_input_tokens"],
            "generated tokens": told["total_output_tokens"],
            "time to first token": told["mean_ttft_ms"] / 1000,
            "latency": told["mean_e2el_ms"] / 1000,
        },
        seen_by_the_server(before, metrics()),
    )


if __name__ == "__main__":
    cases.main()
