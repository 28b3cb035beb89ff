"""Axes, frame and levels that the report's plots share, as plotly's own data."""

import math
from collections.abc import Sequence
from typing import Any

from search.report.looks import MUTED
from search.words import say_name
from spaces.objectives import Direction

Figure = dict[str, Any]

_QUALITY_FORMAT = {"accuracy": ".0%", "exact_match": ".0%", "macro_f1": ".2f", "rouge_l": ".2f"}


def layout(*, x: str, y: Figure) -> Figure:
    """The frame that every plot has; ``x`` is the title of the horizontal axis, ``y`` all of the other one."""
    return {
        "height": 460,
        "margin": {"l": 60, "r": 12, "t": 16, "b": 48},
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "xaxis": {"title": {"text": x}, "zeroline": False},
        "yaxis": {"zeroline": False, **y},
        "showlegend": True,
    }


def quality_axis(metric: str) -> Figure:
    """The vertical axis of a plot of quality."""
    return {"title": {"text": say_name(metric)}, "tickformat": _QUALITY_FORMAT.get(metric, "")}


def near_front(front: Sequence[float], others: Sequence[float], direction: Direction) -> Figure:
    """A range that shows the front well: what is far worse is out of view until the plot is double-clicked."""
    if not front:
        return {}
    low, high = min(front), max(front)
    room = max(high - low, 0.02)
    if direction == "max":
        low = max(min([low, *others]), low - 1.5 * room)
    else:
        high = min(max([high, *others]), high + 1.5 * room)
    return {"range": [low - 0.15 * room, high + 0.15 * room]}


def ticks(values: Sequence[float]) -> Figure:
    """1, 2, 5, 10, … over the range of ``values`` with a little room; plotly's own are hard to read below 2 decades."""
    if not values:
        return {}
    low, high = math.log10(min(values)) - 0.05, math.log10(max(values)) + 0.05
    marks = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for digit in (1, 2, 5)]
    shown = [mark for mark in marks if low - 0.3 <= math.log10(mark) <= high + 0.3]
    return {"tickvals": shown, "ticktext": [f"{mark:g}" for mark in shown], "range": [low, high]}


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], *, colour: str, group: str) -> list[Figure]:
    """The traces of a faint band of steps between two lines."""
    edge: Figure = {"type": "scatter", "mode": "lines", "x": list(x), "hoverinfo": "skip", "showlegend": False}
    edge |= {"legendgroup": group, "line": {"width": 0, "shape": "hv"}}
    return [edge | {"y": list(low)}, edge | {"y": list(high), "fill": "tonexty", "fillcolor": f"{colour}22"}]


def level(value: float, text: str) -> Figure:
    """A dotted line all across at ``value``."""
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "layer": "below"}
    note = {"xref": "paper", "x": 0, "y": value, "text": text, "xanchor": "left", "yanchor": "bottom"}
    return {
        "shapes": [line | {"line": {"color": MUTED, "width": 1, "dash": "dot"}}],
        "annotations": [note | {"showarrow": False, "font": {"size": 12, "color": MUTED}}],
    }
