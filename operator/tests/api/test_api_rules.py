"""Tests that the rules in CEL, on the real API server, and in Python refuse the same specs."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from llmservice_operator.api.spec import LLMService
from llmservice_operator.errors import InvalidSpec
from operator_support.dry_run import an_object, create
from operator_support.processes import Api, ApiError
from operator_support.services import HARMLESS_FLAG
from operator_support.spec_fields import ROOT, rules_of
from random_specs import SEED, specs_by_schema

MESSAGES = {rule["message"] for rule in rules_of(ROOT)}
"""Messages of the rules. Refusals by the schema are not compared, because Python ignores it."""

texts = st.sampled_from(
    [
        *(
            "hf://org/model",
            "hf://org",
            "hf://o/m@main",
            "pvc://claim/a/b",
            "pvc://claim",
            "pvc://",
        ),
        *(
            "pvc://c/../x",
            "s3://bucket",
            "s3://bucket/a=b/c+d",
            "s3://B/../x",
            "gs://bucket/a",
            "org/model",
            "hf://-/x",
            "pvc://Claim/x",
            "hf://a/b\n",
            "pvc://claim/a",
            "hf://a/b",
        ),
        *("a", "A.b_c", "-a", "a b", "main", "feature/x", "hub-token", "Hub", "nvidia.com/gpu"),
        *("gpu", "registry:5000/a@sha256:0", " image", "$(HF_TOKEN)"),
    ]
)
quantities = st.sampled_from(["1", 2, "1000m", "1.5", "1Gi", "1024Mi", "1x", "", "-1", "1e3"])
amounts = st.fixed_dictionaries(
    {}, optional={"cpu": quantities, "memory": quantities, "ephemeral-storage": quantities}
)
flags = st.sampled_from(
    [
        *(
            "--max-num-seqs=1",
            "--dtype=half",
            "--dtype-x=1",
            "--trust-remote-code=true",
            "--x",
            "-x",
        ),
        *(
            "--port=1",
            "--a_b=1",
            "--Port=1",
            "--x=",
            "--x=\n",
            f"{HARMLESS_FLAG}=$(A)",
            "--x=--port=1",
            "--model=x",
            "--some-plugin=x",
            "--generation-config=vllm",
            "=x",
        ),
    ]
)
tolerations = st.fixed_dictionaries(
    {},
    optional={
        "key": st.sampled_from(["k", "-k"]),
        "operator": st.sampled_from(["Exists", "Equal"]),
        "value": st.sampled_from(["", "v"]),
        "effect": st.sampled_from(["NoSchedule", "NoExecute"]),
        "tolerationSeconds": st.just(3),
    },
)
variables = st.fixed_dictionaries(
    {
        "name": st.sampled_from(
            ["A", "1A", "A-B", "LD_PRELOAD", "XLD_PRELOAD", "HF_TOKEN", "VLLM_X_PATH", "PATH"]
        )
    },
    optional={
        "value": st.sampled_from(["", "v"]),
        "valueFrom": st.fixed_dictionaries(
            {},
            optional={
                each: st.fixed_dictionaries(
                    {"name": st.sampled_from(["a", "a..b"]), "key": st.sampled_from(["k", "a b"])}
                )
                for each in ("secretKeyRef", "configMapKeyRef")
            },
        ),
    },
)
MINIMAL = {"model": {"uri": "hf://org/model"}}
annotation_keys = st.sampled_from(
    ["a/b", "a", "A/b", "/b", "a/", "a/b/c", "a.b/c_d.e", "a b", "-/b"]
)
cidrs = st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "10.0.0.0", "fd00::/8", "x/8"])
peer_selectors = st.sampled_from([{}, {"matchLabels": {"a": "b"}}, {"matchLabels": {"a b": "c"}}])
peers: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "podSelector": peer_selectors,
        "namespaceSelector": peer_selectors,
        "ipBlock": st.fixed_dictionaries(
            {"cidr": cidrs}, optional={"except": st.lists(cidrs, max_size=2)}
        ),
    },
)
portions = st.sampled_from([0, 1, 2, 3, 9999, 10000, "1", "0%", "1%", "50%", "67%", "100%", "101%"])
tokens = st.fixed_dictionaries({"name": texts}, optional={"key": texts})
chats = st.fixed_dictionaries(
    {},
    optional={
        "chatTemplate": st.fixed_dictionaries(
            {},
            optional={
                "inline": st.sampled_from(["{{ a }}", "a"]),
                "configMapKeyRef": st.just({"name": "a", "key": "k"}),
            },
        ),
        "toolCalling": st.fixed_dictionaries({"parser": st.sampled_from(["hermes", "a b"])}),
        "reasoningParser": st.sampled_from(["qwen3", "Qwen"]),
        "imagePullSecrets": st.lists(st.fixed_dictionaries({"name": texts}), max_size=2),
        "env": st.lists(variables, max_size=2),
    },
)
caches = st.fixed_dictionaries(
    {"type": st.sampled_from(["Ephemeral", "PersistentVolumeClaim"])},
    optional={
        "claimName": st.sampled_from(["a", "A"]),
        "size": st.sampled_from(["1Gi", 2, "100G", "x"]),
        "storageClassName": st.just("fast"),
        "accessModes": st.lists(st.just("ReadWriteOnce"), max_size=1),
        "retentionPolicy": st.just("Delete"),
        "compileCache": st.booleans(),
    },
)
label_keys = st.sampled_from(["team", "example.com/team", "-x", "a/b/c", "llmservice.dev/name"])
label_maps = st.dictionaries(label_keys, st.sampled_from(["v", "", "a b"]), max_size=2)
operators = st.sampled_from(["In", "Exists", "Gt"])
requirements = st.fixed_dictionaries(
    {"key": label_keys, "operator": operators},
    optional={"values": st.lists(st.sampled_from(["v", "7", "-"]), max_size=2)},
)
selectors = st.fixed_dictionaries(
    {},
    optional={
        "matchLabels": label_maps,
        "matchExpressions": st.lists(
            requirements.filter(lambda each: each["operator"] != "Gt"), max_size=2
        ),
    },
)
node_terms = st.fixed_dictionaries(
    # The schema, which this test does not evaluate, refuses more.
    {"matchExpressions": st.lists(requirements, min_size=1, max_size=8)}
)
pod_terms = st.fixed_dictionaries(
    {"topologyKey": label_keys},
    optional={"labelSelector": selectors, "matchLabelKeys": st.lists(label_keys, max_size=2)},
)
required = "requiredDuringSchedulingIgnoredDuringExecution"
preferred = "preferredDuringSchedulingIgnoredDuringExecution"
placements = st.fixed_dictionaries(
    {},
    optional={
        "nodeSelector": label_maps,
        "affinity": st.fixed_dictionaries(
            {},
            optional={
                "nodeAffinity": st.fixed_dictionaries(
                    {
                        required: st.fixed_dictionaries(
                            {"nodeSelectorTerms": st.lists(node_terms, min_size=1, max_size=2)}
                        )
                    }
                ),
                "podAntiAffinity": st.fixed_dictionaries(
                    {
                        preferred: st.lists(
                            st.fixed_dictionaries(
                                {"weight": st.just(1), "podAffinityTerm": pod_terms}
                            ),
                            max_size=2,
                        )
                    }
                ),
            },
        ),
        "topologySpreadConstraints": st.lists(
            st.fixed_dictionaries(
                {
                    "maxSkew": st.just(1),
                    "topologyKey": label_keys,
                    "whenUnsatisfiable": st.sampled_from(["DoNotSchedule", "ScheduleAnyway"]),
                },
                optional={
                    "labelSelector": selectors,
                    "matchLabelKeys": st.lists(label_keys, max_size=2),
                    "minDomains": st.just(2),
                },
            ),
            max_size=2,
        ),
        "serviceAccountName": st.sampled_from(["a.b", "A"]),
        "labels": label_maps,
        "annotations": label_maps,
    },
)
sections: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "model": st.fixed_dictionaries(
        {"uri": texts},
        optional={
            "name": texts,
            "aliases": st.lists(texts, max_size=3),
            "revision": texts,
            "credentialsSecretRef": tokens,
        },
    ),
    "accelerator": st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["nvidia", "amd", "cpu"]),
            "count": st.just(2),
            "class": st.sampled_from(["H100", "a b"]),
            "resourceName": st.sampled_from(["nvidia.com/gpu", "gpu", "a/b c", "A.b/c"]),
        },
    ),
    "engine": st.fixed_dictionaries(
        {},
        optional={
            "image": texts,
            "version": st.sampled_from(["0.32.0", "0.32", "v0.32.0"]),
            "extraArgs": st.lists(flags, max_size=2),
            "maxModelLen": st.sampled_from([0, 4, 64, "Auto", "auto", "4"]),
            "batching": st.fixed_dictionaries(
                {},
                optional={
                    "maxNumSeqs": st.sampled_from([1, 32, 2048, 2049]),
                    "maxNumBatchedTokens": st.sampled_from([8, 128]),
                    "chunkedPrefill": st.booleans(),
                    "longPrefillTokenThreshold": st.sampled_from([0, 4, 50, 100]),
                },
            ),
        },
    ),
    "resources": st.fixed_dictionaries({}, optional={"requests": amounts, "limits": amounts}),
    "service": st.fixed_dictionaries(
        {"annotations": st.dictionaries(st.one_of(texts, annotation_keys), st.just("v"))}
    ),
    "networkPolicy": st.fixed_dictionaries(
        {}, optional={"enabled": st.booleans(), "from": st.lists(peers, max_size=2)}
    ),
    "rolloutStrategy": st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["Auto", "RollingUpdate", "Recreate"]),
            "maxSurge": portions,
            "maxUnavailable": portions,
        },
    ),
    "podDisruptionBudget": st.fixed_dictionaries(
        {}, optional={"minAvailable": portions, "maxUnavailable": portions}
    ),
    "auth": st.fixed_dictionaries({"apiKeysSecretRef": tokens}),
    "template": st.fixed_dictionaries({"tolerations": st.lists(tolerations, max_size=2)}),
}


counts = st.sampled_from([1, 2, 5])


@settings(max_examples=100)
@given(
    scaling=st.fixed_dictionaries(
        {},
        optional={
            "replicas": counts,
            "autoscaling": st.fixed_dictionaries(
                {"maxReplicas": counts},
                optional={
                    "minReplicas": counts,
                    "metric": st.sampled_from(["RequestsWaiting", "KVCacheUsage"]),
                    "targetRequestsWaiting": counts,
                },
            ),
        },
    )
)
def test_cel_and_python_agree_on_what_sets_the_replicas(api: Api, scaling: dict[str, Any]) -> None:
    assert_same_verdict(api, an_object({**MINIMAL, **scaling}))


@settings(max_examples=200)
@given(
    replicas=st.one_of(
        st.fixed_dictionaries({}, optional={"replicas": st.sampled_from([0, 1, 2, 3, 4])}),
        st.fixed_dictionaries({"minReplicas": counts, "maxReplicas": st.just(5)}).map(
            lambda bounds: {"autoscaling": bounds}
        ),
    ),
    budget=sections["podDisruptionBudget"],
)
def test_cel_and_python_agree_on_which_budget_lets_a_drain_finish(
    api: Api, replicas: dict[str, Any], budget: dict[str, Any]
) -> None:
    assert_same_verdict(api, an_object({**MINIMAL, **replicas, "podDisruptionBudget": budget}))


names = st.sampled_from(["qwen", "7b", "a.b", "A", "a-", "a" * 63, "a" * 64, "a-b-2"])


small = st.sampled_from([1, 2, 3])


@settings(max_examples=200)
@given(
    engine=st.fixed_dictionaries(
        {
            "speculativeDecoding": st.fixed_dictionaries(
                {
                    "method": st.sampled_from(["Ngram", "Suffix", "Eagle", "MTP"]),
                    "numSpeculativeTokens": small,
                },
                optional={
                    "draftModel": st.fixed_dictionaries(
                        {"uri": texts}, optional={"revision": texts, "quantization": texts}
                    ),
                    "ngram": st.fixed_dictionaries(
                        {"promptLookupMax": small}, optional={"promptLookupMin": small}
                    ),
                    "schedule": st.lists(
                        st.fixed_dictionaries(
                            {
                                "minBatchSize": small,
                                "maxBatchSize": small,
                                "numSpeculativeTokens": small,
                            }
                        ),
                        max_size=3,
                    ),
                },
            )
        },
        optional={
            "image": st.just("mine:1"),
            "parallelism": st.fixed_dictionaries({}, optional={"data": st.sampled_from([1, 2])}),
        },
    )
)
def test_cel_and_python_agree_on_speculation(api: Api, engine: dict[str, Any]) -> None:
    assert_same_verdict(api, an_object({**MINIMAL, "engine": engine}))


@settings(max_examples=150)
@given(
    accelerator=sections["accelerator"],
    engine=st.fixed_dictionaries(
        {},
        optional={
            "parallelism": st.fixed_dictionaries(
                {},
                optional={
                    "tensor": st.sampled_from([1, 2, 8]),
                    "pipeline": st.sampled_from([1, 2, 9]),
                    "data": st.sampled_from([1, 2]),
                },
            ),
            "gpuMemoryUtilizationPercent": st.just(90),
            "kvCache": st.fixed_dictionaries(
                {"offload": st.fixed_dictionaries({"cpu": st.sampled_from(["1Gi", "1", 2, "x"])})}
            ),
            "quantization": st.sampled_from(["fp8", "a b"]),
        },
    ),
)
def test_cel_and_python_agree_on_what_a_gpu_and_a_cpu_can_do(
    api: Api, accelerator: dict[str, Any], engine: dict[str, Any]
) -> None:
    assert_same_verdict(api, an_object({**MINIMAL, "accelerator": accelerator, "engine": engine}))


@settings(max_examples=200)
@given(engine=chats)
def test_cel_and_python_agree_on_chats_and_on_the_container(
    api: Api, engine: dict[str, Any]
) -> None:
    assert_same_verdict(api, an_object({**MINIMAL, "engine": engine}))


@settings(max_examples=300)
@given(
    model=st.fixed_dictionaries(
        {"uri": st.sampled_from(["hf://a/b", "pvc://a"])},
        optional={"cache": caches, "offline": st.booleans()},
    ),
    limits=st.fixed_dictionaries(
        {}, optional={"ephemeral-storage": st.sampled_from(["1Gi", "9G", 1, "x"])}
    ),
)
def test_cel_and_python_agree_on_caches(
    api: Api, model: dict[str, Any], limits: dict[str, Any]
) -> None:
    assert_same_verdict(api, an_object({"model": model, "resources": {"limits": limits}}))


@settings(max_examples=300)
@given(template=placements)
def test_cel_and_python_agree_on_where_pods_may_run(api: Api, template: dict[str, Any]) -> None:
    assert_same_verdict(api, an_object({**MINIMAL, "template": template}))


@pytest.mark.parametrize("section", sections)
@settings(max_examples=150)
@given(data=st.data())
def test_cel_and_python_refuse_the_same_specs_with_the_same_messages(
    api: Api, section: str, data: st.DataObject
) -> None:
    assert_same_verdict(api, an_object({**MINIMAL, section: data.draw(sections[section])}))


@settings(deadline=None)
@given(name=names)
def test_cel_and_python_refuse_the_same_names(api: Api, name: str) -> None:
    assert_same_verdict(api, an_object(MINIMAL, name))


@seed(SEED)
@settings(max_examples=120, database=None, suppress_health_check=list(HealthCheck))
@given(specs_by_schema())
def test_cel_and_python_agree_on_every_field_that_the_schema_has(
    api: Api, spec: dict[str, Any]
) -> None:
    assert_same_verdict(api, an_object(spec))


def assert_same_verdict(api: Api, body: dict[str, Any]) -> None:
    try:
        create(api, body)
    except ApiError as error:
        said = error.message
    else:
        said = ""
    broken = {message for message in MESSAGES if message in said}
    refusal = refusal_of(body)
    agree = refusal in broken if broken else refusal is None
    assert agree, f"{body['spec']}: {said}, {refusal}"


def refusal_of(body: dict[str, Any]) -> str | None:
    try:
        LLMService.parse(body)
    except InvalidSpec as error:
        return error.message
    return None
