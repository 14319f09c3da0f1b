"""Values that the chart refuses, each with a part of the message that names the value."""

from typing import Any

Values = dict[str, Any]


def _class(**fields: Any) -> Values:
    return {"acceleratorClasses": {"x": fields}}


def _replica(**resources: Any) -> Values:
    return _class(resources=resources)


UNKNOWN: list[tuple[Values, str]] = [
    ({"replcas": 3}, "at '': additional properties 'replcas' not allowed"),
    ({"image": {"tga": "1"}}, "at '/image': additional properties 'tga' not allowed"),
    ({"server": {"image": "x"}}, "at '/server': additional properties 'image' not allowed"),
    ({"server": None}, "missing property 'server'"),
    ({"imagePullSecrets": [{"nam": "x"}]}, "additional properties 'nam' not allowed"),
    ({"resources": {"limit": {}}}, "at '/resources': additional properties 'limit' not"),
    ({"metricsServer": {"replica": 1}}, "at '/metricsServer': additional properties 'replica'"),
    ({"monitoring": {"podLables": {}}}, "at '/monitoring': additional properties 'podLables'"),
    ({"affinity": {"foo": "bar"}}, "at '/affinity': additional properties 'foo' not allowed"),
    ({"tolerations": [{"foo": "bar"}]}, "at '/tolerations/0': additional properties 'foo'"),
    ({"podSecurityContext": {"privileged": True}}, "at '/podSecurityContext': additional"),
    ({"containerSecurityContext": {"fsGroup": 1}}, "at '/containerSecurityContext': additional"),
]
"""Values that the chart does not have, or that it needs."""

TYPES: list[tuple[Values, str]] = [
    ({"imagePullSecrets": ["x"]}, "at '/imagePullSecrets/0': got string, want object"),
    ({"replicas": "2"}, "at '/replicas': got string, want integer"),
    ({"crds": {"keep": "no"}}, "at '/crds/keep': got string, want boolean"),
    ({"watchNamespaces": "team-a"}, "at '/watchNamespaces': got string, want array"),
    ({"podLabels": {"a": True}}, "at '/podLabels/a': got boolean, want string"),
    ({"commonLabels": {"a": 1}}, "at '/commonLabels/a': got number, want string"),
    ({"metricsServer": {"hostNetwork": True}}, "at '/metricsServer/hostNetwork': got boolean"),
    ({"extraEnv": {"A": "b"}}, "at '/extraEnv': got object, want array"),
    ({"extraObjects": [1]}, "at '/extraObjects/0': got number, want string or object"),
]

