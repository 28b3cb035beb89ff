"""The report's plots as plotly's own data: dictionaries, so that nothing but its JavaScript is needed.

Colours of text, grid and background are left to the page, which knows whether it is light or dark.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape

from search.report.axes import Figure, layout, level, near_front, quality_axis, ticks
from search.report.batch_figures import batch_figures
from search.report.build import BestAtSize, Point, Report, TargetView
from search.report.looks import COLOURS, MUTED, UNKNOWN, look
from search.report.progress_figures import over_time, time_use
from search.words import say, say_interval, say_name
from spaces.catalogue import CATALOGUE
from spaces.objectives import OBJECTIVES


def figures(report: Report) -> dict[str, Figure]:
    """Every plot by the id of its place in the page; those that would be empty are left out."""
    found = {f"front-{view.name}": front(view, report) for view in report.targets if view.points}
    if report.best:
        found["best"] = best_by_size(report)
    if any(view.points for view in report.targets):
        found["over-time"] = over_time(report)
    if report.importance.shares:
        found["importance"] = importance(report)
    if any(time.shared or time.stopped for time in report.time.strategies):
        found["time"] = time_use(report.time.strategies)
    for ablation in report.ablations:
        found |= batch_figures(ablation, report.metric)
    return found


def front(view: TargetView, report: Report) -> Figure:
    """Quality against the first cost, on one target."""
    cost = x_axis(report.objectives, report.metric)
    points = [point for point in view.points if _x(point, cost) is not None and point.record.quality is not None]
    strategies = sorted({point.record.strategy for point in points}, key=_order)
    traces = [_front_line(points, cost), _test_marks(points, cost), _ring([p for p in points if p.chosen], cost)]
    traces += [_strategy([p for p in points if p.record.strategy == name], name, cost, report) for name in strategies]
    traces += _keys(points, strategies)
    title = f"{say_name(cost)}{f' in {OBJECTIVES[cost].unit}' if OBJECTIVES[cost].unit else ''}"
    frame = layout(x=f"{title}{', estimated' if view.estimated else ''}", y=quality_axis(report.metric))
    if OBJECTIVES[cost].by_factor:
        frame["xaxis"] |= {"type": "log", **ticks([x for point in points if (x := _x(point, cost)) is not None])}
    qualities = [p.record.quality for p in points if p.record.quality is not None]
    frame["yaxis"] |= near_front(_front_qualities(points), qualities, OBJECTIVES[report.metric].direction)
    if view.baseline is not None and view.baseline.quality is not None:
        frame |= level(view.baseline.quality, "base, fine-tuned in full")
    return {"data": [trace for trace in traces if trace["x"]], "layout": frame}


def _front_qualities(points: Sequence[Point]) -> list[float]:
    """Qualities of the front with the ends of their intervals, and on the test split."""
    records = [point.record for point in points if point.on_front]
    tested = [point.test.value for point in points if point.on_front and point.test]
    ends = [end for record in records for end in (record.quality, record.quality_low, record.quality_high)]
    return [*tested, *(end for end in ends if end is not None)]


def best_by_size(report: Report) -> Figure:
    """The best of each strategy at each size, at the precision that has most of them (fp32 where there is a tie)."""
    precision = main_precision(report.best)
    rows = [row for row in report.best if row.precision == precision]
    sizes = list(dict.fromkeys(row.size for row in rows))
    strategies = sorted({row.strategy for row in rows}, key=_order)
    traces = []
    for index, name in enumerate(strategies):
        own = [row for row in rows if row.strategy == name]
        # Side by side, so that intervals at one size do not cover each other; never as far as halfway to the next.
        shift = min(0.07, 0.6 / len(strategies)) * (index - (len(strategies) - 1) / 2)
        traces.append(_best_trace(own, name, [sizes.index(row.size) + shift for row in own], report.metric))
    frame = layout(x="size", y=quality_axis(report.metric))
    frame["xaxis"] |= {"tickvals": list(range(len(sizes))), "ticktext": [escape(size) for size in sizes]}
    return {"data": traces, "layout": frame}


def importance(report: Report) -> Figure:
    """Share of each setting, largest on top."""
    shares = [share for share in report.importance.shares if share[1] >= 0.005][::-1]
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [share for _, share in shares],
        "y": [escape(name.replace("_", " ")) for name, _ in shares],
        "hovertemplate": "%{x:.0%}<extra></extra>",
        "marker": {"color": COLOURS[0]},
    }
    frame = layout(x="share of what the settings explain", y={"automargin": True})
    frame["xaxis"] |= {"tickformat": ".0%", "rangemode": "tozero"}
    return {"data": [trace], "layout": frame | {"height": 90 + 28 * len(shares), "showlegend": False}}


def x_axis(objectives: Sequence[str], metric: str) -> str:
    """The cost that fronts are drawn over: the first objective beside quality, or latency."""
    return next((name for name in objectives if name != metric), "latency_ms")


def main_precision(rows: Sequence[BestAtSize]) -> str:
    """The precision with the most rows; fp32 before others."""
    found = [row.precision for row in rows]
    return max(sorted(set(found), key=lambda p: (p != "fp32", p)), key=found.count)


# Traces ---------------------------------------------------------------------------------------------------------


def _strategy(points: Sequence[Point], name: str, cost: str, report: Report) -> Figure:
    how = look(name)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": escape(name),
        "showlegend": False,
        "legendgroup": name,
        "x": [_x(point, cost) for point in points],
        "y": [point.record.quality for point in points],
        "text": [hover(point, report) for point in points],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": how.colour,
            "symbol": [how.symbol(point.record.precision) for point in points],
            "size": [12 if point.on_front else 8 for point in points],
            "opacity": [1.0 if point.on_front else 0.3 for point in points],
            "line": {"width": 2, "color": [how.edge(point.record.precision) for point in points]},
        },
    }


def _front_line(points: Sequence[Point], cost: str) -> Figure:
    on_front = sorted((p for p in points if p.on_front), key=lambda p: (_x(p, cost), p.record.quality))
    values = [_interval_arms(p.record.quality, p.record.quality_low, p.record.quality_high) for p in on_front]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "front, with 95 % intervals",
        "x": [_x(point, cost) for point in on_front],
        "y": [point.record.quality for point in on_front],
        "hoverinfo": "skip",
        "line": {"shape": "hv", "width": 1.5, "color": MUTED},
        "error_y": {
            "array": [up for up, _ in values],
            "arrayminus": [down for _, down in values],
            "color": MUTED,
            "thickness": 1,
            "width": 3,
        },
    }


def _test_marks(points: Sequence[Point], cost: str) -> Figure:
    tested = [(point, point.test.value) for point in points if point.on_front and point.test is not None]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "the same on the test split",
        "x": [_x(point, cost) for point, _ in tested],
        "y": [value for _, value in tested],
        "text": [escape(point.record.record_id) for point, _ in tested],
        "hovertemplate": "%{text} on the test split<extra></extra>",
        "marker": {"symbol": "x-thin", "size": 7, "line": {"width": 2, "color": MUTED}},
    }


def _ring(chosen: Sequence[Point], cost: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "the choice",
        "x": [_x(point, cost) for point in chosen],
        "y": [point.record.quality for point in chosen],
        "hoverinfo": "skip",
        "marker": {"symbol": "circle-open", "size": 24, "line": {"width": 2.5}},
        "meta": "ink",
    }


def _keys(points: Sequence[Point], strategies: Sequence[str]) -> list[Figure]:
    """Entries of the legend: a trace whose points are faint would have a faint one."""
    precisions = sorted({point.record.precision for point in points}, key=lambda p: (p != "fp32", p))
    keys = [(name, look(name), "fp32") for name in strategies]
    keys += [(p, replace(UNKNOWN, shape="circle"), p) for p in precisions if len(precisions) > 1]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": escape(name),
            "legendgroup": name,
            "x": [None],
            "y": [None],
            "marker": {
                "color": how.colour,
                "symbol": how.symbol(precision),
                "size": 10,
                "line": {"width": 2, "color": how.edge(precision)},
            },
        }
        for name, how, precision in keys
    ]


def _best_trace(rows: Sequence[BestAtSize], name: str, x: Sequence[float], metric: str) -> Figure:
    arms = [_interval_arms(row.record.quality, row.record.quality_low, row.record.quality_high) for row in rows]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": escape(name),
        "x": list(x),
        "y": [row.record.quality for row in rows],
        "text": [f"{escape(name)}, {escape(row.size)}: {_quality(row, metric)}" for row in rows],
        "hovertemplate": "%{text}<extra></extra>",
        "line": look(name).line,
        "marker": look(name).marker,
        "error_y": {
            "array": [up for up, _ in arms],
            "arrayminus": [down for _, down in arms],
            "color": look(name).colour,
            "thickness": 1,
            "width": 0,
        },
    }


# Words and numbers ----------------------------------------------------------------------------------------------


def hover(point: Point, report: Report) -> str:
    """What is shown beside a point: plotly's own small HTML, with everything else escaped."""
    record = point.record
    lines = [f"<b>{escape(record.strategy)}, {escape(point.size)}, {escape(record.precision)}</b>"]
    lines += _wrapped(point.plan)
    interval = say_interval(report.metric, record.quality_low, record.quality_high)
    lines.append(f"{say_name(report.metric)} {say(report.metric, record.quality)} ({interval}) on validation")
    if point.test is not None:
        tested = say_interval(report.metric, point.test.low, point.test.high)
        lines.append(f"{say(report.metric, point.test.value)} ({tested}) on test")
    mark = " (estimated)" if record.estimated else ""
    names = dict.fromkeys([*(n for n in report.objectives if n != report.metric), "latency_ms", "size_mb"])
    lines.append(", ".join(f"{say_name(n)} {say(n, record.value(n, report.metric))}" for n in names) + mark)
    beside = [name for name in report.beside if name not in names]
    if beside:
        lines.append(", ".join(f"{say_name(n)} {say(n, record.value(n, report.metric))}" for n in beside))
    lines += [escape(f"{say_name(name)} {value:.3g}") for name, value in record.notes.items()]
    if not point.feasible:
        lines.append("breaks a constraint")
    return "<br>".join([*lines, escape(record.record_id)])


def _wrapped(plan: str) -> Iterable[str]:
    stages = plan.split(" → ")
    return [escape(f"→ {stage}" if index else stage) for index, stage in enumerate(stages)]


def _quality(row: BestAtSize, metric: str) -> str:
    record = row.record
    return f"{say(metric, record.quality)} ({say_interval(metric, record.quality_low, record.quality_high)})"


def _x(point: Point, cost: str) -> float | None:
    value = point.record.value(cost, "")
    shown = value is not None and (value > 0 or not OBJECTIVES[cost].by_factor)
    return value if shown else None


def _interval_arms(value: float | None, low: float | None, high: float | None) -> tuple[float, float]:
    if value is None or low is None or high is None:
        return 0.0, 0.0
    return max(0.0, high - value), max(0.0, value - low)


def _order(strategy: str) -> int:
    names = list(CATALOGUE)
    return names.index(strategy) if strategy in names else len(names)
