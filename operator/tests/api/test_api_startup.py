import os
import subprocess
import sys
from pathlib import Path

from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES
from operator_support.processes import (
    REPOSITORY,
    Api,
    ApiError,
    OperatorProcess,
    free_port,
    make_service,
)
from shared_support.waiting import eventually

CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/llmservices.llmservice.dev"


def crd_is_gone(api: Api) -> bool:
    try:
        api.request("GET", CRD_PATH)
    except ApiError as error:
        return error.status == 404
    return False


def test_the_operator_waits_for_a_missing_crd_and_reports_it(
    api: Api, operator: OperatorProcess, namespace: str, log: Path
) -> None:
    with OperatorProcess(
        log, namespace, WATCH_NAMESPACES=namespace, AUDIT_PERIOD_SECONDS="2"
    ) as process:
        process.until_leading()
        api.request("DELETE", CRD_PATH)
        eventually(lambda: crd_is_gone(api))

        def told() -> bool:
            status, text = process.get("/readyz")
            assert status == 503
            return "apply crds/llmservice.yaml" in text

        try:
            eventually(told)
            assert process.get("/livez")[0] == 200
        finally:
            api.apply_file(REPOSITORY / "crds" / "llmservice.yaml")
        process.until_ready()
        eventually(lambda: api.request("GET", LLMSERVICES.path(namespace)))
        api.create(LLMSERVICES, make_service("llm", namespace))
        eventually(lambda: api.read(DEPLOYMENTS, namespace, "llm"))
        assert process.terminate() == 0


def test_the_operator_reports_a_missing_kubeconfig(tmp_path: Path) -> None:
    environment = {**os.environ, "KUBECONFIG": str(tmp_path / "none"), "HOME": str(tmp_path)}
    environment.pop("KUBERNETES_SERVICE_HOST", None)
    done = subprocess.run(
        [sys.executable, "-m", "llmservice_operator", "run"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "set KUBECONFIG to a kubeconfig file" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_operator_reports_that_its_port_is_taken(
    operator: OperatorProcess, namespace: str, log: Path
) -> None:
    with OperatorProcess(log, namespace, HEALTH_PORT=str(operator.port)) as second:
        assert second.wait(20) == 1
    assert f"port {operator.port} cannot be served" in log.read_text()
    assert "set LLMSERVICE_OPERATOR_HEALTH_PORT" in log.read_text()


def test_the_operator_waits_for_an_unreachable_api_server(
    api: Api, namespace: str, log: Path, tmp_path: Path
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        Path(os.environ["KUBECONFIG"])
        .read_text()
        .replace(api.server, f"https://127.0.0.1:{free_port()}")
    )
    with OperatorProcess(log, namespace, KUBECONFIG=str(kubeconfig)) as operator:

        def told() -> bool:
            return "the cluster cannot be read" in operator.get("/readyz")[1]

        eventually(told)
        assert operator.get("/livez")[0] == 200
        assert operator.terminate() == 0
