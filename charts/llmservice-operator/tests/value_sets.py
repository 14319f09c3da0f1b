"""Sets of values that users write, each named after its purpose."""

from functools import cache

from chart_support.helm import Manifest, Values, parse, render_text

VALUE_SETS: dict[str, Values] = {
    "the defaults": {},
    "one replica, so no disruption budget": {"replicas": 1},
    "five replicas": {"replicas": 5},
    "stopped": {"replicas": 0},
    "one watched namespace": {"watchNamespaces": ["team-a"]},
    "three watched namespaces": {"watchNamespaces": ["team-a", "team-b", "team-c"]},
    "its own namespace watched": {"watchNamespaces": ["llmservice-system"]},
    "watched namespaces without the CRD": {
        "watchNamespaces": ["team-a"],
        "crds": {"install": False},
    },
    "the CRD managed elsewhere": {"crds": {"install": False}},
    "the CRD removed on uninstall": {"crds": {"keep": False}},
    "no rights from the chart": {"rbac": {"create": False}},
    "no rights for users": {"rbac": {"userRoles": False}},
    "no admission policy": {"admissionPolicy": {"enabled": False}},
    "scaling by KEDA": {"keda": {"enabled": True}},
    "an existing account": {"serviceAccount": {"create": False, "name": "shared"}},
    "an account with a name and annotations": {
        "serviceAccount": {"name": "llm", "annotations": {"eks.amazonaws.com/role-arn": "arn:x"}}
    },
    "an image by digest": {"image": {"digest": "sha256:" + "ab" * 32}},
    "an image by tag from a local registry": {
        "image": {"registry": "localhost:5000", "tag": "0a1b2c3d4e5f", "pullPolicy": "Always"}
    },
    "an image from a private registry": {"imagePullSecrets": [{"name": "a"}, {"name": "b"}]},
    "server images of its own": {
        "server": {
            "gpuImage": "registry.example.com/vllm@sha256:" + "cd" * 32,
            "cpuImage": "localhost:5000/llmservice/server-cpu:0a1b2c3d4e5f",
        }
    },
    "AMD GPUs": {"server": {"amdImage": "mine:1", "amdGroups": [44, 992]}},
    "the CPU image for services that ask for a GPU": {
        "server": {"gpuImage": "localhost:5000/llmservice/server-cpu:0a1b2c3d4e5f"}
    },
    "an air-gapped hub": {"model": {"hubEndpoint": "http://10.200.0.1:8090"}},
    "a CA bundle in a ConfigMap": {"server": {"caBundle": {"name": "corporate-ca"}}},
    "a proxy": {"server": {"proxy": {"https": "http://proxy:3128"}}},
    "routers by default": {"router": {"enabledByDefault": True, "image": "mine/router:1"}},
    "IDs that the namespace allots": {"userIds": "Namespace"},
    "nodes of sixteen GPUs": {"gpusPerNode": 16},
    "monitoring elsewhere": {
        "monitoring": {"namespace": "o11y", "podLabels": {"app.kubernetes.io/name": "prometheus"}}
    },
    "no monitoring": {"monitoring": {"namespace": ""}},
    "a slow API server": {"leaseSeconds": 120},
    "objects for Prometheus": {
        "monitoring": {"enabled": True, "labels": {"release": "kube-prometheus-stack"}}
    },
    "alerts only": {
        "monitoring": {
            "enabled": True,
            "podMonitors": {"enabled": False},
            "dashboards": {"enabled": False},
        }
    },
    "scrapes of some namespaces only": {
        "monitoring": {"enabled": True, "rules": {"enabled": False}},
        "watchNamespaces": ["team-a", "team-b"],
    },
    "every log line": {"logLevel": "debug"},
    "only errors in the log": {"logLevel": "error"},
    "no metrics server": {"metricsServer": {"enabled": False}},
    "one metrics server on another port": {"metricsServer": {"replicas": 1, "port": 8443}},
    "load reports without tokens": {"metricsServer": {"requireToken": False}},
    "KEDA with a token of each service's namespace": {
        "keda": {
            "enabled": True,
            "authentication": {
                "name": "reports",
                "kind": "TriggerAuthentication",
                "serviceAccount": "reader",
            },
        }
    },
    "KEDA with a token of its own namespace": {
        "keda": {"enabled": True, "authentication": {"name": "reports", "serviceAccount": "reader"}}
    },
    "more memory": {"resources": {"limits": {"memory": "2Gi"}, "requests": {"memory": "1Gi"}}},
    "no limits": {"resources": {"limits": None}},
    "no resources at all": {"resources": {"limits": None, "requests": None}},
    "a short name": {"fullnameOverride": "llm"},
    "the longest name": {"fullnameOverride": "l" * 54},
    "system priority": {"priorityClassName": "system-cluster-critical"},
    "any node": {"nodeSelector": {"kubernetes.io/os": None}},
    "control-plane nodes": {
        "nodeSelector": {"node-role.kubernetes.io/control-plane": ""},
        "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}],
    },
    "pods apart from each other": {
        "affinity": {
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {"topologyKey": "topology.kubernetes.io/zone", "labelSelector": {}}
                ]
            }
        }
    },
    "pods with labels and annotations": {
        "podLabels": {"team": "platform", "app.kubernetes.io/name": "not-ours"},
        "podAnnotations": {"sidecar.istio.io/inject": "false"},
    },
    "values that only a parent chart reads": {"global": {"storageClass": "fast"}},
    "a mirror of all images": {"global": {"imageRegistry": "mirror.example.com:5000/llm"}},
    "a mirror of images by digest": {
        "global": {"imageRegistry": "mirror.example.com"},
        "image": {"digest": "sha256:" + "ab" * 32},
        "server": {"amdImage": "docker.io/me/server-amd@sha256:" + "cd" * 32},
    },
    "another namespace": {"namespaceOverride": "llm-platform"},
    "common labels and annotations": {
        "commonLabels": {"team": "platform", "app.kubernetes.io/name": "not-ours"},
        "commonAnnotations": {"example.com/contact": "platform"},
        "crds": {"install": False},
    },
    "no external metrics": {"metricsAPI": {"enabled": False}},
    "no external metrics but KEDA": {
        "metricsAPI": {"enabled": False},
        "keda": {"enabled": True, "namespace": "autoscaling"},
    },
    "network policies": {"networkPolicy": {"enabled": True}},
    "network policies with KEDA and no monitoring": {
        "networkPolicy": {"enabled": True},
        "keda": {"enabled": True},
        "monitoring": {"namespace": ""},
    },
    "network policies for one Prometheus only": {
        "networkPolicy": {"enabled": True},
        "monitoring": {"podLabels": {"app.kubernetes.io/name": "prometheus"}},
    },
    "network policies for some namespaces without a metrics server": {
        "networkPolicy": {"enabled": True},
        "watchNamespaces": ["team-a"],
        "metricsServer": {"enabled": False},
    },
    "metrics servers on the host network": {
        "metricsServer": {
            "port": 10260,
            "hostNetwork": {"enabled": True, "cidrs": ["10.0.0.0/16", "fd00:1::/64"]},
        }
    },
    "IDs of its own": {"podSecurityContext": {"runAsUser": 20000, "runAsGroup": 0, "fsGroup": 0}},
    "a seccomp profile of its own": {
        "podSecurityContext": {
            "seccompProfile": {"type": "Localhost", "localhostProfile": "llm.json"}
        }
    },
    "a root file system that can be written": {
        "containerSecurityContext": {"readOnlyRootFilesystem": False}
    },
    "no security contexts": {
        "podSecurityContext": {"runAsNonRoot": None, "seccompProfile": None},
        "containerSecurityContext": {
            "allowPrivilegeEscalation": None,
            "readOnlyRootFilesystem": None,
            "capabilities": None,
        },
        "userIds": "Namespace",
    },
    "further variables, volumes and mounts": {
        "extraEnv": [
            {"name": "SSL_CERT_FILE", "value": "/etc/ssl/corporate/ca.crt"},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
        "extraVolumes": [{"name": "ca", "configMap": {"name": "corporate-ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ssl/corporate", "readOnly": True}],
    },
    "further objects": {
        "extraObjects": [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": "{{ .Release.Name }}-more",
                    "labels": {
                        "app.kubernetes.io/part-of": "llmservice",
                        "app.kubernetes.io/instance": "{{ .Release.Name }}",
                    },
                },
            },
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  "
            '{{- include "llmservice-operator.metadata" (dict "root" . "name" "x") | nindent 2 }}',
        ]
    },
    "classes of every kind": {
        "acceleratorClasses": {
            "h100": {
                "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
                "tolerations": [{"operator": "Exists"}, {"key": "gpu", "value": "h100"}],
                "gpusPerNode": 8,
                "pricePerHour": 2.5,
                "resources": {
                    "requests": {"cpu": 8, "memory": "64Gi", "ephemeral-storage": "200Gi"},
                    "extended": {"rdma/hca": "1", "hugepages-2Mi": "512Mi"},
                    "claims": [{"name": "nic", "resourceClaimTemplateName": "fast-nic"}],
                },
            },
            "mig": {"resourceName": "nvidia.com/mig-3g.40gb", "gpu": "H100"},
            "anything": {},
        }
    },
    "a fixed user on OpenShift": {"userIds": "Fixed"},
    "tolerations of every kind": {
        "tolerations": [
            {"operator": "Exists"},
            {
                "key": "node.kubernetes.io/unreachable",
                "effect": "NoExecute",
                "tolerationSeconds": 30,
            },
        ]
    },
    "affinity of every kind": {
        "affinity": {
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 100,
                        "preference": {"matchExpressions": [{"key": "zone", "operator": "Exists"}]},
                    }
                ]
            },
            "podAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 1,
                        "podAffinityTerm": {
                            "topologyKey": "kubernetes.io/hostname",
                            "labelSelector": {"matchLabels": {"app": "x"}},
                            "namespaces": ["team-a"],
                        },
                    }
                ]
            },
        }
    },
}

NOT_RESTRICTED = (
    "metrics servers on the host network",
    "a root file system that can be written",
    "no security contexts",
)
"""Sets whose pods may do more than restricted pods with a root file system that is read only."""


@cache
def rendered_text(name: str) -> str:
    """Return helm's output for one of the sets, rendered once for all tests."""
    return render_text(VALUE_SETS[name])


@cache
def rendered(name: str) -> list[Manifest]:
    """Return the objects of one of the sets. All tests share them, so copy one to change it."""
    return parse(rendered_text(name))
