"""The top of the page: what to ship, its numbers beside the baseline, and why."""

from collections.abc import Sequence
from html import escape

from search.report.build import Point, Report, TargetView
from search.report.pieces import table, variant
from search.words import say, say_interval, say_name
from spaces.objectives import OBJECTIVES

_COMPARED = {
    "latency_ms": ("faster", "slower"),
    "latency_p95_ms": ("faster", "slower"),
    "size_mb": ("smaller", "larger"),
}


def header(report: Report) -> str:
    """The choice on the first target, its numbers beside the baseline, and its reasons."""
    view = report.targets[0]
    name = f'<p class="name">{escape(report.name)}, on {escape(view.name)}</p>'
    chosen = view.chosen
    if chosen is None or view.choice is None:
        why = "".join(f"<p>{escape(line)}</p>" for line in view.no_choice.splitlines())
        return f"<header>{name}<h1>Nothing to ship yet</h1>{why}</header>"
    record = chosen.record
    headline = f"Ship {record.strategy} with {chosen.size} at {record.precision}"
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in view.choice.reasons)
    return (
        f'<header>{name}<h1>{escape(headline)}</h1><p class="lead">{escape(chosen.plan)}</p>'
        f"{_numbers(chosen, view, report)}<h3>Why this one</h3><ul>{reasons}</ul>{_rivals(view)}"
        f"{_other_targets(report)}</header>"
    )


def _numbers(chosen: Point, view: TargetView, report: Report) -> str:
    base = view.baseline
    costs = dict.fromkeys([*(n for n in report.objectives if n != report.metric), "latency_ms", "size_mb"])
    boxes = [_quality_box(chosen, base.quality if base else None, report)]
    for name in costs:
        value = chosen.record.value(name, report.metric)
        boxes.append(_cost_box(name, value, base.value(name, report.metric) if base else None))
    note = "" if base else '<p class="soft">The base model fine-tuned in full is not among the finished trials.</p>'
    return f'<dl class="numbers">{"".join(boxes)}</dl>{note}'


def _quality_box(chosen: Point, base: float | None, report: Report) -> str:
    metric, record = report.metric, chosen.record
    interval = say_interval(metric, record.quality_low, record.quality_high)
    lines = [f"{interval} on validation (95 %)"] if interval else []
    if chosen.test is not None:
        tested = say_interval(metric, chosen.test.low, chosen.test.high)
        lines.append(f"{say(metric, chosen.test.value)} ({tested}) on test")
    if base is not None:
        lines.append(f"base fine-tuned in full: {say(metric, base)}")
    return _box(say_name(metric), say(metric, record.quality), lines)


def _cost_box(name: str, value: float | None, base: float | None) -> str:
    lines = []
    if value and base and OBJECTIVES[name].by_factor:
        better, worse = _COMPARED.get(name, ("less", "more"))
        ratio = base / value
        lines.append(f"{ratio:.1f}× {better}" if ratio >= 1 else f"{1 / ratio:.1f}× {worse}")
    if value is not None and base is not None:
        lines.append(f"base: {say(name, base)}")
    return _box(say_name(name), say(name, value), lines)


def _box(name: str, value: str, lines: Sequence[str]) -> str:
    beside = "".join(f'<dd class="beside">{escape(line)}</dd>' for line in lines)
    return f'<div><dt>{escape(name)}</dt><dd class="value">{escape(value)}</dd>{beside}</div>'


def _rivals(view: TargetView) -> str:
    if view.choice is None or not view.choice.rivals:
        return ""
    points = {point.record.record_id: point for point in view.points}
    rows = [
        [
            variant(record.strategy, f"{points[record.record_id].size}, {record.precision}"),
            f'<td class="long">{escape(reason)}</td>',
        ]
        for record, reason in view.choice.rivals
    ]
    count = len(rows)
    inner = table(["variant", "why not"], rows)
    return f"<details><summary>Why not the other {count} on the front</summary>{inner}</details>"


def _other_targets(report: Report) -> str:
    lines = []
    for view in report.targets[1:]:
        mark = " (estimated)" if view.estimated else ""
        if view.chosen is None:
            said = view.no_choice.splitlines()[0] if view.no_choice else "nothing fits"
        else:
            record = view.chosen.record
            latency = say("latency_ms", record.latency_ms)
            said = f"{record.strategy}, {view.chosen.size}, {record.precision}: {latency}"
        lines.append(f"<li>On {escape(view.name)}{mark}: {escape(said)}</li>")
    return f"<h3>Elsewhere</h3><ul>{''.join(lines)}</ul>" if lines else ""
