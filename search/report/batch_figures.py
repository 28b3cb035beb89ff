"""The plots of an ablation: what comes out of a batch, and how long it takes, over its size."""

from collections.abc import Callable
from html import escape

from search.ablation import Ablation, Batch, Member
from search.report.axes import Figure, layout, ticks
from search.report.looks import Look, look, numbered
from search.words import say, say_interval, say_name


def batch_figures(ablation: Ablation, metric: str) -> dict[str, Figure]:
    """Both plots by the ids of their places; none where nothing was timed."""
    if not any(member.batches for member in ablation.members):
        return {}
    latency = _figure(ablation, metric, "ms a batch, median to p95", lambda batch: batch.latency_ms)
    for trace, member in zip(latency["data"], ablation.members, strict=True):
        trace["error_y"] = {
            "array": [batch.latency_p95_ms - batch.latency_ms for batch in member.batches],
            "arrayminus": [0.0] * len(member.batches),
            "color": trace["line"]["color"],
            "thickness": 1,
            "width": 3,
        }
    throughput = _figure(ablation, metric, "rows a second", lambda batch: batch.rows_per_s)
    return {f"batch-throughput-{ablation.by}": throughput, f"batch-latency-{ablation.by}": latency}


def group_looks(ablation: Ablation) -> list[Look]:
    """A look for each member: its strategy's own where groups are strategies."""
    if ablation.by == "strategy":
        return [look(member.group) for member in ablation.members]
    return [numbered(index) for index in range(len(ablation.members))]


def describe(member: Member, by: str) -> str:
    """What the best of a group is, without what its group says already."""
    record = member.record
    parts = {
        "strategy": record.strategy,
        "student_layers": member.size,
        "precision": record.precision,
    }
    return ", ".join(text for name, text in parts.items() if name != by)


def _figure(ablation: Ablation, metric: str, title: str, value: Callable[[Batch], float]) -> Figure:
    batches = [batch for member in ablation.members for batch in member.batches]
    sizes = sorted({batch.batch_size for batch in batches})
    frame = layout(x="rows in a batch", y={"title": {"text": title}, "type": "log"})
    frame["xaxis"] |= {"type": "log", "tickvals": sizes, "ticktext": [str(size) for size in sizes]}
    frame["yaxis"] |= ticks([value(batch) for batch in batches])
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": escape(member.group),
            "x": [batch.batch_size for batch in member.batches],
            "y": [value(batch) for batch in member.batches],
            "text": [_hover(member, batch, ablation.by, metric) for batch in member.batches],
            "hovertemplate": "%{text}<extra></extra>",
            "line": how.line,
            "marker": how.marker,
        }
        for member, how in zip(ablation.members, group_looks(ablation), strict=True)
    ]
    return {"data": traces, "layout": frame | {"height": 380}}


def _hover(member: Member, batch: Batch, by: str, metric: str) -> str:
    record = member.record
    interval = say_interval(metric, record.quality_low, record.quality_high)
    lines = [
        f"{escape(describe(member, by))}",
        f"{say_name(metric)} {say(metric, record.quality)} ({interval}) on validation",
        f"batches of {batch.batch_size}: {say('latency_ms', batch.latency_ms)}, p95 "
        f"{say('latency_p95_ms', batch.latency_p95_ms)}, {say_rate(batch)}",
    ]
    return "<br>".join([f"<b>{escape(member.group)}</b>", *lines, escape(record.record_id)])


def say_rate(batch: Batch) -> str:
    """Throughput with its unit."""
    return f"{batch.rows_per_s:,.0f} rows/s" if batch.rows_per_s >= 10 else f"{batch.rows_per_s:.2g} rows/s"
