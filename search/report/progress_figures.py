"""Plots of how far the search got, and of what its time went into, as plotly's own data."""

from collections.abc import Sequence
from html import escape

from search.progress import Band
from search.report.axes import Figure, band, layout
from search.report.build import Report, TargetView
from search.report.looks import COLOURS
from search.savings import StrategyTime

_MINUTES_FROM_S = 180.0
_PARTS = (
    ("spent", "spent", COLOURS[0]),
    ("shared", "saved by shared beginnings", COLOURS[3]),
    ("stopped", "saved by stopping", COLOURS[1]),
)


def over_time(report: Report) -> Figure:
    """Hypervolume after each trial against training, and what random searches would have reached."""
    views = [view for view in report.targets if view.points]
    unit_s, unit = _unit(max((view.steps[-1].train_seconds for view in views), default=0.0))
    on = [f" on {view.name}" if len(views) > 1 else "" for view in views]
    data: list[Figure] = []
    # On the first target alone: on others they are much the same, and would cover each other.
    if views and report.by_chance is not None and (found := report.by_chance.bands.get(views[0].name)) is not None:
        data += _chance(found, f"random searches{on[0]}, simulated", COLOURS[0], unit_s)
    for index, view in enumerate(views):
        data.append(_search(view, f"this search{on[index]}", COLOURS[index % len(COLOURS)], unit_s))
    frame = layout(
        x=f"{unit} of training, summed over all plans",
        y={"title": {"text": "hypervolume"}, "rangemode": "tozero"},
    )
    frame["xaxis"] |= {"rangemode": "tozero"}
    return {"data": data, "layout": frame | {"height": 340, "showlegend": len(data) > 1}}


def time_use(times: Sequence[StrategyTime]) -> Figure:
    """Training time of each strategy: spent, and saved."""
    shown = times[::-1]
    unit_s, unit = _unit(max((time.spent + time.shared + time.stopped for time in times), default=0.0))
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "x": [getattr(time, part) / unit_s for time in shown],
            "y": [escape(time.strategy) for time in shown],
            "hovertemplate": f"%{{y}}: %{{x:.1f}} {unit} {name}<extra></extra>",
            "marker": {"color": colour, "opacity": 1.0 if part == "spent" else 0.45},
        }
        for part, name, colour in _PARTS
        if any(getattr(time, part) > 0 for time in times)
    ]
    frame = layout(x=f"{unit} of training", y={"automargin": True}) | {"barmode": "stack"}
    frame["legend"] |= {"traceorder": "normal"}
    return {"data": data, "layout": frame | {"height": 120 + 28 * len(shown)}}


def _search(view: TargetView, name: str, colour: str, unit_s: float) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": escape(name),
        "x": [0.0, *(step.train_seconds / unit_s for step in view.steps)],
        "y": [0.0, *(step.hypervolume for step in view.steps)],
        "text": ["", *(f"after {step.trials} trials, {step.seconds / 60:.1f} min" for step in view.steps)],
        "hovertemplate": "%{y:.3f} %{text}<extra></extra>",
        "line": {"shape": "hv", "width": 2.5, "color": colour},
    }


def _chance(found: Band, name: str, colour: str, unit_s: float) -> list[Figure]:
    x = [seconds / unit_s for seconds in found.train_seconds]
    return [
        *band(x, found.low, found.high, colour=colour, group=escape(name)),
        {
            "type": "scatter",
            "mode": "lines",
            "name": escape(name),
            "legendgroup": escape(name),
            "x": x,
            "y": list(found.median),
            "hovertemplate": "%{y:.3f} by chance, the median<extra></extra>",
            "line": {"shape": "hv", "width": 1.5, "color": colour, "dash": "dot"},
        },
    ]


def _unit(seconds: float) -> tuple[float, str]:
    return (60.0, "minutes") if seconds >= _MINUTES_FROM_S else (1.0, "seconds")
