"""Tests LoRA adapters: the list that replicas follow, the served adapters, and the status."""

import json
from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.adapter_status import Adapters, see_adapters
from llmservice_operator.api import Manifest
from llmservice_operator.api.load_report import ReplicaAdapter, ReplicaLoad
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import Context, build_all
from llmservice_operator.children.adapter_list import CHILD
from llmservice_operator.desired.adapters import AdapterList, ListedAdapter, next_list
from llmservice_operator.kinds import CONFIG_MAPS, LLMSERVICES
from llmservice_operator.workload import Replica, resolve_pin
from operator_support.reconcile import KEY, OneService
from operator_support.services import SETTINGS, a_pod, a_report, a_service, one, refusal_of

SQL = ListedAdapter("sql", "org/sql", "v1")
NEXT = ListedAdapter("sql", "org/sql", "v2")
CHAT = ListedAdapter("chat", "org/chat")


def adapters(*wanted: ListedAdapter) -> dict[str, Any]:
    """Return the part of a spec that lists these adapters."""
    listed = [
        {"name": it.name, "uri": f"hf://{it.source}"}
        | ({"revision": it.revision} if it.revision else {})
        for it in wanted
    ]
    return {"model": {"uri": "hf://org/model", "adapters": listed}}


def built(service: LLMService) -> list[Manifest]:
    return build_all(Context.of(service, SETTINGS, resolve_pin(service, None, SETTINGS)))


def pod_template(spec: dict[str, Any]) -> Any:
    return one("Deployment", built(a_service(spec)))["spec"]["template"]


def holding(*held: ListedAdapter, pod: str = "a", failed: str = "") -> ReplicaLoad:
    """Return the report of a ready replica that has these adapters.

    If `failed` is given, it is the reason why the replica lacks the adapter chat.
    """
    state = [
        ReplicaAdapter(name=it.name, source=it.source, revision=it.revision, state="loaded")
        for it in held
    ]
    if failed:
        state.append(ReplicaAdapter(name="chat", source="org/chat", state="failed", message=failed))
    return ReplicaLoad(pod=pod, is_ready=True, phase="ready", adapters=tuple(state))


def replica(name: str, *, ready: bool = True) -> Replica:
    pod = a_pod({"running": {}}, ready=ready)
    return Replica({**pod, "metadata": {**pod["metadata"], "name": name}}, None)


def config_map(*served: ListedAdapter) -> Manifest:
    return {"data": {names.ADAPTERS_FILE: AdapterList((), served).render()}}


def seen(
    wanted: tuple[ListedAdapter, ...],
    reports: list[ReplicaLoad],
    before: tuple[ListedAdapter, ...] = (),
    pods: str = "ab",
    *,
    has_reports: bool = True,
) -> Adapters:
    return see_adapters(
        a_service(adapters(*wanted)),
        config_map(*before),
        [replica(name) for name in pods],
        a_report(*reports),
        has_reports=has_reports,
    )


def served(*arguments: Any, **more: Any) -> tuple[ListedAdapter, ...] | None:
    listed = seen(*arguments, **more).listed
    assert listed is not None
    return listed.served


def test_a_service_without_adapters_has_no_list_and_unchanged_pods() -> None:
    service = a_service({})
    assert "ConfigMap" not in {each["kind"] for each in built(service)}
    template = json.dumps(pod_template({}))
    assert "lora" not in template
    assert "adapters" not in template


def test_the_pods_contain_the_two_limits_and_not_the_list() -> None:
    one_adapter, two = pod_template(adapters(SQL)), pod_template(adapters(NEXT, CHAT))
    assert one_adapter == two
    (container,) = one_adapter["spec"]["containers"]
    assert {"--enable-lora", "--max-loras=4", "--max-lora-rank=16"} <= {*container["args"]}
    file = {"name": "LLMSERVICE_ADAPTERS_FILE", "value": "/etc/llmservice/adapters/adapters.json"}
    assert file in container["env"]


def test_room_for_adapters_makes_the_first_one_restart_no_pod() -> None:
    room = {"uri": "hf://org/model", "maxLoras": 2, "maxLoraRank": 32}
    listed = adapters(SQL)["model"]["adapters"]
    assert pod_template({"model": room}) == pod_template({"model": {**room, "adapters": listed}})


def test_the_list_has_the_places_from_which_a_server_loads() -> None:
    service = a_service(
        {
            "model": {
                "uri": "pvc://models/llama",
                "adapters": [
                    {"name": "sql", "uri": "hf://org/sql", "revision": "v1"},
                    {"name": "chat", "uri": "pvc://models/adapters/chat"},
                ],
            }
        }
    )
    manifest = one("ConfigMap", built(service))
    assert manifest["metadata"]["name"] == "qwen-adapters"
    found = json.loads(manifest["data"]["adapters.json"])
    assert found["adapters"] == [
        {"name": "sql", "source": "org/sql", "revision": "v1"},
        {"name": "chat", "source": "/models/adapters/chat"},
    ]
    assert found["served"] == found["adapters"]
    assert service.spec.downloads


def test_an_adapter_with_the_name_of_the_service_is_refused() -> None:
    said = refusal_of(adapters(ListedAdapter("qwen", "org/a")))
    assert said.startswith("spec.model.adapters: must not have the name of the model")


