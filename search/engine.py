"""A whole search: prepared, run on Ray, confirmed, written up. Ray Tune drives; the conductor decides."""

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from search.budget import Limits
from search.cluster import Layout, lay_out, ray_running, versions
from search.conductor import Conductor, Listener, Setup
from search.export import write_best
from search.foreknown import CostTableForeknown, SharesLeft, work_of
from search.ledger import Ledger
from search.lock import locked
from search.prepare import (
    Prepared,
    feasible_space,
    first_draws,
    known_costs,
    measure_costs,
    prepare,
)
from search.records import Record
from search.run import Run
from search.run_folder import RunFolder
from search.sampler import make_sampler
from search.scheduler import make_scheduler
from search.seats import NAMESPACE, SeatPool, Switchboard
from search.select import NoChoice
from search.spec import Spec
from search.students import names_of
from search.tuning import Board, drive
from search.words import say_students
from spaces.draw import Draw, draw, shapes
from spaces.methods.finetune import baseline
from spaces.plan import Plan
from spaces.shape import Shape
from spaces.space_json import SPACE, space_to_json
from spaces.targets import TARGETS
from trainers.checkpoints import Checkpoint, remove_all
from trainers.context import Context
from trainers.cost import CostRow, probe
from trainers.kinds import kind_of
from trainers.storage import Storage

_STOPPED = "stopped; the same command goes on from here"


class SearchFailed(Exception):
    """The search could not go on; what was finished is kept, and the same command goes on from there."""


class Interrupted(Exception):
    """The search was told to stop; the same command goes on."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """One search, to be run or gone on with."""

    spec: Spec
    new: bool = False
    """Start beside an earlier run of the same name instead of going on with it."""

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = (), *, new: bool = False) -> "Search":
        """The search that a spec file describes. Raises ``SpecError`` with all that is wrong."""
        from search.spec import load_spec

        return cls(spec=load_spec(Path(path), overrides), new=new)

    def run(self, listener: Listener | None = None) -> Run:
        """Search until the budget is used, confirm the front, write report and choice.

        Raises:
            Interrupted: a signal ended it; resumable.
            SearchFailed: the workers could not be kept up; resumable.
            NothingFits: no shape satisfies the constraints.
        """
        from search.live import PlainListener

        heard = listener or PlainListener(metric=self.spec.task.metric)
        folder = RunFolder.open(self.spec, new=self.new)
        try:
            with locked(folder.storage), ray_running(self.spec.resources.address):
                _Session(self.spec, folder, heard).run()
        except KeyboardInterrupt:
            raise Interrupted(_STOPPED) from None
        return Run(folder.storage)


class _Session:
    """One start of a search: from an open run folder to its written results."""

    def __init__(self, spec: Spec, folder: RunFolder, listener: Listener) -> None:
        self._spec, self._folder, self._listener = spec, folder, listener
        self._storage: Storage = folder.storage

    def run(self) -> None:
        layout = lay_out(self._spec.resources, trials=self._spec.budget.trials)
        self._listener.said(f"run folder: {self._storage.shown}")
        prepared = prepare(self._spec, self._storage, threads=layout.cpus, say=self._listener.said)
        prepared.context.store.remove_drafts()
        self._folder.claim(self._spec, prepared.context, prepared.rows, notes=prepared.notes)
        rows = measure_costs(
            prepared,
            self._storage,
            measure=probe_apart,
            say=self._listener.said,
            before=export_shapes(prepared.context),
        )
        conductor = self._conductor(prepared, rows, layout)
        if self._is_open(conductor) or self._unconfirmed():
            self._carry_on(conductor, prepared, layout)
        self._write_up()

    def _is_open(self, conductor: Conductor) -> bool:
        """Whether the budget leaves anything to carry out."""
        if self._limits.time_is_up(conductor.spent):
            return False
        if self._limits.allows_another(conductor.spent) or conductor.promising is not None:
            return True
        return bool(Run(self._storage).ledger.unfinished())

    def _carry_on(self, conductor: Conductor, prepared: Prepared, layout: Layout) -> None:
        with self._seats(prepared, layout) as (pool, board):
            drive(conductor, pool, board, seats=layout.seats, folder=self._folder, listener=self._listener)
            if pool.failed.is_set():
                raise SearchFailed(f"workers could not be kept up; see {self._folder.log_folder}")
            if conductor.interrupted:
                raise Interrupted(_STOPPED)
            self._confirm(board)
        remove_all(prepared.context)

    def _write_up(self) -> None:
        """Front, choice, report, and the chosen model as ``best/``."""
        run = Run(self._storage)
        run.write_outputs()
        with contextlib.suppress(NoChoice):
            choice = run.select()
            self._listener.said(f"exporting {choice.record.record_id}")
            write_best(run, choice.record)

    def _conductor(self, prepared: Prepared, rows: list[CostRow], layout: Layout) -> Conductor:
        space = feasible_space(prepared, rows)
        self._storage.write(SPACE, space_to_json(space))
        ledger = Ledger(self._storage, metric=prepared.goals.metric)
        setup = Setup(
            goals=prepared.goals,
            costs=known_costs(rows),
            estimated=frozenset(name for name in self._spec.targets if not TARGETS[name].measured),
            opening=first_draws(space, prepared.goals),
            baseline=baseline(space).fingerprint,
            base_layers=space.base_layers,
            names=names_of(prepared.space.students),
            precisions=prepared.precisions,
            limits=self._limits,
            devices_per_trial=layout.workers,
            versions=versions(),
            max_seats=layout.seats,
            earlier_minutes=self._folder.earlier_minutes(),
        )
        parts, latency_s = _Parts(prepared.context), full_precision_latency_s(rows)
        sampler = make_sampler(
            self._spec.search.sampler,
            draw=partial(draw, space),
            goals=prepared.goals,
            seed=space.seed,
            workers=layout.seats,
            foreknown=CostTableForeknown(
                prepared.goals,
                setup.costs,
                prepared.precisions,
                share_left=SharesLeft(parts.is_there, partial(work_of, latency=latency_s)),
            ),
        )
        conductor = Conductor(
            setup,
            ledger=ledger,
            sampler=sampler,
            scheduler=make_scheduler(self._spec.search.scheduler),
            missing=parts.missing,
            release=lambda draw: Checkpoint(prepared.context, draw.fingerprint).remove(),
            listener=self._listener,
        )
        conductor.rule_out(shapes(prepared.space))
        self._listener.said(_summary(space, ledger, layout))
        return conductor

    @property
    def _limits(self) -> Limits:
        return Limits.of(self._spec.budget)

    @contextlib.contextmanager
    def _seats(self, prepared: Prepared, layout: Layout) -> Iterator[tuple[SeatPool, Any]]:
        from trainers.ray_train import Seat

        name = f"switchboard-{uuid.uuid4().hex[:8]}"
        board = ray.remote(Switchboard).options(name=name, num_cpus=0, max_concurrency=10_000).remote()
        ray.get(board.ready.remote())
        pool = SeatPool(board, say=self._listener.said, log=self._folder.log)
        seat = Seat(
            name="seat",
            switchboard=name,
            namespace=NAMESPACE,
            num_workers=layout.workers,
            resources=layout.resources,
            log_folder=str(self._folder.log_folder / "train" / name),
        )
        pool.start(seat, prepared.context, count=layout.seats)
        try:
            yield pool, Board(board, name, pool.failed)
        finally:
            pool.close()

    def _unconfirmed(self) -> list[Record]:
        """Variants of the front that were not measured on the test split yet."""
        if not self._folder.has_test():
            return []
        run = Run(self._storage)
        front = {r.record_id: r for target in run.goals.targets for r in run.front_records(target)}
        return [record for record_id, record in front.items() if record_id not in run.confirmed]

    def _confirm(self, board: Board) -> None:
        """Measure the front on the test split, which nothing was chosen by."""
        missing = self._unconfirmed()
        if not missing:
            return
        self._listener.said(f"confirming {len(missing)} variants of the front on the test split")
        found = {name: asdict(confirmed) for name, confirmed in Run(self._storage).confirmed.items()}
        for record, outcome in zip(missing, board.measure(missing, split="test"), strict=True):
            if "error" in outcome:
                self._listener.said(f"{record.record_id}: could not be confirmed: {outcome['error']}")
            else:
                (measured,) = outcome["result"]
                found[record.record_id] = {"value": measured.value, "low": measured.low, "high": measured.high}
        self._storage.write_json("confirmation.json", found)


class _Parts:
    """Which parts of plans are trained. What is there stays there: it is looked for once."""

    def __init__(self, context: Context) -> None:
        self._store, self._there = context.store, set[str]()

    def missing(self, found: Draw[Plan]) -> set[str]:
        """Those of a draw's plan that still have to be trained."""
        return {part.fingerprint for part in found.plan.trained_prefixes() if not self.is_there(part.fingerprint)}

    def is_there(self, fingerprint: str) -> bool:
        """Whether the artifact of a part is."""
        if fingerprint not in self._there and self._store.has(fingerprint):
            self._there.add(fingerprint)
        return fingerprint in self._there


