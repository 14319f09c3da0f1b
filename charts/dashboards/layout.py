"""Describes a dashboard as rows of panels, and renders it with Grafana's SDK."""

from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import common, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    DataSourceRef,
    LegendDisplayMode,
    LegendPlacement,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    Dashboard as Rendered,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataTransformerConfig,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

_WIDTH = 24
"""Width of a dashboard, in Grafana's units."""
_PROMETHEUS = DataSourceRef("prometheus", "${datasource}")


@dataclass(frozen=True)
class Query:
    """One query of Prometheus. The legend may contain {{label}}."""

    expression: str
    legend: str = ""


@dataclass(frozen=True)
class Graph:
    """Values over time."""

    title: str
    meaning: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    most: float | None = None
    """Upper end of the axis; None to fit the values."""


@dataclass(frozen=True)
class Number:
    """The present value of one query."""

    title: str
    meaning: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 4


@dataclass(frozen=True)
class Table:
    """The present labels and values of the series of one query."""

    title: str
    meaning: str
    queries: tuple[Query, ...]
    labels: tuple[str, ...]
    """Labels that are shown, in this order."""
    width: int = 12


Panel = Graph | Number | Table


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A selection at the top of the dashboard: the values of a label."""

    name: str
    label: str
    values: str
    """Query of Grafana, such as label_values(METRIC, LABEL)."""
    takes_several: bool = True


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]


def rendered(described: Dashboard) -> str:
    """Return the dashboard in Grafana's JSON."""
    return JSONEncoder(sort_keys=True, indent=2).encode(_build(described)) + "\n"


def _build(described: Dashboard) -> Rendered:
    built = (
        builders.Dashboard(described.title)
        .uid(described.uid)
        .description(described.description)
        .tags(["llmservice"])
        .time("now-6h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            builders.DashboardLink("LLMService")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["llmservice"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(
            builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
    )
    for variable in described.variables:
        built = built.with_variable(_variable(variable))
    number = 0
    for row in described.rows:
        number += 1
        built = built.with_row(builders.Row(row.title).id(number))
        for panel in row.panels:
            number += 1
            built = built.with_panel(_panel(panel).id(number))
    return built.build()


def _variable(variable: Variable) -> builders.QueryVariable:
    made = (
        builders.QueryVariable(variable.name)
        .label(variable.label)
        .datasource(_PROMETHEUS)
        .query(variable.values)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    )
    if not variable.takes_several:
        return made
    everything = VariableOption(True, "All", "$__all")
    return made.multi(True).include_all(True).all_value(".*").current(everything)


def _panel(panel: Panel) -> Any:
    made = _kind_of(panel)
    made = made.title(panel.title).description(panel.meaning).datasource(_PROMETHEUS)
    for index, query in enumerate(panel.queries):
        made = made.with_target(_target(query, chr(ord("A") + index), panel))
    return made.span(panel.width)


def _kind_of(panel: Panel) -> Any:
    """Return the builder of the kind of panel. The builders of the SDK have no common type."""
    match panel:
        case Graph():
            return _graph(panel)
        case Number():
            return stat.Panel().unit(panel.unit).height(4)
        case Table():
            return _table(panel)


def _graph(panel: Graph) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .unit(panel.unit)
        .min(0)
        .fill_opacity(10)
        .height(8)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    return made if panel.most is None else made.max(panel.most)


def _table(panel: Table) -> table.Panel:
    order = {label: index for index, label in enumerate(panel.labels)}
    shown = {"include": {"names": [*panel.labels, "Value"]}}
    return (
        table.Panel()
        .height(8)
        .with_transformation(DataTransformerConfig("filterFieldsByName", options=shown))
        .with_transformation(DataTransformerConfig("organize", options={"indexByName": order}))
    )


def _target(query: Query, reference: str, panel: Panel) -> prometheus.Dataquery:
    made = (
        prometheus.Dataquery()
        .expr(query.expression)
        .legend_format(query.legend)
        .ref_id(reference)
        .datasource(_PROMETHEUS)
    )
    if isinstance(panel, Graph):
        return made.range()
    made = made.instant()
    return made.format(PromQueryFormat.TABLE) if isinstance(panel, Table) else made
