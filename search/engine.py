"""A whole search: prepared, run on Ray, confirmed, written up. Ray Tune drives; the conductor decides."""

import contextlib
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from search.budget import Limits
from search.cluster import Layout, lay_out, ray_running, versions
from search.conductor import DONE, WAIT, Conductor, Listener, Setup
from search.export import write_best
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
from search.scheduler import ParetoHalving
from search.seats import NAMESPACE, SeatPool, Switchboard
from search.select import NoChoice
from search.spec import Spec
from search.trial import PlanTrial
from spaces.plan import Plan, Shape
from spaces.targets import TARGETS
from trainers.context import Context
from trainers.cost import CostRow, probe
from trainers.deploy import ensure_export
from trainers.storage import Storage


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

        heard = listener or PlainListener()
        folder = RunFolder.open(self.spec, new=self.new)
        with locked(folder.storage), ray_running(self.spec.resources.address):
            _Session(self.spec, folder, heard).run()
        return Run(folder.storage)


class _Session:
    """One start of a search: from an open run folder to its written results."""

    def __init__(self, spec: Spec, folder: RunFolder, listener: Listener) -> None:
        self._spec, self._folder, self._listener = spec, folder, listener
        self._storage: Storage = folder.storage

    def run(self) -> None:
        layout = lay_out(self._spec.resources, trials=self._spec.budget.trials)
        self._listener.said(f"run folder: {self._storage.location}")
        prepared = prepare(self._spec, self._storage, threads=layout.cpus, say=self._listener.said)
        self._folder.claim(self._spec, prepared.context, prepared.rows)
        rows = measure_costs(
            prepared,
            self._storage,
            measure=probe_apart,
            say=self._listener.said,
            before=export_shapes(prepared.context),
        )
        conductor = self._conductor(prepared, rows, layout)
        with self._seats(prepared, layout) as (pool, board):
            _drive(conductor, pool, board, seats=layout.seats, folder=self._folder, listener=self._listener)
            if conductor.interrupted:
                raise Interrupted("stopped; the same command goes on from here")
            if pool.failed.is_set():
                raise SearchFailed(f"workers could not be kept up; see {self._folder.log_folder}")
            self._confirm(board)
        self._write_up()

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
        ledger = Ledger(self._storage, metric=prepared.goals.metric)
        setup = Setup(
            goals=prepared.goals,
            costs=known_costs(rows),
            estimated=frozenset(name for name in self._spec.targets if not TARGETS[name].measured),
            opening=first_draws(space, prepared.goals),
            baseline=space.baseline().fingerprint,
            base_layers=space.base_layers,
            precisions=prepared.precisions,
            limits=Limits(
                trials=self._spec.budget.trials,
                minutes=self._spec.budget.minutes,
                device_hours=self._spec.budget.device_hours,
            ),
            devices_per_trial=layout.workers,
            versions=versions(),
            max_seats=layout.seats,
            earlier_minutes=self._folder.earlier_minutes(),
        )
        sampler = make_sampler(
            self._spec.search.sampler, space=space, directions=prepared.goals.directions, seed=space.seed
        )
        conductor = Conductor(
            setup,
            ledger=ledger,
            sampler=sampler,
            scheduler=ParetoHalving(),
            missing=_missing_parts(prepared.context),
            listener=self._listener,
        )
        conductor.rule_out(prepared.space.shapes())
        self._listener.said(_summary(space, ledger, layout))
        return conductor

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
            yield pool, _Board(board, name)
        finally:
            pool.close()

    def _confirm(self, board: "_Board") -> None:
        """Measure the front on the test split, which nothing was chosen by."""
        run = Run(self._storage)
        if not self._folder.has_test():
            return
        front = {r.record_id: r for target in run.goals.targets for r in run.front_records(target)}
        missing = [record for record_id, record in front.items() if record_id not in run.confirmed]
        found: dict[str, dict[str, float]] = {
            name: {"value": c.value, "low": c.low, "high": c.high} for name, c in run.confirmed.items()
        }
        if missing:
            self._listener.said(f"confirming {len(missing)} variants of the front on the test split")
        for record, outcome in zip(missing, board.measure(missing, split="test"), strict=True):
            if "error" in outcome:
                self._listener.said(f"{record.record_id}: could not be confirmed: {outcome['error']}")
            else:
                (measured,) = outcome["result"]
                found[record.record_id] = {"value": measured.value, "low": measured.low, "high": measured.high}
        self._storage.write_json("confirmation.json", found)


@dataclass(frozen=True)
class _Board:
    """The switchboard, as the driver speaks with it."""

    actor: Any
    name: str

    def collect(self, order_id: str) -> dict[str, Any]:
        return dict(ray.get(self.actor.collect.remote(order_id)))

    def abandon(self, order_id: str) -> None:
        ray.get(self.actor.abandon.remote(order_id))

    def measure(self, records: Sequence[Record], *, split: str) -> list[dict[str, Any]]:
        """Have the seats measure trained variants on a split; outcomes in the order of ``records``."""
        names = [f"measure-{record.record_id}" for record in records]
        for name, record in zip(names, records, strict=True):
            order = {
                "id": name,
                "kind": "measure",
                "plan": record.plan,
                "precisions": [record.precision],
                "split": split,
            }
            ray.get(self.actor.submit.remote(order))
        outcomes = []
        for name in names:
            while not ray.get(self.actor.next_message.remote(name)).get("done"):
                pass
            outcomes.append(self.collect(name))
        return outcomes


