"""The parts of the page, in their order. Every function gives finished HTML."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from search.report.ablation_section import ablation_section
from search.report.build import BestAtSize, Ended, Point, Report, TargetView
from search.report.figures import main_precision, x_axis
from search.report.pieces import identity, named, number, plot, section, short, table, variant
from search.report.progress_section import progress_section, time_section
from search.words import say, say_interval, say_list, say_name
from spaces.objectives import OBJECTIVES

_COSTS = ("latency_ms", "latency_p95_ms", "size_mb", "memory_mb", "energy_j")
_BETTER = {"max": "Up", "min": "Down"}
_STATUS = {"infeasible": "ruled out"}
_GLOSSARY = (
    ("plan", "the chain of stages that one trial carries out"),
    ("strategy", "a named shape of plan"),
    ("variant", "one trained model at one precision, a point in the plots"),
    ("front", "the variants that no other one beats in every objective"),
    ("hypervolume", "how much of the space between the worst and the best values the front covers"),
    ("base", "the model that everything starts from; fine-tuned in full, it is the baseline"),
    ("target", "where the model must serve"),
)


def sections(report: Report, plots: Mapping[str, Any]) -> list[str]:
    """Everything below the header."""
    return [
        *(_front(view, report, plots) for view in report.targets),
        _best(report, plots),
        *(ablation_section(ablation, report.metric, plots) for ablation in report.ablations),
        progress_section(report, plots),
        _importance(report, plots),
        _ended(report),
        _notes(report),
        _costs(report),
        time_section(report, plots),
        _reproduce(report),
        _footer(report),
    ]


def front_table(view: TargetView, report: Report) -> str:
    """The front on one target, cheapest first."""
    objectives = (name for name in report.objectives if name != report.metric)
    costs = list(dict.fromkeys([*objectives, "latency_ms", "size_mb", *report.beside]))
    rows = [_front_row(point, costs, report) for point in view.front]
    heads = ["variant", f"#{say_name(report.metric)}", "#on test", *(f"#{say_name(n)}" for n in costs), "#record"]
    return table(heads, rows, chosen=[point.chosen for point in view.front])


# Sections -------------------------------------------------------------------------------------------------------


def _front(view: TargetView, report: Report, plots: Mapping[str, Any]) -> str:
    title = f"The front on {view.name}"
    if not view.points:
        return section(title, "<p>No variant was trained to its end.</p>")
    cost = x_axis(report.objectives, report.metric)
    dominated = len(view.points) - len(view.front)
    intro = f"{view.summary[:1].upper()}{view.summary[1:]}. " if view.summary else ""
    if view.estimated:
        intro += "Costs here are estimated from a profile of the device, not measured. "
    intro += (
        f"{_BETTER[OBJECTIVES[report.metric].direction]} and to the left is better. The faint ones ({dominated}) are "
        "beaten by another one or break a constraint; those that are far worse come into view on a double click."
    )
    more = [say_name(name) for name in report.objectives if name not in (report.metric, cost)]
    if more:
        intro += f" The front is also one of {say_list(more)}, which the plot does not show."
    return section(title, f"<p>{escape(intro)}</p>{plot(f'front-{view.name}', plots)}{front_table(view, report)}")


def _front_row(point: Point, costs: Sequence[str], report: Report) -> list[str]:
    record, metric = point.record, report.metric
    return [
        variant(record.strategy, f"{point.size}, {record.precision}"),
        number(say(metric, record.quality), say_interval(metric, record.quality_low, record.quality_high)),
        number(say(metric, point.test.value), say_interval(metric, point.test.low, point.test.high))
        if point.test
        else number("–"),
        *(number(say(name, record.value(name, metric))) for name in costs),
        identity(record.record_id),
    ]


def _best(report: Report, plots: Mapping[str, Any]) -> str:
    if not report.best:
        return ""
    precision = main_precision(report.best)
    text = (
        f"<p>What each strategy reached at equal size, the best of its trials, at {escape(precision)}. Strategies had "
        "different numbers of trials; overlapping intervals mean that the difference may be chance.</p>"
    )
    rows = [_best_row(row, report.metric) for row in report.best]
    heads = ["variant", f"#{say_name(report.metric)}", "#on test", "#latency", "#training", "#record"]
    every = f"<details><summary>All {len(rows)} as a table</summary>{table(heads, rows)}</details>"
    return section("Best of every strategy at each size", text + plot("best", plots) + every)


def _best_row(row: BestAtSize, metric: str) -> list[str]:
    record = row.record
    return [
        variant(row.strategy, f"{row.size}, {row.precision}"),
        number(say(metric, record.quality), say_interval(metric, record.quality_low, record.quality_high)),
        number(say(metric, row.test.value) if row.test else "–"),
        number(say("latency_ms", record.latency_ms)),
        number(say("train_seconds", record.train_seconds)),
        identity(record.record_id),
    ]


def _importance(report: Report, plots: Mapping[str, Any]) -> str:
    found = report.importance
    if not found.shares:
        return section("Which settings mattered", f"<p>{escape(found.note)}</p>")
    text = (
        f"Permutation importance for {say_name(report.metric)} in a random forest over {found.num_trials} complete "
        f"trials, which explains {max(0.0, found.explained):.0%} of the variance on trials that it has not seen. "
        f"{found.note}"
    )
    return section("Which settings mattered", f"<p>{escape(text)}</p>{plot('importance', plots)}")


def _ended(report: Report) -> str:
    counts = say_list([f"{count} {_STATUS.get(s, s)}" for s, count in sorted(report.counts.items())]) or "none"
    text = f"<p>Trials and sizes by how they ended: {escape(counts)}.</p>"
    if not report.ended:
        return section("Stopped, failed, ruled out", f"{text}<p>Every trial came to its end.</p>")
    rows = [_ended_row(row) for row in report.ended]
    return section("Stopped, failed, ruled out", text + table(["trial", "how it ended", "why"], rows))


def _ended_row(row: Ended) -> list[str]:
    share = f" at {row.fidelity:.0%}" if row.status == "stopped" else ""
    detail = f"<details><summary>whole text</summary><pre>{escape(row.detail)}</pre></details>" if row.detail else ""
    return [
        named(row.trial, row.what),
        short(f"{_STATUS.get(row.status, row.status)}{share}"),
        f'<td class="long">{escape(row.why)}{detail}</td>',
    ]


def _costs(report: Report) -> str:
    if not report.costs:
        return ""
    shown = [name for name in _COSTS if any(row.get(name) is not None for row in report.costs)]
    rows = [
        [short(row["size"]), short(str(row.get("precision", ""))), _cost_target(row)]
        + [number(say(name, row.get(name))) for name in shown]
        for row in report.costs
    ]
    text = (
        "<p>Serving costs depend on size, precision and target alone, so they were known before the first trial. "
        "Latencies are ratios to the base, measured side by side, times its own latency in this run.</p>"
    )
    return section("Cost table", text + table(["size", "", "target", *(f"#{say_name(n)}" for n in shown)], rows))


def _cost_target(row: Mapping[str, Any]) -> str:
    mark = ' <span class="tag">estimated</span>' if row.get("estimated") else ""
    return f'<td class="short">{escape(str(row.get("target", "")))}{mark}</td>'


def _notes(report: Report) -> str:
    if not report.notes:
        return ""
    text = "<p>What was left out, cut or looked odd in data and models, before the first trial.</p>"
    return section(
        "Noticed beforehand", f"{text}<ul>{''.join(f'<li>{escape(note)}</li>' for note in report.notes)}</ul>"
    )


def _reproduce(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(report.versions.items()))
    text = (
        "<p>Save this as <code>spec.yaml</code> and run the command. The same seed and the same records give the same "
        "proposals; measured times differ.</p><pre>distune search spec.yaml</pre>"
        f"<p>Seed {report.seed}. {escape(versions)}</p>"
    )
    spec = f"<details><summary>spec.yaml</summary><pre>{escape(report.spec_text)}</pre></details>"
    return section("How to reproduce it", text + spec)


def _footer(report: Report) -> str:
    glossary = [*_GLOSSARY, *((name, OBJECTIVES[name].summary) for name in report.beside)]
    terms = "; ".join(f"<b>{word}</b>: {meaning}" for word, meaning in glossary)
    return f"<footer><p>{terms}.</p></footer>"
