"""The search on a simulated clock: workers are generators, training is a sum, everything else is the real thing.

The ledger is real, in memory; artifacts are a dict that outlives a killed driver, as a folder would.
"""

import dataclasses
import hashlib
import itertools
import math
import random
import uuid
from dataclasses import dataclass, field

from fsspec.implementations.memory import MemoryFileSystem
from ledgers import make_space

from search.budget import Limits
from search.conductor import Conductor, Setup
from search.goals import Goals
from search.ledger import Ledger
from search.scheduler import ReachesFront
from search.simulation.clock import Workers
from spaces.canonical import canonical_json
from spaces.choosers import RandomChooser
from spaces.draw import draw, opening, shapes
from spaces.methods.finetune import baseline
from trainers.progress import Progress
from trainers.results import Measured, Result
from trainers.storage import Storage

TARGETS = ("cpu", "phone")
PRECISIONS = ("fp32", "int8")


class Killed(BaseException):
    """The driver's process is gone, at this very moment."""


@dataclass
class World:
    """What outlives a driver: its storage, finished artifacts, and the clock."""

    location: str = field(default_factory=lambda: f"memory://{uuid.uuid4().hex}")
    artifacts: dict = field(default_factory=dict)
    """Fingerprint → (seconds, curve)."""
    checkpoints: dict = field(default_factory=dict)
    """Fingerprint → epochs done."""
    trained: list = field(default_factory=list)
    """Fingerprint of every stage that was trained to its end."""
    measured: object = float
    """What a plan's worker reports where its quality is that; more is better of the one, maybe not of the other."""
    now: float = 1_000.0
    moments_left: int | None = None
    """Until the driver is killed; None: never."""

    def moment(self):
        if self.moments_left is not None:
            self.moments_left -= 1
            if self.moments_left < 0:
                self.moments_left = None
                raise Killed

    def missing(self, found):
        return {prefix.fingerprint for prefix in found.plan.trained_prefixes()} - set(self.artifacts)

    def release(self, draw):
        self.checkpoints.pop(draw.plan.fingerprint, None)


def empty_memory():
    """fsspec's memory is one for the whole process, and listing a folder looks at every file in it."""
    MemoryFileSystem.store.clear()


class _Fragile(Storage):
    """A storage whose writer may be killed right before and right after each write."""

    def __init__(self, location, world):
        super().__init__(location)
        self._world = world

    def child(self, name):
        return _Fragile(super().child(name).location, self._world)

    def write(self, name, content):
        self._world.moment()
        super().write(name, content)
        self._world.moment()


