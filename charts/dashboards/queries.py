"""Parts of queries that several dashboards have."""

from layout import Query, Variable

NAMESPACE = Variable("namespace", "Namespace", "label_values(llmservice_replicas, namespace)")
SERVICES = Variable(
    "llmservice",
    "Service",
    'label_values(llmservice_replicas{namespace=~"$namespace"}, llmservice)',
)

OF_SERVICE = 'namespace=~"$namespace",llmservice=~"$llmservice"'
"""Matchers of the selected services."""
EACH = "namespace, llmservice"


def rate(metric: str, by: str, *matchers: str) -> str:
    """Return the query of the increase per second of a counter, for the selected services."""
    return f"sum by ({by}) (rate({metric}{_of(*matchers)}[$__rate_interval]))"


def largest(metric: str, by: str = EACH, *matchers: str) -> str:
    """Return the query of the largest value of a gauge.

    The pods that report the load of a service report the same values.
    """
    return f"max by ({by}) ({metric}{_of(*matchers)})"


def total(metric: str, by: str, *matchers: str) -> str:
    """Return the query of the sum of a gauge over the pods of the selected services."""
    return f"sum by ({by}) ({metric}{_of(*matchers)})"


def percentiles(histogram: str, by: str = "") -> tuple[Query, ...]:
    """Return the queries of the median and of two high percentiles of a histogram."""
    labels = ", ".join(("le", by) if by else ("le",))
    prefix = f"{{{{{by}}}}} " if by else ""
    return tuple(
        Query(
            f"histogram_quantile({share}, sum by ({labels}) "
            f"(rate({histogram}_bucket{_of()}[$__rate_interval])))",
            f"{prefix}p{round(100 * share)}",
        )
        for share in (0.5, 0.95, 0.99)
    )


def _of(*matchers: str) -> str:
    return "{" + ",".join((OF_SERVICE, *matchers)) + "}"
