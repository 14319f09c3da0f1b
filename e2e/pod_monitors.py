"""Turns PodMonitors into scrape configurations of Prometheus, as the Prometheus operator does.

The local cluster has no Prometheus operator. A field that is not translated is an error, so that
Prometheus never scrapes less or with other labels than the PodMonitor says.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Object = Mapping[str, Any]

_META = "__meta_kubernetes"


def scrape_config(pod_monitor: Object, kubeconfig: Path | None = None) -> dict[str, Any]:
    """Return the scrape configuration of a PodMonitor with one endpoint.

    Prometheus discovers the pods with the rights of `kubeconfig`, or without one with those of its
    own pod. Raises ValueError for a field that this function does not translate.
    """
    name, namespace = (pod_monitor["metadata"][key] for key in ("name", "namespace"))
    spec = _only(pod_monitor["spec"], "namespaceSelector", "selector", "podMetricsEndpoints")
    (given,) = spec["podMetricsEndpoints"]
    endpoint = _only(given, "port", "interval", "honorLabels", "relabelings")
    labels = _only(spec["selector"], "matchLabels")["matchLabels"]
    discovery: dict[str, Any] = {
        "role": "pod",
        **({"kubeconfig_file": str(kubeconfig)} if kubeconfig else {}),
        "selectors": [{"role": "pod", "label": ",".join(f"{k}={v}" for k, v in labels.items())}],
    }
    selected = _only(spec.get("namespaceSelector", {}), "any", "matchNames")
    if not selected.get("any"):
        discovery["namespaces"] = {"names": selected.get("matchNames", [namespace])}
    return {
        "job_name": f"podMonitor/{namespace}/{name}",
        "scrape_interval": endpoint["interval"],
        "honor_labels": endpoint.get("honorLabels", False),
        "kubernetes_sd_configs": [discovery],
        "relabel_configs": [
            {
                "action": "keep",
                "source_labels": [f"{_META}_pod_container_port_name"],
                "regex": endpoint["port"],
            },
            {
                "action": "drop",
                "source_labels": [f"{_META}_pod_phase"],
                "regex": "(Failed|Succeeded)",
            },
            *(
                {"source_labels": [f"{_META}_{source}"], "target_label": target}
                for source, target in (
                    ("namespace", "namespace"),
                    ("pod_name", "pod"),
                    ("pod_container_name", "container"),
                )
            ),
            {"target_label": "job", "replacement": f"{namespace}/{name}"},
            {"target_label": "endpoint", "replacement": endpoint["port"]},
            *(_in_snake_case(each) for each in endpoint.get("relabelings", ())),
        ],
    }


def _only(found: Object, *known: str) -> Object:
    """Return the object; raise ValueError if it has other fields than the known ones."""
    if unknown := sorted(found.keys() - {*known}):
        raise ValueError(f"pod_monitors.py does not translate {', '.join(unknown)}: add it there")
    return found


def _in_snake_case(relabeling: Object) -> dict[str, Any]:
    """Return a relabeling of the Prometheus operator with the names of Prometheus."""
    return {
        re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", key): value
        for key, value in relabeling.items()
    }
