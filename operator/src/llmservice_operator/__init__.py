"""Kubernetes operator for LLMService: one resource in, a served language model out.

Map of the package, each layer importing only what stands below it:

    __main__                                  command line: run, render, crd
    handlers | render                         Kopf handlers that only enqueue | printing objects
    reconcile                                 one pass: read, observe, build, apply, report
    workqueue | leader | cluster | telemetry  adapters, one per outside system
    status                                    spec + Observation -> status and events
    desired | observe                         spec -> manifests | live objects -> Observation
    names                                     every name, label, port and environment name
    api                                       the resource: fields, rules, conditions, CRD
    settings                                  what the process is started with
    errors                                    what goes wrong

From status down everything is pure: no clock, no I/O, no environment, no Kopf.
"""

from importlib.metadata import version

__version__ = version("llmservice-operator")