def full_precision_latency_s(rows: Sequence[CostRow]) -> dict[Shape, float]:
    """Of a request, by shape, on this machine."""
    return {row.shape: row.latency_ms / 1e3 for row in rows if row.precision == "fp32" and not row.estimated}


def probe_apart(shape: Shape, precision: Any, context: Context, *, reference: Shape, sequence_length: int) -> CostRow:
    """``probe`` in a fresh process, so that its memory is its own."""
    task = ray.remote(max_calls=1, num_cpus=1)(probe)
    row: CostRow = ray.get(task.remote(shape, precision, context, reference=reference, sequence_length=sequence_length))
    return row


def export_shapes(context: Context) -> Callable[[Sequence[Shape]], None]:
    """Makes what measuring shapes needs, side by side."""

    def export(shapes: Sequence[Shape]) -> None:
        task = ray.remote(num_cpus=1)(_export)
        ray.get([task.remote(shape, context) for shape in shapes])

    return export


def _export(shape: Shape, context: Context) -> None:
    kind_of(context).prepare_probe(shape, context)


def _summary(space: Any, ledger: Ledger, layout: Layout) -> str:
    done = sum(ledger.is_finished(proposal) for proposal in ledger.proposals)
    seats = f"{layout.seats} seat{'s' if layout.seats > 1 else ''} × {layout.workers * layout.cpus} threads"
    past = f"; going on after {done} trials" if done else ""
    students = say_students(space)
    return f"searching {', '.join(space.strategies)}; students: {students}; {seats}{past}"
