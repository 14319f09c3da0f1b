from pathlib import Path

from llmservice_operator.router.envoy_clusters import build_endpoints, build_picker_endpoints
from llmservice_operator.router.envoy_config import build_bootstrap
from llmservice_operator.router.envoy_names import CLUSTER_OR_FORWARDER, OWN_HEADERS
from llmservice_operator.router_settings import RouterSettings, StepPrior

PRIOR = StepPrior(fixed=0.01, prefill=1e-4, sequence=1e-5, kv=1e-8)


def _settings(folder: Path) -> RouterSettings:
    return RouterSettings(
        namespace="a",
        service="b",
        replicas_host="c",
        step_prior=PRIOR,
        run_directory=folder,
    )


def test_every_listener_removes_the_headers_of_the_proxy(tmp_path: Path) -> None:
    listeners = build_bootstrap(_settings(tmp_path))["static_resources"]["listeners"]
    removed = {}
    for listener in listeners:
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        (extension,) = manager["early_header_mutation_extensions"]
        removed[listener["name"]] = {
            mutation["remove_on_match"]["key_matcher"]["prefix"]
            for mutation in extension["typed_config"]["mutations"]
        }
    # The headers that the forwarder sets are kept. One says how long it held the request.
    of_envoy = {"x-envoy-", "x-gateway-"}
    assert removed == {"clients": of_envoy | {OWN_HEADERS}, "forwarded": of_envoy}


def test_the_forwarder_comes_after_all_replicas_and_is_not_checked() -> None:
    replicas = [("10.0.0.1", 8000), ("10.0.0.2", 8000)]
    content = build_endpoints(CLUSTER_OR_FORWARDER, replicas, last=("127.0.0.1", 9003), version="7")
    first, last = content["resources"][0]["endpoints"]
    assert [first["priority"], last["priority"]] == [0, 1]
    assert len(first["lb_endpoints"]) == 2
    (forwarder,) = last["lb_endpoints"]
    assert forwarder["endpoint"]["health_check_config"] == {"disable_active_health_check": True}


def test_each_picker_has_a_priority_of_its_own() -> None:
    content = build_picker_endpoints([("10.0.0.1", 9002), ("10.0.0.2", 9002)], version="1")
    levels = content["resources"][0]["endpoints"]
    assert [(level["priority"], len(level["lb_endpoints"])) for level in levels] == [(0, 1), (1, 1)]
