"""Tests, in a copy of the tree, that a new kind of child needs only a module and a registration."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llmservice_operator.render import render_file
from llmservice_operator.rights import render_chart_rules
from llmservice_operator.settings import OperatorSettings
from operator_support.services import REPOSITORY

PACKAGE = Path("operator/src/llmservice_operator")
CHART_RULES = Path("charts/llmservice-operator/templates/_rules.tpl")
COPIED = (PACKAGE, Path("crds"), Path("charts/llmservice-operator"), Path("docs"))

SIGNPOST = '''"""A sign that leads to the service, of a kind that no software has."""

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.children.child import Child, Context
from llmservice_operator.kinds import Kind

SIGNPOSTS = Kind("example.org", "v1", "Signpost", "signposts", names.CHILD_SELECTOR)


def _body(context: Context) -> Manifest | None:
    service = context.service
    if service.spec.service.port != 8080:
        return None
    return {"spec": {"leadsTo": names.kubernetes_service(service)}}


CHILD = Child(kind=SIGNPOSTS, body=_body, is_pruned=True, is_optional_api=True)
'''

SERVICE = """
apiVersion: llmservice.dev/v1alpha1
kind: LLMService
metadata: {name: llama, namespace: team}
spec:
  model: {uri: "hf://org/model"}
  accelerator: {type: cpu}
  service: {port: 8080}
"""

LIFE = """
import asyncio, sys, yaml
from llmservice_operator.children.signpost import SIGNPOSTS
from llmservice_operator.cluster import Cache
from llmservice_operator.settings import OperatorSettings
from operator_support.reconcile import RacingCluster, a_reconciler, served_kinds

async def passes(reconciler, cluster):
    cluster.writes.clear()
    while await reconciler.reconcile(("team", "llama")) == 0.0:
        pass
    return [write for write in cluster.writes if "Signpost" in write]

async def live():
    cluster, cache, settings = RacingCluster(), Cache(), OperatorSettings()
    served = served_kinds(cluster, settings)
    reconciler = a_reconciler(cluster, cache, settings, served)
    body = yaml.safe_load(sys.stdin)
    body["metadata"]["generation"] = 1
    cache.observe(cluster.put(body))
    cluster.unserved = {SIGNPOSTS}
    await served.load()
    print("absent:", await passes(reconciler, cluster))
    cluster.unserved = set()
    await served.refresh()
    print("served:", await passes(reconciler, cluster))
    body = next(each for each in cluster.objects.values() if each["kind"] == "LLMService")
    cache.observe(cluster.put({**body, "spec": {**body["spec"], "service": {"port": 80}}}))
    print("not wanted:", await passes(reconciler, cluster))

asyncio.run(live())
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tree with one more kind of child."""
    root = tmp_path_factory.mktemp("tree")
    for part in COPIED:
        shutil.copytree(
            REPOSITORY / part, root / part, ignore=shutil.ignore_patterns("__pycache__")
        )
    scripts = [REPOSITORY / "e2e/generated.py", *(REPOSITORY / "operator").glob("*.*")]
    for file in (REPOSITORY / "Makefile", *scripts):
        copied = root / file.relative_to(REPOSITORY)
        copied.parent.mkdir(exist_ok=True)
        shutil.copy(file, copied)
    children = root / PACKAGE / "children"
    (children / "signpost.py").write_text(SIGNPOST)
    registry = children / "__init__.py"
    text = registry.read_text()
    for line, more in (
        ("    scaled_object,\n", "    signpost,\n"),
        ("    kubernetes_service.CHILD,\n", "    signpost.CHILD,\n"),
    ):
        assert text.count(line) == 1
        text = text.replace(line, line + more)
    registry.write_text(text)
    return root


def run(tree: Path, *command: str, text: str = "") -> str:
    path = os.pathsep.join((str(tree / "operator/src"), str(REPOSITORY / "operator/tests")))
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path, "PATH": scripts},
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_rights_are_generated_into_the_chart(tree: Path) -> None:
    run(tree, sys.executable, "e2e/generated.py", str(CHART_RULES))
    rule = (
        "- apiGroups: [example.org]\n"
        "  resources: [signposts]\n"
        "  verbs: [get, list, watch, create, patch, delete]\n"
    )
    generated = (tree / CHART_RULES).read_text()
    assert generated.replace(rule, "") == render_chart_rules() != generated


def test_its_object_is_printed_in_its_place_with_the_labels_of_its_service(tree: Path) -> None:
    command = (sys.executable, "-m", "llmservice_operator", "render", "-f", "-")
    printed = list(yaml.safe_load_all(run(tree, *command, text=SERVICE)))
    (place,) = (at for at, each in enumerate(printed) if each["kind"] == "Signpost")
    signpost, target = printed.pop(place), printed[place - 1]
    assert signpost["apiVersion"] == "example.org/v1"
    assert signpost["spec"] == {"leadsTo": target["metadata"]["name"]}
    assert signpost["metadata"]["labels"] == target["metadata"]["labels"]
    assert target["kind"] == "Service"
    assert printed == list(yaml.safe_load_all(render_file(SERVICE, OperatorSettings())))


def test_it_is_applied_while_its_api_is_served_and_pruned_when_it_is_not_wanted(
    tree: Path,
) -> None:
    assert run(tree, sys.executable, "-c", LIFE, text=SERVICE).splitlines() == [
        "absent: []",
        "served: ['Signpost']",
        "not wanted: ['delete Signpost']",
    ]
