"""What a person sees while a search runs: a line per event, and in a terminal a live view below them."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search.ledger import Proposal
from search.records import Record
from search.words import say, say_layers, say_name
from spaces.choosers import Value
from spaces.objectives import OBJECTIVES
from trainers.progress import Progress


class PlainListener:
    """One short line an event, for logs and pipes."""

    def __init__(self, console: Console | None = None, *, metric: str) -> None:
        self._metric = metric
        self._console = console or Console(file=sys.stdout, highlight=False)
        self._began = time.monotonic()

    def started(self, proposal: Proposal) -> None:
        self._line(f"{proposal.trial_id} started   {describe(proposal)}")

    def progressed(self, proposal: Proposal, progress: Progress) -> None:
        quality = "" if progress.quality is None else f"  {say(self._metric, progress.quality)}"
        stage = f"stage {progress.stage + 1}/{progress.num_stages} {progress.kind}"
        self._line(f"{proposal.trial_id}   {stage} epoch {progress.epoch}/{progress.epochs}{quality}")

    def finished(self, proposal: Proposal, records: Sequence[Record]) -> None:
        self._line(f"{proposal.trial_id} {ending(records, self._metric)}")

    def said(self, text: str) -> None:
        self._line(text)

    def _line(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        self._console.print(f"{minutes:3d}:{seconds:02d}  {text}", markup=False, soft_wrap=True)


class LiveListener(PlainListener):
    """The lines, and below them what is under way and the best so far. A context manager."""

    def __init__(self, console: Console, *, trials: int | None, metric: str) -> None:
        super().__init__(console, metric=metric)
        self._trials = trials
        self._running: dict[int, tuple[Proposal, Progress | None]] = {}
        self._done = 0
        self._best: dict[str, Record] = {}
        self._live = Live(console=console, refresh_per_second=2, get_renderable=self._view)

    def __enter__(self) -> "LiveListener":
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def started(self, proposal: Proposal) -> None:
        self._running[proposal.number] = (proposal, None)

    def progressed(self, proposal: Proposal, progress: Progress) -> None:
        self._running[proposal.number] = (proposal, progress)

    def finished(self, proposal: Proposal, records: Sequence[Record]) -> None:
        self._running.pop(proposal.number, None)
        self._done += 1
        for record in records:
            if record.status == "complete":
                self._keep_best(record)
        super().finished(proposal, records)

    def _keep_best(self, record: Record) -> None:
        key, gain = f"{record.target} {record.precision}", OBJECTIVES[self._metric].gain
        best = self._best.setdefault(key, record)
        if record.quality is not None and best.quality is not None and gain(record.quality) > gain(best.quality):
            self._best[key] = record

    def _view(self) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for proposal, progress in self._running.values():
            table.add_row(proposal.trial_id, describe(proposal), _standing(progress, self._metric))
        of = f" of {self._trials}" if self._trials else ""
        return Group(Text(f"── {self._done}{of} done this session{self._left()}", style="dim"), table, *self._bests())

    def _bests(self) -> list[Text]:
        return [
            Text(f"best {key}: {_found(record, self._metric)} ({record.trial_id})", style="dim")
            for key, record in sorted(self._best.items())
        ]

    def _left(self) -> str:
        if not self._done or not self._trials:
            return ""
        each = (time.monotonic() - self._began) / self._done
        return f", about {each * max(0, self._trials - self._done) / 60:.0f} min left"


@contextlib.contextmanager
def listening(console: Console, *, trials: int | None, metric: str) -> Iterator[PlainListener]:
    """The live view in a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield PlainListener(console, metric=metric)
        return
    with LiveListener(console, trials=trials, metric=metric) as listener:
        yield listener


def describe(proposal: Proposal) -> str:
    """A proposal in one line."""
    return f"{proposal.draw.strategy}: {', '.join(_setting(*item) for item in proposal.draw.params.items())}"


def _setting(name: str, value: Value) -> str:
    if name == "student_layers":
        return say_layers(int(value))
    return f"{say_name(name)} {value:.3g}" if isinstance(value, float) else f"{say_name(name)} {value}"


def ending(records: Sequence[Record], metric: str) -> str:
    """How a trial ended, in one line; its quality is called ``metric``."""
    first = records[0]
    if first.status != "complete":
        return f"{first.status}   {first.error.splitlines()[0] if first.error else ''}"
    parts = [f"{record.precision} {_found(record, metric)}" for record in records if record.target == first.target]
    saved = f", {first.prefix_seconds_saved:.0f} s saved" if first.prefix_seconds_saved >= 1 else ""
    return f"done      {' · '.join(parts)}   ({first.train_seconds or 0:.0f} s of training{saved})"


def _found(record: Record, metric: str) -> str:
    return f"{say(metric, record.quality)} at {record.latency_ms or 0:.2f} ms"


def _standing(progress: Progress | None, metric: str) -> str:
    if progress is None:
        return "starting"
    quality = "" if progress.quality is None else f", {say(metric, progress.quality)}"
    return f"{progress.kind} {progress.epoch}/{progress.epochs}{quality}"
