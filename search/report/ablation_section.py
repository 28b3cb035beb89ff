"""An ablation in the page: what was measured side by side."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from search.ablation import Ablation, Batch, Member
from search.report.batch_figures import describe, group_looks, say_rate
from search.report.pieces import identity, marked, number, plot, section, table
from search.words import say, say_interval, say_name

COLUMNS = ("size_mb", "memory_mb", "train_seconds", "forgetting", "overfit")
_QUIET = 3.0
"""The 95th percentile is at most this many times the median on a machine that does little else."""


def ablation_section(ablation: Ablation, metric: str, plots: Mapping[str, Any]) -> str:
    """Rule, plots and tables; what was not measured for any member has no column."""
    shown = shown_columns(ablation, metric)
    drawn = list(zip(ablation.members, group_looks(ablation), strict=True))
    heads = ["group", f"#{say_name(metric)}", *(f"#{say_name(name)}" for name in shown), "#best of", "#record"]
    cells = [[marked(m.group, describe(m, ablation.by), how), *_cells(m, metric, shown)] for m, how in drawn]
    sizes = [batch.batch_size for batch in ablation.members[0].batches] if ablation.members else []
    timings = [[marked(m.group, "", how), *map(_timing, m.batches)] for m, how in drawn]
    return section(
        f"Ablation by {say_name(ablation.by)}",
        "".join(
            [
                *(f"<p>{escape(text)}</p>" for text in explained(ablation)),
                plot(f"batch-throughput-{ablation.by}", plots),
                plot(f"batch-latency-{ablation.by}", plots),
                table(heads, cells),
                "<h3>Batches: median, 95th percentile, throughput</h3>",
                table(["group", *(f"#{size} {'row' if size == 1 else 'rows'}" for size in sizes)], timings),
            ]
        ),
    )


def explained(ablation: Ablation) -> list[str]:
    """In sentences: how the members were found, how they were timed, and what is left out."""
    answered = f", each answered with {ablation.output_tokens} and any rationale" if ablation.output_tokens else ""
    constraints = f" Constraints: {', '.join(ablation.constraints)}." if ablation.constraints else ""
    return [
        f"{ablation.rule}{constraints} A group of more variants has the better chances.",
        f"Timed on one thread, {ablation.num_calls} calls of each at each batch size, all in turn, call by call; rows "
        f"of {ablation.sequence_length} tokens{answered}.",
        *_unquiet(ablation),
        *(f"Left out: {text}." for text in ablation.left_out),
    ]


def _unquiet(ablation: Ablation) -> list[str]:
    worst = max((b.latency_p95_ms / b.latency_ms for member in ablation.members for b in member.batches), default=1.0)
    if worst <= _QUIET:
        return []
    # Two cores at a load of 7: the median of a call of 1.2 ms was 8 % above that of the cost table, of 1.6 ms 86 %.
    return [
        f"The machine was busy: a 95th percentile is {worst:.1f} times its median. Long calls are then slowed more "
        "than short ones; measure again when it is quiet."
    ]


def shown_columns(ablation: Ablation, metric: str) -> list[str]:
    """Costs and effects of training that some member has a value of."""
    values = {name: [member.record.value(name, metric) for member in ablation.members] for name in COLUMNS}
    return [name for name in COLUMNS if any(value is not None for value in values[name])]


def _cells(member: Member, metric: str, shown: Sequence[str]) -> list[str]:
    record = member.record
    return [
        number(say(metric, record.quality), say_interval(metric, record.quality_low, record.quality_high)),
        *(number(say(name, record.value(name, metric))) for name in shown),
        number(str(member.num_variants)),
        identity(record.record_id),
    ]


def _timing(batch: Batch) -> str:
    beside = f"{say('latency_p95_ms', batch.latency_p95_ms)} · {say_rate(batch)}"
    return number(say("latency_ms", batch.latency_ms), beside)
