"""Writes facts about the installed vLLM as JSON to the file that the argument names.

An interpreter that has imported vLLM runs it.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "src"))


def chunks() -> dict[str, Any]:
    """Return which chunk models are replaced, how many chunks were compared, and which chunks the
    replacements write differently.
    """
    from vllm.entrypoints.openai.chat_completion import serving as chats
    from vllm.entrypoints.openai.completion import serving as completions

    from server_support.streaming import replaced, written

    by_models = list(written(completions, chats))
    replacements = replaced(completions, chats)
    by_stand_ins = list(written(completions, chats))
    different = [pair for pair in zip(by_models, by_stand_ins, strict=True) if len(set(pair)) > 1]
    return {"replaced": replacements, "number": len(by_models), "different": different}


def reads_environment_once() -> bool:
    """Return whether vLLM keeps the old value of a variable after `read_environment_once`."""
    from vllm import envs

    from llmservice_server.compat import read_environment_once

    os.environ["VLLM_COMPUTE_NANS_IN_LOGITS"] = "0"
    read_environment_once()
    os.environ["VLLM_COMPUTE_NANS_IN_LOGITS"] = "1"
    return not envs.VLLM_COMPUTE_NANS_IN_LOGITS


def main() -> None:
    """Collect the facts and write them to the file."""
    import vllm

    from engine_interface import interface
    from llmservice_server.compat import is_cpu_build
    from llmservice_server.logs import LAST_WORDS

    sources = [path.read_text() for path in Path(vllm.__file__).parent.glob("v1/**/*.py")]
    answer = {
        "on_cpu": is_cpu_build(),
        "version": vllm.__version__,
        "interface": interface(),
        "chunks": chunks(),
        "reads_environment_once": reads_environment_once(),
        "unsaid": [words for words in LAST_WORDS if not any(words in it for it in sources)],
    }
    Path(sys.argv[1]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