CONTENTS: list[tuple[Values, str]] = [
    (
        {"keda": {"authentication": {"kind": "Secret"}}},
        "must be one of 'ClusterTriggerAuthentication', 'TriggerAuthentication'",
    ),
    ({"userIds": "10001"}, "must be one of 'Auto', 'Fixed', 'Namespace'"),
    ({"replicas": -1}, "at '/replicas': minimum: got -1, want 0"),
    ({"leaseSeconds": 14}, "at '/leaseSeconds': minimum: got 14, want 15"),
    ({"logLevel": "loud"}, "must be one of 'debug', 'info', 'warning', 'error'"),
    ({"gpusPerNode": 65}, "at '/gpusPerNode': maximum: got 65, want 64"),
    ({"global": {"imageRegistry": "https://a"}}, "at '/global/imageRegistry': 'https://a' does"),
    ({"image": {"pullPolicy": "Sometimes"}}, "one of 'Always', 'IfNotPresent', 'Never'"),
    ({"image": {"digest": "sha256:abc"}}, "at '/image/digest': 'sha256:abc' does not match"),
    ({"image": {"tag": "a b"}}, "at '/image/tag': 'a b' does not match pattern"),
    ({"image": {"repository": "Bad Repo"}}, "at '/image/repository': 'Bad Repo' does not match"),
    ({"image": {"registry": "http://a"}}, "at '/image/registry': 'http://a' does not match"),
    ({"model": {"hubEndpoint": "hub.local"}}, "at '/model/hubEndpoint': 'hub.local' does not"),
    ({"model": {"hubEndpoint": "https://hub:65536"}}, "at '/model/hubEndpoint': 'https://hub:6"),
    ({"model": {"hubEndpoint": "https://:443"}}, "at '/model/hubEndpoint': 'https://:443' does"),
    ({"server": {"gpuImage": ":1"}}, "at '/server/gpuImage': ':1' does not match pattern"),
    ({"server": {"cpuImage": "a b"}}, "at '/server/cpuImage': 'a b' does not match pattern"),
    ({"server": {"engineVersion": "latest"}}, "at '/server/engineVersion': 'latest' does not"),
    ({"server": {"proxy": {"http": "proxy"}}}, "at '/server/proxy/http': 'proxy' does not"),
    ({"server": {"caBundle": {"kind": "File"}}}, "at '/server/caBundle/kind': value must be one"),
    ({"server": {"caBundle": {"name": "a..b"}}}, "at '/server/caBundle/name': 'a..b' does not"),
    ({"server": {"amdGroups": [0]}}, "at '/server/amdGroups/0': minimum: got 0, want 1"),
    ({"router": {"image": "a:b:c"}}, "at '/router/image': 'a:b:c' does not match"),
    ({"imagePullSecrets": [{"name": "A"}]}, "at '/imagePullSecrets/0/name': 'A' does not match"),
    ({"watchNamespaces": ["Team A"]}, "at '/watchNamespaces/0': 'Team A' does not match"),
    ({"watchNamespaces": ["a", "a"]}, "at '/watchNamespaces': items at 0 and 1 are equal"),
    ({"namespaceOverride": "a.b"}, "at '/namespaceOverride': 'a.b' does not match"),
    ({"fullnameOverride": "l" * 55}, "at '/fullnameOverride': maxLength: got 55, want 54"),
    ({"priorityClassName": "High"}, "at '/priorityClassName': 'High' does not match"),
    ({"resources": {"limits": {"memory": "1 GB"}}}, "at '/resources/limits/memory': '1 GB'"),
    ({"metricsServer": {"port": 443}}, "at '/metricsServer/port': minimum: got 443, want 1,024"),
    ({"metricsServer": {"port": 8080}}, "at '/metricsServer/port': 'not' failed"),
    ({"metricsServer": {"port": 8081}}, "at '/metricsServer/port': 'not' failed"),
    (
        {"metricsServer": {"hostNetwork": {"cidrs": ["10.0.0.0"]}}},
        "at '/metricsServer/hostNetwork/cidrs/0': '10.0.0.0' does not match",
    ),
    (
        {"serviceAccount": {"annotations": {"a b": ""}}},
        "at '/serviceAccount/annotations': additional",
    ),
    ({"podLabels": {"a": "b c"}}, "at '/podLabels/a': 'b c' does not match"),
    ({"commonAnnotations": {"a,b": "c"}}, "at '/commonAnnotations': additional properties 'a,b'"),
    ({"nodeSelector": {"a b": ""}}, "at '/nodeSelector': additional properties 'a b'"),
    ({"tolerations": [{"operator": "Equal"}]}, "at '/tolerations/0/operator'"),
    ({"affinity": {"podAffinity": []}}, "at '/affinity/podAffinity': got array, want object"),
    ({"keda": {"namespace": ""}}, "at '/keda/namespace': '' does not match"),
    ({"podSecurityContext": {"runAsUser": -1}}, "at '/podSecurityContext/runAsUser': minimum"),
    ({"extraEnv": [{"name": "1"}]}, "at '/extraEnv/0/name': '1' does not match"),
    ({"extraEnv": [{"name": "LLMSERVICE_OPERATOR_KEDA"}]}, "at '/extraEnv/0/name': 'not' failed"),
    ({"extraVolumes": [{"name": "tmp"}]}, "at '/extraVolumes/0/name': 'not' failed"),
    ({"extraVolumeMounts": [{"name": "a"}]}, "at '/extraVolumeMounts/0': missing property"),
    ({"monitoring": {"podLabels": {"a,b": "c"}}}, "at '/monitoring/podLabels': additional"),
    (_replica(limits={"nvidia.com/gpu": 1}), "resources/limits': additional properties"),
    ({"monitoring": {"namespace": "a.b"}}, "at '/monitoring/namespace': 'a.b' does not match"),
    ({"monitoring": {"podMonitors": {"interval": "30"}}}, "interval': '30' does not match"),
    ({"monitoring": {"rules": {"runbooks": "wiki"}}}, "runbooks': 'wiki' does not match"),
    (
        {"monitoring": {"rules": {"availabilityPercent": 100}}},
        "at '/monitoring/rules/availabilityPercent': exclusiveMaximum: got 100, want 100",
    ),
]