def test_a_new_adapter_is_served_once_every_ready_replica_has_it() -> None:
    wanted = (SQL, CHAT)
    assert served(wanted, [holding(SQL), holding(SQL, CHAT, pod="b")], (SQL,)) == (SQL,)
    assert served(wanted, [holding(SQL, CHAT), holding(SQL, CHAT, pod="b")], (SQL,)) == wanted


def test_a_replica_that_does_not_respond_delays_only_new_adapters() -> None:
    silent = ReplicaLoad(pod="b", is_ready=True)
    assert served((SQL, CHAT), [holding(SQL, CHAT), silent], (SQL,)) == (SQL,)
    assert served((SQL, CHAT), [holding(SQL, CHAT)], (SQL,)) == (SQL,)


def test_a_replica_that_is_not_ready_delays_no_adapter() -> None:
    listed = see_adapters(
        a_service(adapters(SQL)),
        config_map(),
        [replica("a"), replica("b", ready=False)],
        a_report(holding(SQL)),
        has_reports=True,
    ).listed
    assert listed is not None
    assert listed.served == (SQL,)


def test_clients_get_the_previous_adapter_until_the_next_one_is_everywhere() -> None:
    both = holding(SQL, NEXT)
    assert served((NEXT,), [both, holding(SQL, pod="b")], (SQL,)) == (SQL,)
    assert served((NEXT,), [both, holding(NEXT, pod="b")], (SQL,)) == (NEXT,)


def test_a_served_adapter_stays_when_a_replica_lacks_it() -> None:
    broken = holding(SQL, pod="b", failed="its rank is 64")
    assert served((SQL, CHAT), [holding(SQL, CHAT), broken], (SQL, CHAT)) == (SQL, CHAT)


def test_an_adapter_removed_from_the_spec_is_no_longer_served() -> None:
    assert served((SQL,), [holding(SQL, CHAT)], (SQL, CHAT), "a") == (SQL,)


def test_a_service_without_replicas_lists_the_adapters_that_its_replicas_start_with() -> None:
    assert served((SQL, CHAT), [], (), "") == (SQL, CHAT)


def test_without_the_metrics_server_each_replica_serves_what_it_has() -> None:
    found = seen((SQL,), [], has_reports=False)
    assert found.listed == AdapterList((SQL,), None)
    assert found.status is not None
    assert found.status[0].message is not None
    assert found.status[0].message.startswith("The metrics server is off")


@pytest.mark.parametrize(
    "data", [{}, {"adapters.json": "{"}, {"adapters.json": '{"served": 1}'}, None]
)
def test_a_broken_list_is_written_again(data: Any) -> None:
    found = see_adapters(
        a_service(adapters(SQL)),
        {"data": data},
        [replica("a")],
        a_report(holding(SQL)),
        has_reports=True,
    )
    assert found.listed == AdapterList((SQL,), (SQL,))


def test_no_new_adapter_is_served_while_no_replica_is_known() -> None:
    assert next_list((SQL,), (), []).served == ()


def test_the_status_shows_which_replica_has_which_adapter_and_why_one_lacks_it() -> None:
    reports = [holding(SQL, failed="its rank is 64"), holding(SQL, CHAT, pod="b")]
    found = seen((SQL, CHAT), reports, (SQL,)).status
    assert found is not None
    assert [(it.name, it.served, it.replicas, it.message) for it in found] == [
        ("sql", True, ("a", "b"), None),
        ("chat", False, ("b",), "a: its rank is 64"),
    ]


def test_the_status_says_how_many_replicas_have_an_adapter_that_loads() -> None:
    found = seen((SQL, CHAT), [holding(SQL), holding(SQL, CHAT, pod="b")], (SQL,)).status
    assert found is not None
    assert found[1].message == "1 of 2 ready replicas have it."


def test_the_status_names_a_model_server_that_is_too_old_for_adapters() -> None:
    old = ReplicaLoad(pod="a", is_ready=True, phase="ready")
    found = seen((SQL,), [old], (), "a")
    assert found.status is not None
    assert found.status[0].message == (
        "a runs a model server that takes no adapters: set engine.version to the operator's vLLM "
        "version, or engine.image to a newer image."
    )
    assert not found.status[0].served


async def test_a_changed_list_changes_the_config_map_and_no_other_object() -> None:
    world = OneService(**adapters(SQL))
    await world.settle()
    world.cluster.writes.clear()
    world.change(**adapters(SQL, CHAT))
    await world.settle()
    assert set(world.cluster.writes) == {"ConfigMap", "status"}
    (sql, chat) = world.cluster.objects[LLMSERVICES, KEY[1]]["status"]["adapters"]
    assert (sql["name"], chat["name"]) == ("sql", "chat")


async def test_a_list_that_is_no_longer_needed_is_deleted() -> None:
    world = OneService(**adapters(SQL))
    await world.settle()
    assert (CONFIG_MAPS, f"{KEY[1]}-adapters") in world.cluster.objects
    world.change(model={"uri": "hf://org/model"})
    await world.settle()
    assert (CONFIG_MAPS, f"{KEY[1]}-adapters") not in world.cluster.objects
    assert CHILD.is_pruned
