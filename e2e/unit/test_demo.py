"""Tests what the demo prints at its end."""

import pytest

from demo import next_commands


@pytest.mark.parametrize(
    ("prefix", "name", "removal"),
    [
        ((".venv/bin/localkube",), "llmservice", "make down"),
        ((".venv/bin/localkube", "--name", "own"), "own", "make down NAME=own"),
        ((), "own", "kind delete cluster --name own"),
    ],
)
def test_the_demo_says_how_to_remove_its_cluster_and_nothing_else(
    prefix: tuple[str, ...], name: str, removal: str
) -> None:
    assert next_commands(prefix, name)[-1] == (
        f"`{removal}` removes the cluster, and keeps what was built."
    )


def test_the_commands_of_the_plugin_need_no_activated_environment() -> None:
    local = next_commands((".venv/bin/localkube", "--name", "own"), "own")
    assert "  .venv/bin/localkube --name own kubectl llm chat smollm2-cpu" in local
    assert "  .venv/bin/kubectl-llm chat smollm2-cpu" in next_commands((), "own")