class _Unsaved:
    """Part of a Tune run that Tune cannot save: the ledger is the only state, and Tune's own is never restored."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return (object, ())

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class _Searcher(_Unsaved, Searcher):
    """Tune asks for a configuration, the conductor answers with a proposal."""

    def __init__(self, conductor: Conductor, board: _Board, *, seats: int, folder: RunFolder) -> None:
        super().__init__(metric=None, mode=None)
        self._conductor, self._board, self._seats, self._folder = conductor, board, seats, folder
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A proposal as an order for a seat; None while every seat is taken or every candidate held back."""
        if len(self._conductor.running) >= self._seats:
            return None
        proposal = self._conductor.next()
        if proposal == WAIT:
            return None
        if isinstance(proposal, str):
            assert proposal == DONE
            return Searcher.FINISHED
        self._numbers[trial_id] = proposal.number
        precisions = tuple(dict.fromkeys(precision for precision, _ in proposal.variants))
        order = {
            "id": proposal.trial_id,
            "number": proposal.number,
            "kind": "plan",
            "plan": proposal.draw.plan.to_json(),
            "precisions": precisions,
        }
        return {"switchboard": self._board.name, "order": order}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Hand what came of a trial to the conductor, unless that ended it itself."""
        number = self._numbers.pop(trial_id, None)
        if number is None or self._conductor.interrupted:
            return
        if not any(proposal.number == number for proposal in self._conductor.running):
            return
        name = f"t{number:05d}"
        if error or result is None:
            self._board.abandon(name)
            self._conductor.fail(number, "the trial's process ended unexpectedly")
        else:
            self._settle(number, self._board.collect(name))
        self._folder.beat()

    def _settle(self, number: int, outcome: dict[str, Any]) -> None:
        if "error" in outcome:
            self._folder.log(outcome.get("traceback", outcome["error"]))
            self._conductor.fail(number, f"{outcome['error']}\n{outcome.get('traceback', '')}".strip())
        else:
            self._conductor.complete(number, outcome["result"])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the only state."""


class _Scheduler(_Unsaved, FIFOScheduler):
    """Tune asks whether a trial goes on, the conductor answers. A stopped plan ends inside its worker's loop."""

    def __init__(self, conductor: Conductor, board: _Board) -> None:
        super().__init__()
        self._conductor, self._board = conductor, board

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        """CONTINUE or STOP."""
        number = result["number"]
        if self._conductor.interrupted or result.get("done"):
            return str(TrialScheduler.CONTINUE)
        if "restarted" in result:
            self._conductor.restarted(number)
        elif not self._conductor.goes_on(number, result["progress"]):
            self._board.abandon(f"t{number:05d}")
            return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)


class _Ending(_Unsaved, tune.Stopper):
    """Ends the Tune run when the search was interrupted or its seats cannot be kept up."""

    def __init__(self, conductor: Conductor, pool: SeatPool) -> None:
        self._conductor, self._pool = conductor, pool

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        return False

    def stop_all(self) -> bool:
        if self._pool.failed.is_set():
            self._conductor.interrupted = True
        return self._conductor.interrupted


def _drive(
    conductor: Conductor, pool: SeatPool, board: _Board, *, seats: int, folder: RunFolder, listener: Listener
) -> None:
    """Run Tune until the conductor is done."""
    tuner = tune.Tuner(
        tune.with_resources(PlanTrial, {"CPU": 0.01}),
        tune_config=tune.TuneConfig(
            search_alg=_Searcher(conductor, board, seats=seats, folder=folder),
            scheduler=_Scheduler(conductor, board),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{time.time_ns()}",
            storage_path=str(folder.log_folder),
            stop=_Ending(conductor, pool),
            failure_config=tune.FailureConfig(max_failures=2),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    with _signals(conductor, listener):
        tuner.fit()


@contextlib.contextmanager
def _signals(conductor: Conductor, listener: Listener) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the search in order, the second at once."""

    def end(signum: int, frame: Any) -> None:  # noqa: ARG001
        if conductor.interrupted:
            raise KeyboardInterrupt
        conductor.interrupted = True
        listener.said("stopping; once more to stop at once")

    try:
        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are the caller's
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _missing_parts(context: Context) -> Any:
    store = context.store

    def missing(plan: Plan) -> set[str]:
        parts = {prefix.fingerprint for prefix in plan.trained_prefixes()}
        return {fingerprint for fingerprint in parts if not store.has(fingerprint)}

    return missing


def probe_apart(shape: Shape, precision: Any, context: Context, *, reference: Shape, sequence_length: int) -> CostRow:
    """``probe`` in a fresh process, so that its memory is its own."""
    task = ray.remote(max_calls=1, num_cpus=1)(probe)
    row: CostRow = ray.get(task.remote(shape, precision, context, reference=reference, sequence_length=sequence_length))
    return row


def export_shapes(context: Context) -> Any:
    """Exports the graphs of shapes side by side."""

    def export(shapes: Sequence[Shape]) -> None:
        task = ray.remote(num_cpus=1)(_export)
        ray.get([task.remote(shape, context) for shape in shapes])

    return export


def _export(shape: Shape, context: Context) -> None:
    ensure_export(shape, context)


def _summary(space: Any, ledger: Ledger, layout: Layout) -> str:
    done = sum(ledger.is_finished(proposal) for proposal in ledger.proposals)
    seats = f"{layout.seats} seat{'s' if layout.seats > 1 else ''} × {layout.workers * layout.cpus} threads"
    past = f"; going on after {done} trials" if done else ""
    sizes = ", ".join(map(str, space.student_layers))
    return f"searching {', '.join(space.strategies)}; students of {sizes} layers; {seats}{past}"
