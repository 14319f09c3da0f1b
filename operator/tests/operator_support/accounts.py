"""Service accounts with chosen rights."""

from collections.abc import Callable

RBAC = "/apis/rbac.authorization.k8s.io/v1"
Account = Callable[..., str]
"""Makes a service account with rules; returns the path of its kubeconfig."""
