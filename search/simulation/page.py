"""A study's findings as one HTML page of the report's looks."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from search.report.axes import Figure, band, layout, ticks
from search.report.html import page
from search.report.looks import Look, numbered
from search.report.pieces import marked, number, plot, section, table
from search.simulation.comparison import Comparison, Score, SpeedUp, spread
from search.simulation.findings import Findings
from search.simulation.text import NOTE, SHARES, SPEED_NOTE, SPENDING, headline, say_speed_up, shares, spending
from search.simulation.trace import Trace

_POINTS = 200
"""Costs at which a line is drawn."""
_LEAST = 1e-4
"""Below it nothing is told apart."""


def render_page(findings: Findings) -> str:
    """The whole page."""
    plots = {_name(comparison): _figure(findings, comparison) for comparison in findings.comparisons}
    body = [f"<header><h1>{escape(findings.name)}, searched in virtual time</h1></header>"]
    body += [_section(findings, comparison, plots) for comparison in findings.comparisons]
    return page(
        f"{findings.name}: distune simulate", [*body, f"<footer>{escape(NOTE)} {escape(SPEED_NOTE)}</footer>"], plots
    )


def _name(comparison: Comparison) -> str:
    return f"workers-{comparison.workers}"


def _section(findings: Findings, comparison: Comparison, plots: dict[str, Figure]) -> str:
    scores, names = comparison.scores, [score.competitor for score in comparison.scores]
    parts = [
        plot(_name(comparison), plots),
        _table("Hypervolume", SHARES, scores, [shares(score) for score in scores]),
        _table("Where the cost went", SPENDING, scores, [spending(score) for score in scores]),
    ]
    if len(scores) > 1:
        said = [[_said(score.speed_ups.get(other)) for other in names] for score in scores]
        parts.append(_table("Speed-up", [competitor.name for competitor in names], scores, said))
    return section(headline(findings, comparison), "".join(parts))


def _said(speed_up: SpeedUp | None) -> str:
    return "" if speed_up is None else say_speed_up(speed_up)


def _table(title: str, heads: Sequence[str], scores: Sequence[Score], cells: Sequence[Sequence[str]]) -> str:
    rows = [
        [marked(score.competitor.name, "", numbered(index)), *map(number, row)]
        for index, (score, row) in enumerate(zip(scores, cells, strict=True))
    ]
    return f"<h3>{escape(title)}</h3>{table(['', *(f'#{head}' for head in heads)], rows)}"


def _figure(findings: Findings, comparison: Comparison) -> Figure:
    """Hypervolume that is missing against cost, both by their logarithms: medians, with quartiles as bands."""
    searches = [trace for traces in findings.traces[comparison.workers].values() for trace in traces]
    first = min((trace.spent[0] for trace in searches if trace.spent), default=comparison.budget)
    costs = np.geomspace(first, comparison.budget, _POINTS).tolist()
    data: list[dict[str, Any]] = []
    for index, (competitor, traces) in enumerate(findings.traces[comparison.workers].items()):
        data += _lines(competitor.name, traces, costs, numbered(index))
    shown = [share for line in data for share in line["y"]]
    frame = layout(x="cost of training", y={"title": {"text": "share of the hypervolume missing"}, "type": "log"})
    frame["xaxis"] |= {"type": "log", **ticks(costs)}
    frame["yaxis"] |= ticks(shown)
    return {"data": data, "layout": frame}


def _lines(name: str, traces: Sequence[Trace], costs: Sequence[float], how: Look) -> list[dict[str, Any]]:
    spreads = [spread([max(_LEAST, 1 - trace.share_at(cost)) for trace in traces]) for cost in costs]
    lows, highs = [found.low for found in spreads], [found.high for found in spreads]
    return [
        *band(costs, lows, highs, colour=how.colour, group=name),
        {
            "type": "scatter",
            "mode": "lines",
            "name": escape(name),
            "legendgroup": name,
            "x": costs,
            "y": [found.median for found in spreads],
            "hovertemplate": f"{escape(name)}: %{{y:.4f}} missing at %{{x:.4g}}<extra></extra>",
            "line": how.line | {"shape": "hv"},
        },
    ]
