from typing import Any

import pytest
import yaml

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.environment import VARIABLES_WITH_A_FIELD, is_refused_variable
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import Context, build_all
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload import resolve_pin
from operator_support.examples import example_text
from operator_support.services import SETTINGS, a_service, one


def objects(service: LLMService, settings: OperatorSettings = SETTINGS) -> list[Manifest]:
    return build_all(Context.of(service, settings, resolve_pin(service, None, settings)))


def deployment(spec: dict[str, Any] | None = None, **settings: Any) -> Manifest:
    found = objects(a_service(spec), OperatorSettings(images=SETTINGS.images, **settings))
    return one("Deployment", found)


def pod_spec(spec: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = deployment(spec, **settings)["spec"]["template"]["spec"]
    return found


def server(spec: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    (container,) = pod_spec(spec, **settings)["containers"]
    assert isinstance(container, dict)
    return container


def environment(spec: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    variables = server(spec, **settings)["env"]
    assert len({variable["name"] for variable in variables}) == len(variables)
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in variables}


def test_every_object_belongs_to_the_service_and_carries_its_label() -> None:
    for manifest in objects(a_service()):
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert owner == {
            "apiVersion": "llmservice.dev/v1alpha1",
            "kind": "LLMService",
            "name": "qwen",
            "uid": "uid-1",
            "controller": True,
            "blockOwnerDeletion": True,
        }
        assert manifest["metadata"]["namespace"] == "team"
        assert manifest["metadata"]["labels"][names.SERVICE_LABEL] == "qwen"
        assert manifest["metadata"]["labels"][names.MANAGED_BY_LABEL] == "llmservice-operator"


def test_the_model_server_judges_by_the_slo_and_switching_autoscaling_on_restarts_nothing() -> None:
    fixed, autoscaled = pod_spec(), pod_spec({"autoscaling": {"maxReplicas": 3}})
    assert fixed == autoscaled
    variables = environment({"slo": {"ttftMilliseconds": 800}})
    assert variables[names.SLO_TTFT_ENV] == "800"
    assert names.SLO_ITL_ENV not in variables
    assert environment()[names.SLO_ITL_ENV] == "50"
    assert not {names.SLO_TTFT_ENV, names.SLO_ITL_ENV} & environment({"slo": {}}).keys()


def test_the_service_object_leads_to_the_api_port_of_the_pods_and_to_no_other() -> None:
    found = objects(a_service())
    workload, kubernetes_service = one("Deployment", found), one("Service", found)
    (port,) = kubernetes_service["spec"]["ports"]
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    numbers = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert numbers[port["targetPort"]] == 8000
    assert port["port"] == 80
    assert (
        kubernetes_service["spec"]["selector"].items()
        <= workload["spec"]["template"]["metadata"]["labels"].items()
    )
    assert workload["spec"]["selector"]["matchLabels"] == kubernetes_service["spec"]["selector"]


def test_pods_meet_the_restricted_pod_security_standard() -> None:
    pod, container = pod_spec(), server()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    allowed = {"emptyDir", "persistentVolumeClaim", "name"}
    assert all(volume.keys() <= allowed for volume in pod["volumes"])


def test_pods_get_no_token_of_the_api_server_and_no_service_links() -> None:
    assert pod_spec()["automountServiceAccountToken"] is False
    assert pod_spec()["enableServiceLinks"] is False


def test_every_place_the_server_writes_to_is_a_bounded_volume() -> None:
    pod, container = pod_spec(), server()
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
    assert set(mounted) == {"/cache", "/tmp", "/dev/shm"}
    assert all(volumes[name]["sizeLimit"] for name in mounted.values())
    assert volumes[mounted["/dev/shm"]]["medium"] == "Memory"
    for variable, value in environment().items():
        if variable.endswith(("HOME", "_DIR", "_ROOT")):
            assert value.startswith(("/cache", "/tmp")), variable


@pytest.mark.parametrize(
    ("offloaded", "limit"), [(None, "8Gi"), ("64Gi", "72Gi"), ("1500Mi", "10Gi")]
)
def test_shared_memory_has_room_for_the_kv_cache_that_the_engine_offloads_into_it(
    offloaded: str | None, limit: str
) -> None:
    engine = {} if offloaded is None else {"kvCache": {"offload": {"cpu": offloaded}}}

    volumes = {volume["name"]: volume for volume in pod_spec({"engine": engine})["volumes"]}

    assert volumes["shm"]["emptyDir"]["sizeLimit"] == limit


@pytest.mark.parametrize(
    ("args", "engines", "limit"),
    [
        (["--mm-processor-cache-gb=32"], 1, "8Gi"),
        (["--mm-processor-cache-type=lru", "--mm-processor-cache-gb=32"], 1, "8Gi"),
        (["--mm-processor-cache-type=shm"], 1, "8Gi"),
        (["--mm-processor-cache-type=shm"], 2, "12Gi"),
        (["--mm-processor-cache-type=shm", "--mm-processor-cache-gb=32"], 1, "36Gi"),
        (["--mm-processor-cache-gb=32", "--mm-processor-cache-type=shm"], 2, "68Gi"),
        (["--mm-processor-cache-type=shm", "--mm-processor-cache-gb=8.5"], 1, "13Gi"),
        (["--mm-processor-cache-type=shm", "--mm-processor-cache-gb=lots"], 1, "8Gi"),
        (["--mm-processor-cache-type=shm", "--mm-processor-cache-gb=inf"], 1, "8Gi"),
        (["--mm-processor-cache-type=shm", "--mm-processor-cache-gb=nan"], 1, "8Gi"),
    ],
)
def test_shared_memory_has_room_for_the_cache_of_images_that_the_engine_keeps_there(
    args: list[str], engines: int, limit: str
) -> None:
    engine = {"extraArgs": args, "parallelism": {"data": engines}}

    volumes = {volume["name"]: volume for volume in pod_spec({"engine": engine})["volumes"]}

    assert volumes["shm"]["emptyDir"]["sizeLimit"] == limit


def test_the_server_gets_its_ports() -> None:
    variables = environment()
    assert variables["LLMSERVICE_API_PORT"] == "8000"
    assert variables["LLMSERVICE_MANAGEMENT_PORT"] == "9090"


@pytest.mark.parametrize(("pre_stop", "failures"), [(0, 2), (5, 2), (6, 3), (30, 7), (300, 61)])
def test_a_pod_stays_ready_while_it_accepts_requests(pre_stop: int, failures: int) -> None:
    probe = server({"termination": {"preStopSeconds": pre_stop}})["readinessProbe"]
    assert probe["failureThreshold"] == failures
    # The first probe may fail immediately.
    assert (probe["failureThreshold"] - 1) * probe["periodSeconds"] >= pre_stop


@pytest.mark.parametrize(
    ("termination", "pre_stop", "drain", "grace"),
    [
        ({}, "5", "600", 620),
        ({"preStopSeconds": 30}, "30", "600", 645),
        ({"preStopSeconds": 0, "drainTimeoutSeconds": 0}, "0", "0", 15),
    ],
    ids=["defaults", "slow proxies", "at once"],
)
def test_the_kubelet_waits_for_the_whole_drain_and_runs_no_hook(
    termination: dict[str, int], pre_stop: str, drain: str, grace: int
) -> None:
    spec = {"termination": termination}
    variables = environment(spec)
    assert variables["LLMSERVICE_PRE_STOP_SECONDS"] == pre_stop
    assert variables["LLMSERVICE_DRAIN_TIMEOUT_SECONDS"] == drain
    assert pod_spec(spec)["terminationGracePeriodSeconds"] == grace
    assert "lifecycle" not in server(spec)


@pytest.mark.parametrize(
    ("spec", "timeout"),
    [
        ({}, "600"),
        ({"termination": {"drainTimeoutSeconds": 60}}, "600"),
        ({"termination": {"drainTimeoutSeconds": 3600}}, "3600"),
        (
            {"termination": {"drainTimeoutSeconds": 3600}, "serving": {"requestTimeoutSeconds": 9}},
            "9",
        ),
        ({"serving": {"requestTimeoutSeconds": 0}}, "0"),
    ],
    ids=["default", "a short drain", "a long drain", "the spec's own", "no limit"],
)
def test_a_request_may_take_as_long_as_a_drain_waits_for_it_unless_the_spec_says_otherwise(
    spec: dict[str, Any], timeout: str
) -> None:
    assert environment(spec)["LLMSERVICE_REQUEST_TIMEOUT_SECONDS"] == timeout


def test_the_server_gets_the_limits_of_the_spec_and_has_its_own_for_the_others() -> None:
    limits = {"engineHangSeconds": 300, "maxBodyMebibytes": 64, "maxChoices": 4}
    told = environment({"serving": limits})
    assert told["LLMSERVICE_ENGINE_HANG_SECONDS"] == "300"
    assert told["LLMSERVICE_MAX_BODY_BYTES"] == "67108864"
    assert told["LLMSERVICE_MAX_CHOICES"] == "4"
    assert environment()["LLMSERVICE_ENGINE_HANG_SECONDS"] == "120"
    assert not {"LLMSERVICE_MAX_BODY_BYTES", "LLMSERVICE_MAX_CHOICES"} & environment().keys()


@pytest.mark.parametrize(
    ("reference", "items"),
    [
        ({"name": "keys"}, None),
        ({"name": "keys", "key": "team-a"}, [{"key": "team-a", "path": "team-a"}]),
    ],
    ids=["every key", "one key"],
)
def test_api_keys_are_mounted_and_the_server_gets_their_path(
    reference: dict[str, str], items: list[dict[str, str]] | None
) -> None:
    spec = {"auth": {"apiKeysSecretRef": reference}}
    (source,) = (each["secret"] for each in pod_spec(spec)["volumes"] if "secret" in each)
    assert (source["secretName"], source.get("items")) == ("keys", items)
    assert source["defaultMode"] == 0o440
    path = environment(spec)["LLMSERVICE_API_KEYS_DIRECTORY"]
    mount = {"name": "api-keys", "mountPath": path, "readOnly": True}
    assert mount in server(spec)["volumeMounts"]


def test_without_keys_no_client_needs_one() -> None:
    assert "LLMSERVICE_API_KEYS_DIRECTORY" not in environment()


def test_the_server_keeps_the_cached_prompts_of_keys_apart_only_if_the_spec_says_so() -> None:
    auth: dict[str, Any] = {"apiKeysSecretRef": {"name": "keys"}}
    variable = "LLMSERVICE_ISOLATE_PREFIX_CACHE"
    assert variable not in environment({"auth": auth})
    assert environment({"auth": {**auth, "isolatePrefixCache": True}})[variable] == "true"
    assert not [each for each in pod_spec()["volumes"] if "secret" in each]


def test_the_service_object_has_the_port_of_the_nodes_and_the_class_of_the_load_balancer() -> None:
    wanted = {"type": "LoadBalancer", "nodePort": 31080, "loadBalancerClass": "example.com/vip"}
    found = one("Service", objects(a_service({"service": wanted})))["spec"]
    assert found["loadBalancerClass"] == "example.com/vip"
    assert [port["nodePort"] for port in found["ports"]] == [31080]


@pytest.mark.parametrize(
    ("wanted", "url"),
    [
        ({}, "http://qwen.team.svc"),
        ({"type": "NodePort", "port": 8080}, "http://qwen.team.svc:8080"),
        (
            {"type": "LoadBalancer", "port": 443, "annotations": {"a.b/scheme": "internal"}},
            "http://qwen.team.svc:443",
        ),
    ],
    ids=["default", "NodePort", "LoadBalancer"],
)
def test_no_service_object_leads_to_the_management_port(wanted: dict[str, Any], url: str) -> None:
    service = a_service({"service": wanted})
    found = one("Service", objects(service))
    assert found["spec"]["type"] == wanted.get("type", "ClusterIP")
    assert found["metadata"].get("annotations") == wanted.get("annotations")
    (port,) = found["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (wanted.get("port", 80), "api")
    assert names.url(service) == url


def test_the_hub_is_the_public_one_unless_the_settings_name_another() -> None:
    assert "HF_ENDPOINT" not in environment()
    assert environment(hub_endpoint="http://hub")["HF_ENDPOINT"] == "http://hub"


def test_a_service_may_have_a_hub_of_its_own() -> None:
    spec = {"model": {"uri": "hf://org/model", "hubEndpoint": "https://own.example"}}
    assert environment(spec)["HF_ENDPOINT"] == "https://own.example"
    assert environment(spec, hub_endpoint="http://hub")["HF_ENDPOINT"] == "https://own.example"


def test_the_token_is_referenced_and_never_copied() -> None:
    model = {"uri": "hf://org/model", "credentialsSecretRef": {"name": "hub-token"}}
    reference = {"secretKeyRef": {"name": "hub-token", "key": "HF_TOKEN"}}
    assert environment({"model": model})["HF_TOKEN"] == reference
    assert "HF_TOKEN" not in environment()


def test_variables_of_the_spec_follow_those_of_the_operator() -> None:
    secret, config_map = {"name": "s", "key": "k"}, {"name": "c", "key": "k"}
    given = [
        {"name": "NCCL_DEBUG", "value": "INFO"},
        {"name": "EMPTY", "value": ""},
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": secret}},
        {"name": "SHARED", "valueFrom": {"configMapKeyRef": config_map}},
    ]
    variables = server({"engine": {"env": given}})["env"]
    # The API server drops an empty value. If it were sent, the live object would always differ.
    assert variables[-4:] == [given[0], {"name": "EMPTY"}, *given[2:]]
    assert variables[:-4] == server()["env"]


@pytest.mark.parametrize("name", environment())
def test_a_variable_of_the_operator_cannot_be_set_by_the_spec(name: str) -> None:
    assert is_refused_variable(name) or name in VARIABLES_WITH_A_FIELD


@pytest.mark.parametrize(
    "name",
    [
        *("LD_LIBRARY_PATH", "PYTHONPATH", "PATH", "BASH_ENV", "VLLM_PLUGINS", "XDG_CONFIG_HOME"),
        *("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_NCCL_SO_PATH"),
        *("VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_LOGGING_CONFIG_PATH", "NCCL_NET_PLUGIN"),
        *("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "KUBERNETES_SERVICE_HOST", "CXX"),
        *("AMD_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "AITER_JIT_DIR"),
    ],
)
def test_a_variable_that_could_harm_is_refused(name: str) -> None:
    assert is_refused_variable(name)


@pytest.mark.parametrize(
    "name",
    [
        *("NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "HTTPS_PROXY", "OMP_NUM_THREADS", "TZ", "HF_DEBUG"),
        *("VLLM_ATTENTION_BACKEND", "VLLM_LOGGING_LEVEL", "NVIDIA_TF32_OVERRIDE", "PATHS"),
    ],
)
def test_a_variable_that_tunes_is_taken(name: str) -> None:
    assert not is_refused_variable(name)


def test_a_chat_template_of_a_config_map_is_a_variable_whose_absence_is_an_error() -> None:
    reference = {"name": "texts", "key": "chat"}
    spec = {"engine": {"chatTemplate": {"configMapKeyRef": reference}}}
    assert environment(spec)["LLMSERVICE_CHAT_TEMPLATE"] == {"configMapKeyRef": reference}
    assert server(spec)["args"][-1] == "--chat-template=$(LLMSERVICE_CHAT_TEMPLATE)"


def test_the_image_is_pulled_as_the_spec_says_and_by_default_as_kubernetes_does() -> None:
    assert "imagePullPolicy" not in server()
    assert "imagePullSecrets" not in pod_spec()
    spec = {"engine": {"imagePullPolicy": "Never", "imagePullSecrets": [{"name": "login"}]}}
    assert server(spec)["imagePullPolicy"] == "Never"
    assert pod_spec(spec)["imagePullSecrets"] == [{"name": "login"}]


def test_a_claim_is_mounted_read_only() -> None:
    spec = {"model": {"uri": "pvc://weights/llama"}}
    assert {
        "name": "models",
        "persistentVolumeClaim": {"claimName": "weights", "readOnly": True},
    } in pod_spec(spec)["volumes"]
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in server(spec)[
        "volumeMounts"
    ]


@pytest.mark.parametrize(
    ("spec", "resources"),
    [
        (
            {"accelerator": {"type": "cpu"}},
            {"requests": {"cpu": "500m", "memory": "2Gi"}},
        ),
        (
            {},
            {
                "requests": {"cpu": "1", "memory": "4Gi", "nvidia.com/gpu": "1"},
                "limits": {"nvidia.com/gpu": "1"},
            },
        ),
        (
            {
                "accelerator": {"count": 2},
                "engine": {"kvCache": {"offload": {"cpu": "1500Mi"}}},
            },
            {
                "requests": {"cpu": "2", "memory": "10Gi", "nvidia.com/gpu": "2"},
                "limits": {"nvidia.com/gpu": "2"},
            },
        ),
        (
            {
                "accelerator": {"count": 2, "resourceName": "nvidia.com/mig-1g.10gb"},
                "resources": {"requests": {"cpu": "250m", "ephemeral-storage": "9Gi"}},
            },
            {
                "requests": {
                    "cpu": "250m",
                    "memory": "8Gi",
                    "ephemeral-storage": "9Gi",
                    "nvidia.com/mig-1g.10gb": "2",
                },
                "limits": {"nvidia.com/mig-1g.10gb": "2"},
            },
        ),
        (
            {"accelerator": {"type": "cpu"}, "resources": {"limits": {"memory": "1Gi"}}},
            {"requests": {"cpu": "500m"}, "limits": {"memory": "1Gi"}},
        ),
        (
            {"accelerator": {"type": "cpu"}, "resources": {"limits": {"cpu": 8, "memory": "9Gi"}}},
            {"limits": {"cpu": "8", "memory": "9Gi"}},
        ),
    ],
    ids=[
        "a CPU",
        "one GPU",
        "room for the KV cache beside the GPUs",
        "MIG slices",
        "a limit, which is a request too",
        "limits alone",
    ],
)
def test_a_replica_requests_gpus_and_the_resources_of_the_spec_or_small_defaults(
    spec: dict[str, Any], resources: dict[str, Any]
) -> None:
    assert server(spec)["resources"] == resources


@pytest.mark.parametrize(
    ("startup", "seconds", "deadline"),
    [({}, 1800, 3000), ({"timeoutSeconds": 7200}, 7200, 8400), ({"timeoutSeconds": 61}, 65, 1261)],
    ids=["default", "two hours", "the end of a probe's period"],
)
def test_a_start_may_take_as_long_as_the_spec_says_and_no_rollout_is_stuck_before(
    startup: dict[str, int], seconds: int, deadline: int
) -> None:
    probe = server({"startup": startup})["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] == seconds
    assert deployment({"startup": startup})["spec"]["progressDeadlineSeconds"] == deadline


def test_a_server_that_answers_no_probe_gets_no_time_to_drain() -> None:
    probes = server({"termination": {"drainTimeoutSeconds": 3600}})
    assert probes["startupProbe"]["terminationGracePeriodSeconds"] == 30
    assert probes["livenessProbe"]["terminationGracePeriodSeconds"] == 30


def test_a_server_is_restarted_after_a_minute_of_silence_and_not_before() -> None:
    alive = server()["livenessProbe"]
    assert alive["failureThreshold"] * alive["periodSeconds"] == 60
    assert alive["timeoutSeconds"] == alive["periodSeconds"]


def test_probes_use_the_management_port() -> None:
    probes = {name: server()[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness")}
    assert probes["startup"] == {"path": "/startupz", "port": "management"}
    assert probes["liveness"] == {"path": "/livez", "port": "management"}
    assert server()["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "management"}


@pytest.mark.parametrize(
    ("spec", "replicas"),
    [
        ({}, 1),
        ({"replicas": 0}, 0),
        ({"replicas": 3}, 3),
        ({"replicas": 3, "suspend": True}, 0),
        ({"replicas": 3, "suspend": False}, 3),
    ],
)
def test_replicas_are_those_of_the_spec_and_one_by_default(
    spec: dict[str, Any], replicas: int
) -> None:
    assert deployment(spec)["spec"]["replicas"] == replicas


@pytest.mark.parametrize(
    ("spec", "allowance"),
    [
        ({}, {"maxUnavailable": 1}),
        ({"replicas": 4}, {"maxUnavailable": 1}),
        ({"podDisruptionBudget": {"maxUnavailable": "25%"}}, {"maxUnavailable": "25%"}),
        ({"replicas": 3, "podDisruptionBudget": {"minAvailable": 2}}, {"minAvailable": 2}),
        ({"replicas": 2, "podDisruptionBudget": {"minAvailable": "50%"}}, {"minAvailable": "50%"}),
        ({"replicas": 0, "podDisruptionBudget": {"minAvailable": 2}}, {"minAvailable": 2}),
    ],
    ids=["one replica", "four replicas", "a quarter", "two of three", "a half", "none now"],
)
def test_a_node_drain_may_take_one_replica_unless_the_spec_says_otherwise(
    spec: dict[str, Any], allowance: dict[str, Any]
) -> None:
    found = objects(a_service(spec))
    budget = one("PodDisruptionBudget", found)["spec"]
    assert budget == {
        **allowance,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": one("Deployment", found)["spec"]["selector"],
    }


def test_the_pin_is_recorded_where_it_rolls_no_pod() -> None:
    workload = deployment()
    assert workload["metadata"]["annotations"] == {
        "llmservice.dev/engine-version": "0.32.0",
        "llmservice.dev/engine-default-for": "nvidia",
    }
    assert "annotations" not in workload["spec"]["template"]["metadata"]


def test_a_service_that_was_never_in_a_cluster_owns_nothing() -> None:
    for manifest in objects(LLMService.parse(yaml.safe_load(example_text("minimal")))):
        assert "ownerReferences" not in manifest["metadata"]
