"""Inspects a model class as the build of an image does, and prints the result.

An interpreter that has imported vLLM runs it.
"""

import subprocess
import tempfile

import vllm.envs

from llmservice_server.compat import load_nvml, model_inspections
from llmservice_server.gpu import find_gpus


def no_process(*_: object, **__: object) -> None:
    raise AssertionError("vLLM starts a process for the inspection of a class")


subprocess.run = no_process  # type: ignore[assignment]
vllm.envs.VLLM_CACHE_ROOT = tempfile.mkdtemp()
found = model_inspections()["LlamaForCausalLM"]()
print(f"{found} and {find_gpus(load_nvml())}", flush=True)