def _chance(*what):
    """A number in [0, 1) that depends on ``what`` alone."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _quality(plan, precision="fp32"):
    layers = plan.shape.num_layers or 6
    return 0.5 + 0.05 * layers + 0.2 * _chance(plan.fingerprint) - (0.01 if precision == "int8" else 0.0)


def curve(plan):
    epochs = plan.stages[-1].optimisation.epochs
    return tuple((epoch / epochs, _quality(plan) * epoch / epochs) for epoch in range(1, epochs + 1))


def _pauses(plan):
    """Seconds of each epoch of the last stage."""
    return [10 + 20 * _chance(plan.fingerprint, epoch) for epoch in range(1, len(curve(plan)) + 1)]


@dataclass(frozen=True)
class Faults:
    """What goes wrong, by proposal number."""

    failing: tuple = ()
    nan: tuple = ()
    """(number, precision) of variants whose quality is no number."""


def carry_out(world, proposal, faults):
    """One plan on a seat: yields (seconds until it speaks, report), takes True, False or None, returns its end."""
    plan, spent = proposal.draw.plan, 0.0
    missing = list(dict.fromkeys(p for p in plan.trained_prefixes() if p.fingerprint not in world.artifacts))
    for stage, prefix in enumerate(missing):
        final, done = prefix == plan, world.checkpoints.get(prefix.fingerprint, 0)
        seconds = 0.0
        for epoch, ((_, quality), pause) in enumerate(zip(curve(prefix), _pauses(prefix), strict=True), 1):
            seconds += pause
            progress = Progress(
                stage=stage,
                num_stages=len(missing),
                kind=prefix.stages[-1].kind,
                epoch=epoch,
                epochs=len(curve(prefix)),
                final=final,
                quality=world.measured(quality) if final else None,
                train_loss=1.0,
                seconds=seconds,
                restored=epoch <= done,
            )
            goes_on = yield (0.0 if epoch <= done else pause), progress
            if goes_on is None:
                world.checkpoints[prefix.fingerprint] = epoch
            if not goes_on:
                return None
        if final and proposal.number in faults.failing:
            return "loss is nan at step 41"
        reported = tuple((fidelity, world.measured(quality)) for fidelity, quality in curve(prefix))
        world.artifacts[prefix.fingerprint] = (seconds, reported)
        world.trained.append(prefix.fingerprint)
        world.checkpoints.pop(prefix.fingerprint, None)
        spent += seconds
    return _result(world, proposal, spent, faults)


def _result(world, proposal, spent, faults):
    plan = proposal.draw.plan
    alone = sum(world.artifacts[name][0] for name in {prefix.fingerprint for prefix in plan.trained_prefixes()})
    variants = []
    for precision in dict.fromkeys(precision for precision, _ in proposal.variants):
        value = math.nan if (proposal.number, precision) in faults.nan else _quality(plan, precision)
        low, high = sorted(world.measured(value + end) for end in (-0.02, 0.02))
        value = world.measured(value)
        variants.append(Measured(precision=precision, value=value, low=low, high=high, predictions=(0, 1, 1)))
    return Result(
        variants=tuple(variants),
        curve=world.artifacts[plan.fingerprint][1],
        curve_seconds=tuple(itertools.accumulate(_pauses(plan))),
        train_seconds=alone,
        spent_seconds=spent,
        train_memory_mb=500.0,
        overfit=0.1,
        forgetting=None,
        overhead_seconds=1.0,
        host="node",
    )


class Ears:
    def __init__(self):
        self.heard = []

    def started(self, proposal):
        self.heard.append(("started", proposal.number))

    def progressed(self, proposal, progress):
        self.heard.append(("progressed", proposal.number, progress.fidelity))

    def finished(self, proposal, records):
        self.heard.append(("finished", proposal.number, [record.status for record in records]))

    def said(self, text):
        self.heard.append(("said", text))


SPACE = make_space()
GOALS = Goals(metric="accuracy", objectives=("accuracy", "latency_ms"), targets=TARGETS)


def _costs():
    factor = {"fp32": 1.0, "int8": 0.4, "cpu": 1.0, "phone": 2.5}
    return {
        (shape, precision, target): {
            "latency_ms": (shape.num_layers or 6) * factor[precision] * factor[target],
            "size_mb": (40 + 8.0 * (shape.num_layers or 6)) * factor[precision],
        }
        for shape in shapes(SPACE)
        for precision in PRECISIONS
        for target in TARGETS
    }


def history_sampler(past, running, number):
    """Any difference in what it is told, to the last digit, gives another plan."""
    told = [[o.number, o.precision, o.values, dict(o.violations), dict(o.draw.params), o.draw.plan] for o in past]
    rng = random.Random(canonical_json([told, sorted(found.plan.fingerprint for found in running), number]))
    had = {outcome.draw.plan.fingerprint for outcome in past} | {found.plan.fingerprint for found in running}
    found = (draw(SPACE, RandomChooser(rng)) for _ in itertools.count())
    return next(one for one in found if one.plan.fingerprint not in had)


@dataclass(frozen=True)
class Case:
    """One search."""

    trials: int | None = 11
    minutes: float | None = None
    device_hours: float | None = None
    seats: int = 1
    sampler: object = history_sampler
    scheduler: object = field(default_factory=ReachesFront)
    goals: Goals = GOALS
    faults: Faults = Faults()
    opening: tuple = tuple(opening(SPACE))


def new_conductor(world, case, ears=None, **changes):
    setup = Setup(
        goals=case.goals,
        costs=_costs(),
        estimated=frozenset({"phone"}),
        opening=case.opening,
        baseline=baseline(SPACE).fingerprint,
        base_layers=6,
        precisions=PRECISIONS,
        limits=Limits(trials=case.trials, minutes=case.minutes, device_hours=case.device_hours),
        max_seats=case.seats,
        **changes,
    )
    ledger = Ledger(_Fragile(world.location, world), metric=case.goals.metric)
    return Conductor(
        setup,
        ledger=ledger,
        sampler=case.sampler,
        scheduler=case.scheduler,
        missing=world.missing,
        release=world.release,
        listener=ears or Ears(),
        clock=lambda: world.now,
    )


@dataclass
class _Mortal:
    """A conductor whose process may be killed before everything that it is asked, and after what it judged."""

    conductor: Conductor
    world: World

    def next(self):
        self.world.moment()
        return self.conductor.next()

    def goes_on(self, number, progress):
        self.world.moment()
        goes_on = self.conductor.goes_on(number, progress)
        if goes_on:
            self.world.moment()
        return goes_on

    def is_set_aside(self, number):
        self.world.moment()
        return self.conductor.is_set_aside(number)

    def complete(self, number, result):
        self.world.moment()
        self.conductor.complete(number, result)

    def fail(self, number, error):
        self.world.moment()
        self.conductor.fail(number, error)


def run_search(case, world=None, ears=None):
    """Run to the end, or until the driver is killed."""
    world = world or World()
    conductor = _Mortal(new_conductor(world, case, ears), world)
    Workers(conductor, world, case.seats, lambda proposal: carry_out(world, proposal, case.faults)).drive()
    return world


def ledger_of(world, metric="accuracy"):
    return Ledger(Storage(world.location), metric=metric)


_TIMES = ("started_at", "finished_at", "train_seconds", "prefix_seconds_saved", "overhead_seconds")


def without_times(world):
    ledger = ledger_of(world)
    rows = [dataclasses.replace(record, **dict.fromkeys(_TIMES, 0.0)) for record in ledger.records]
    return sorted(rows, key=lambda record: record.record_id), ledger.proposals


def statuses(world):
    return {record.record_id: record.status for record in ledger_of(world).records}


def check_whole(world, case):
    """The budget is met exactly; nothing is lost, doubled or trained twice."""
    ledger = ledger_of(world)
    assert [proposal.number for proposal in ledger.proposals] == list(range(case.trials))
    assert ledger.unfinished() == []
    assert len({proposal.draw.plan.fingerprint for proposal in ledger.proposals}) == case.trials
    assert len(set(world.trained)) == len(world.trained)
    for proposal in ledger.proposals:
        records = [record for record in ledger.records if record.number == proposal.number]
        if records[0].status == "stopped":
            assert len(records) == 1
        elif records[0].status == "complete":
            assert [(r.precision, r.target) for r in sorted(records, key=lambda r: r.record_id)] == list(
                proposal.variants
            )
