"""Runs the load generator guidellm, and compares its figures with the server's metrics."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cases
from cases import case
from load_figures import FEATURE, agreement, metrics, seen_by_the_server


@case(FEATURE)
def guidellm():
    result = Path(os.environ["HOME"]) / f"guidellm-{os.getpid()}.json"
    backend = {
        "kind": "openai_http",
        "target": cases.URL,
        "model": cases.MODEL,
        "api_key": cases.KEY,
        "request_format": "/v1/completions",
    }
    flags = {
        "backend": json.dumps(backend),
        "profile": "kind=concurrent,streams=3",
        "constraint": "kind=max_requests,count=24",
        "data": "kind=synthetic_text,prompt_tokens=300,output_tokens=48",
        "tokenizer": f"kind=huggingface_auto,model={os.environ['TOKENIZER']}",
        "output": f"kind=json,path={result}",
    }
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    before = metrics()
    subprocess.run(
        [sys.executable, "-m", "guidellm", "run", *arguments, "--disable-console"],
        stdout=sys.stderr,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    (benchmark,) = json.loads(result.read_text())["benchmarks"]
    told = benchmark["metrics"]

    def total(name):
        return told[name]["successful"]["total_sum"]

    def mean(name):
        return told[name]["successful"]["mean"]

    return agreement(
        {
            "requests": told["request_totals"]["successful"],
            "prompt tokens": total("prompt_token_count"),
            "generated tokens": total("output_token_count"),
            "time to first token": mean("time_to_first_token_ms") / 1000,
            "latency": mean("request_latency"),
        },
        seen_by_the_server(before, metrics()),
    )


if __name__ == "__main__":
    cases.main()
