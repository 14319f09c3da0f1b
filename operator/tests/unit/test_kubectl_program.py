"""Tests how the plugin runs kubectl: time limits, failures, and the end of port-forwards."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmservice_operator.kubectl_plugin import kubectl as adapter
from llmservice_operator.kubectl_plugin.command_line import main, parse
from llmservice_operator.kubectl_plugin.kubectl import Kubectl, KubectlFailed, NotFound
from llmservice_operator.kubectl_plugin.restart import NotRestarted, Turn, check_restart
from operator_support.services import REPOSITORY, a_body


def program(tmp_path: Path, script: str) -> Kubectl:
    """Return a kubectl that fails in the way of a shell script."""
    file = tmp_path / "kubectl"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return Kubectl(program=str(file))


def test_a_command_that_does_not_end_is_ended_and_the_message_says_what_to_check(
    tmp_path: Path,
) -> None:
    with pytest.raises(KubectlFailed, match=r"did not end within 0\.2 s: check the connection"):
        program(tmp_path, "exec sleep 60").run("get", "pods", limit=0.2)


def test_a_missing_kubectl_is_named() -> None:
    with pytest.raises(KubectlFailed, match="kubectl is not on the PATH"):
        Kubectl(program="no-such-kubectl").run("get", "pods")


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ('Error from server (NotFound): pods "x" not found', NotFound, "not found"),
        ("error: the server doesn't have a resource type", KubectlFailed, "install the operator"),
        ("E1130 memcache.go\nThe connection was refused", KubectlFailed, "^The connection was"),
        ("", KubectlFailed, "kubectl get failed"),
    ],
)
def test_a_failure_has_the_last_line_of_kubectl(
    tmp_path: Path, said: str, error: type[KubectlFailed], message: str
) -> None:
    with pytest.raises(error, match=message):
        program(tmp_path, f"cat >&2 <<'E'\n{said}\nE\nexit 1").read("pods", "x")


def test_an_answer_that_is_no_json_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KubectlFailed, match="printed no JSON"):
        program(tmp_path, "echo hello").read("pods")


def test_a_port_forward_ends_with_its_block(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"echo $$ > {pid}\necho 'Forwarding from 127.0.0.1:4321 -> 80'\nexec sleep 60"
    with program(tmp_path, script).forward("pod/x", 80) as port:
        assert port == 4321
        process = int(pid.read_text())
        os.kill(process, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_port_forward_that_fails_says_why(tmp_path: Path) -> None:
    failing = program(tmp_path, "echo 'error: unable to forward port' >&2; exit 1")
    with pytest.raises(KubectlFailed, match="unable to forward port"), failing.forward("pod/x", 80):
        pass


def test_a_port_forward_that_never_starts_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "LIMIT_SECONDS", 0.2)
    silent = program(tmp_path, "exec sleep 60")
    with pytest.raises(KubectlFailed, match="forwarded no port"), silent.forward("pod/x", 80):
        pass


def test_the_flags_of_the_place_are_accepted_before_and_after_the_subcommand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = tmp_path / "said"
    program(tmp_path, f'echo "$@" >> {said}; echo "error: no such context" >&2; exit 1')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["-n", "team", "status", "qwen", "--context=prod"]) == 1
        assert main(["logs", "qwen", "--kubeconfig", "file", "--namespace", "team"]) == 1
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert "kubectl llm: error: no such context" in capsys.readouterr().err
    first, *_, last = said.read_text().splitlines()
    assert first.startswith("--namespace=team --context=prod get ")
    assert last.startswith("--namespace=team --kubeconfig=file get pods")


@pytest.mark.parametrize(
    "arguments",
    [
        ["chat", "qwen", "Which city?", "-n", "team"],
        ["chat", "qwen", "-n", "team", "Which city?"],
        ["-n", "team", "chat", "--max-tokens=9", "qwen", "Which city?"],
    ],
)
def test_the_question_of_a_chat_may_follow_options(arguments: list[str]) -> None:
    options = parse(arguments)
    assert (options.name, options.question) == ("qwen", "Which city?")


@pytest.mark.parametrize(
    "arguments", [["chat", "qwen", "-n", "team", "a", "b"], ["chat", "qwen", "--tokens=1"]]
)
def test_an_unknown_argument_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_wrong_duration_is_refused_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["restart", "qwen", "--timeout", "soon"])
    assert ended.value.code == 2
    assert "soon is not a duration such as 90s, 30m or 2h" in capsys.readouterr().err


def test_a_reader_that_ends_early_gets_no_traceback() -> None:
    command = f"{sys.executable} -m llmservice_operator.kubectl_plugin.command_line new --list"
    ran = subprocess.run(
        ["bash", "-c", f"{command} | head -1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stderr == ""


SERVICE = a_body()
READY = {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "observedGeneration": 1}


def deployment(
    spec: dict[str, object] | None = None, status: dict[str, int] | None = None
) -> dict[str, object]:
    owner = {"kind": "LLMService", "uid": SERVICE["metadata"]["uid"]}
    return {
        "metadata": {"name": "qwen", "generation": 1, "ownerReferences": [owner]},
        "spec": {"replicas": 2, **(spec or {})},
        "status": {**READY, **(status or {})},
    }


def rolling(unavailable: object) -> dict[str, object]:
    return {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable}}}


@pytest.mark.parametrize(
    ("live", "message"),
    [
        (deployment({"replicas": 0}), "nothing to restart"),
        (deployment({"paused": True}), "kubectl rollout resume deployment/qwen"),
        (deployment(status={"updatedReplicas": 1}), "pass --force"),
        (deployment(status={"availableReplicas": 1}), "pass --force"),
        (deployment(status={"observedGeneration": 0}), "pass --force"),
        (deployment({"strategy": {"type": "Recreate"}}), "pass --allow-downtime"),
        (deployment(rolling("100%")), "pass --allow-downtime"),
        (deployment({"replicas": 1, **rolling(1)}, {"replicas": 1, "updatedReplicas": 1}), "down"),
        ({**deployment(), "metadata": {"name": "qwen"}}, "does not belong"),
    ],
)
def test_a_restart_that_has_no_effect_or_harms_is_refused_with_what_to_do(
    live: dict[str, object], message: str
) -> None:
    with pytest.raises(NotRestarted, match=message):
        check_restart(SERVICE, live, force=False, allow_downtime=False)


def test_a_restart_of_a_healthy_service_is_allowed_and_force_allows_one_during_a_rollout() -> None:
    check_restart(SERVICE, deployment(rolling("25%")), force=False, allow_downtime=False)
    late = deployment(status={"updatedReplicas": 1})
    check_restart(SERVICE, late, force=True, allow_downtime=False)
    stopped = deployment({"strategy": {"type": "Recreate"}})
    check_restart(SERVICE, stopped, force=False, allow_downtime=True)


def test_a_rolled_back_service_is_not_restarted() -> None:
    service = {**SERVICE, "status": {"rollback": {"reason": "CrashLoop"}}}
    with pytest.raises(NotRestarted, match="correct the spec"):
        check_restart(service, deployment(), force=True, allow_downtime=True)


def test_a_turn_is_complete_only_when_no_old_replica_is_left() -> None:
    assert Turn.of(deployment()).is_complete
    assert not Turn.of(deployment(status={"replicas": 3})).is_complete


def test_a_signal_to_the_plugin_ends_its_port_forward(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    ready = f"echo $$ > {pid}\necho 'Forwarding from 127.0.0.1:4321 -> 80'\nexec sleep 60"
    kubectl = program(tmp_path, ready)
    code = (
        "import signal\n"
        "from llmservice_operator.kubectl_plugin import command_line as it\n"
        "from llmservice_operator.kubectl_plugin.kubectl import Kubectl\n"
        "signal.signal(signal.SIGTERM, it._leave)\n"
        f"with Kubectl(program={kubectl.program!r}).forward('pod/x', 80):\n"
        "    print('forwarded', flush=True)\n"
        "    signal.pause()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as plugin:
        assert plugin.stdout is not None
        assert plugin.stdout.readline() == "forwarded\n"
        child = int(pid.read_text())
        plugin.terminate()
        assert plugin.wait(30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_the_single_file_lacks_no_library_that_a_subcommand_imports() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    left_out = re.findall(r"PLUGIN_LEAVES_OUT := (.*)", makefile)[0].split()
    assert "kubernetes" in left_out
    names = {"grpcio": "grpc", "xds-protos": "envoy"}
    folder = REPOSITORY / "operator/src/llmservice_operator/kubectl_plugin"
    modules = [f"llmservice_operator.kubectl_plugin.{each.stem}" for each in folder.glob("*.py")]
    asked = (
        f"import sys, {', '.join(modules)}, llmservice_operator.catalogue;"
        f"print({{each.split('.')[0] for each in sys.modules}}"
        f" & {{{', '.join(repr(names.get(each, each)) for each in left_out)}}})"
    )
    ran = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
