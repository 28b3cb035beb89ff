"""The report for a terminal: the front on each target, and the choice; an ablation."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from search.ablation import Ablation
from search.report.ablation_section import explained, shown_columns
from search.report.batch_figures import describe, say_rate
from search.report.build import Point, Report, TargetView
from search.report.progress_section import say_training
from search.words import say, say_interval, say_name


def render_text(report: Report) -> RenderableType:
    """Front and choice on each target, and time spent and saved, readable from 80 columns on. Nothing in it is taken
    for markup.
    """
    parts: list[RenderableType] = []
    for view in report.targets:
        parts += [_front(view, report), _choice(view), Text()]
    return Group(*parts, Text(" ".join(say_training(report.time))))


def _front(view: TargetView, report: Report) -> RenderableType:
    mark = ", costs estimated" if view.estimated else ""
    title = Text(f"{report.name}: front on {view.name}{mark}", style="bold")
    if not view.front:
        return title
    costs = list(dict.fromkeys([*(n for n in report.objectives if n != report.metric), "latency_ms", "size_mb"]))[:3]
    table = _plain_table(title)
    table.add_column("")
    for head in ("variant", "strategy", "layers", "at"):
        table.add_column(head, overflow="fold", no_wrap=head == "variant")
    for head in (say_name(report.metric), "test", *(say_name(name) for name in costs)):
        table.add_column(head, justify="right", no_wrap=True)
    for point in view.front:
        table.add_row(*_row(point, costs, report), style="bold" if point.chosen else None)
    return table


def _row(point: Point, costs: list[str], report: Report) -> list[Text]:
    record, metric = point.record, report.metric
    cells = [
        "▸" if point.chosen else "",
        record.trial_id,
        record.strategy,
        point.size.replace(" layers", "").replace(" layer", ""),
        record.precision,
        say(metric, record.quality),
        say(metric, point.test.value) if point.test else "–",
        *(say(name, record.value(name, metric)) for name in costs),
    ]
    return [Text(cell) for cell in cells]


def _choice(view: TargetView) -> RenderableType:
    if view.choice is None or view.chosen is None:
        return Text(f"No choice: {view.no_choice}", style="yellow")
    record = view.choice.record
    head = Text(f"Ship {record.strategy} with {view.chosen.size} at {record.precision} ({record.record_id}).", "green")
    return Group(head, Text(f"{view.chosen.plan}."), *(Text(f"- {reason}") for reason in view.choice.reasons))


def render_ablation(ablation: Ablation, metric: str) -> RenderableType:
    """The best of each group: quality and costs, then its times at each batch size."""
    shown = shown_columns(ablation, metric)
    costs = _plain_table(Text(f"Ablation by {say_name(ablation.by)} on {ablation.target}", style="bold"))
    for head in ("group", "best of it"):
        costs.add_column(head, overflow="fold")
    for head in (say_name(metric), "interval", *(say_name(name) for name in shown)):
        costs.add_column(head, justify="right", no_wrap=True)
    batches = _plain_table(Text("By rows in a batch", style="bold"))
    for head in ("group", "rows", "median", "p95", "throughput"):
        batches.add_column(head, justify="left" if head == "group" else "right", no_wrap=head != "group")
    for member in ablation.members:
        record = member.record
        quality = say(metric, record.quality), say_interval(metric, record.quality_low, record.quality_high)
        found = [say(name, record.value(name, metric)) for name in shown]
        costs.add_row(*map(Text, (member.group, describe(member, ablation.by), *quality, *found)))
        for batch in member.batches:
            times = say("latency_ms", batch.latency_ms), say("latency_p95_ms", batch.latency_p95_ms)
            batches.add_row(*map(Text, (member.group, str(batch.batch_size), *times, say_rate(batch))))
    return Group(costs, Text(), batches, Text(), *(Text(f"- {text}") for text in explained(ablation)))


def _plain_table(title: Text) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0), expand=False)