CLASSES: list[tuple[Values, str]] = [
    (_class(nodes={}), "at '/acceleratorClasses/x': additional properties 'nodes'"),
    ({"acceleratorClasses": {"a b": {}}}, "at '/acceleratorClasses': additional properties 'a b'"),
    (_class(nodeSelector={"a b": ""}), "at '/acceleratorClasses/x/nodeSelector': additional"),
    (_class(nodeSelector={"a": "b c"}), "at '/acceleratorClasses/x/nodeSelector/a': 'b c'"),
    (_class(tolerations=[{"foo": "bar"}]), "at '/acceleratorClasses/x/tolerations/0': "),
    (_class(tolerations=[{}]), "at '/acceleratorClasses/x/tolerations/0': missing property"),
    (
        _class(tolerations=[{"key": "a", "operator": "Exists", "value": "b"}]),
        "at '/acceleratorClasses/x/tolerations/0/value': value must be ''",
    ),
    (
        _class(tolerations=[{"key": "a", "tolerationSeconds": 5}]),
        "at '/acceleratorClasses/x/tolerations/0': missing property 'effect'",
    ),
    (_class(resourceName="gpu"), "at '/acceleratorClasses/x/resourceName': 'gpu' does not"),
    (_class(gpu="H 100"), "at '/acceleratorClasses/x/gpu': 'H 100' does not match"),
    (_class(gpusPerNode=0), "at '/acceleratorClasses/x/gpusPerNode': minimum: got 0, want 1"),
    (_class(pricePerHour=-1), "at '/acceleratorClasses/x/pricePerHour': minimum: got -1, want 0"),
    (_class(pricePerHour="2.5 $"), "at '/acceleratorClasses/x/pricePerHour': '2.5 $' does not"),
    (_replica(requests={"cpu": "abc"}), "resources/requests/cpu': 'abc' does not match"),
    (_replica(requests={"cpu": 0.5}), "resources/requests/cpu': got number, want integer"),
    (_replica(extended={"nvidia.com/gpu": 1}), "resources/extended/nvidia.com~1gpu': "),
    (_replica(extended={"rdma/hca": 0}), "resources/extended/rdma~1hca': minimum: got 0, want 1"),
    (_replica(extended={"hugepages-1Gi": "512Mi"}), "resources/extended/hugepages-1Gi': '512Mi'"),
    (_replica(claims=[{"name": "nic"}]), "resources/claims/0': 'oneOf' failed"),
    (_replica(claims=[{"name": "gpus", "resourceClaimName": "a"}]), "claims/0/name': 'not' failed"),
]
"""Accelerator classes that would stop the operator at its start."""

REFUSED_BY_THE_SCHEMA = [*UNKNOWN, *TYPES, *CONTENTS, *CLASSES]

REFUSED_BY_A_TEMPLATE: list[tuple[Values, str]] = [
    ({"metricsServer": {"hostNetwork": {"enabled": True}}}, "metricsServer.port must not be 10250"),
    ({"serviceAccount": {"create": False}}, "serviceAccount.name must be set when"),
    (
        {"keda": {"enabled": True, "authentication": {"name": "reports"}}},
        "keda.authentication.serviceAccount must be set when keda.authentication.name is set",
    ),
    ({"image": {"registry": ""}}, "image.registry is empty, and the project does not publish"),
    ({"image": {"registry": ""}}, "add --set image.registry=REGISTRY"),
]
