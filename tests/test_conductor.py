"""The search on a simulated clock: workers are generators, training is a sum, everything else is the real thing.

The ledger is real, in memory; artifacts are a dict that outlives a killed driver, as a folder would.
"""

import dataclasses
import hashlib
import itertools
import math
import random
import uuid
from dataclasses import dataclass, field, replace

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import make_space

from search.budget import Limits
from search.conductor import DONE, WAIT, Conductor, Setup
from search.goals import Goals
from search.ledger import Ledger
from search.sampler import TpeSampler
from search.scheduler import NeverStop, ParetoHalving
from spaces.canonical import canonical_json
from spaces.choosers import FixedChooser, RandomChooser
from spaces.draw import Draw, draw, opening, restrict
from spaces.objectives import parse_constraint
from trainers.context import Progress
from trainers.results import Measured, Result
from trainers.storage import Storage

_TARGETS = ("cpu", "phone")
_PRECISIONS = ("fp32", "int8")


class Killed(BaseException):
    """The driver's process is gone, at this very moment."""


@dataclass
class _World:
    """What outlives a driver: its storage, finished artifacts, and the clock."""

    location: str = field(default_factory=lambda: f"memory://{uuid.uuid4().hex}")
    artifacts: dict = field(default_factory=dict)
    """Fingerprint → (seconds, curve)."""
    trained: list = field(default_factory=list)
    """Fingerprint of every stage that was trained to its end."""
    now: float = 1_000.0
    moments_left: int | None = None
    """Until the driver is killed; None: never."""

    def moment(self):
        if self.moments_left is not None:
            self.moments_left -= 1
            if self.moments_left < 0:
                self.moments_left = None
                raise Killed

    def missing(self, plan):
        return {prefix.fingerprint for prefix in plan.trained_prefixes()} - set(self.artifacts)


@pytest.fixture(autouse=True)
def _empty_memory():
    yield
    _forget()


def _forget():
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


def _curve(plan):
    epochs = plan.stages[-1].optimisation.epochs
    return tuple((epoch / epochs, _quality(plan) * epoch / epochs) for epoch in range(1, epochs + 1))


@dataclass(frozen=True)
class Faults:
    """What goes wrong, by proposal number."""

    failing: tuple = ()
    nan: tuple = ()
    """(number, precision) of variants whose quality is no number."""


def _work(world, proposal, faults):
    """One plan on a seat: yields (seconds until it speaks, report); takes True or False; returns what came of it."""
    plan, spent = proposal.draw.plan, 0.0
    missing = list(dict.fromkeys(p for p in plan.trained_prefixes() if p.fingerprint not in world.artifacts))
    for stage, prefix in enumerate(missing):
        final = prefix == plan
        seconds = 0.0
        for epoch, (_, quality) in enumerate(_curve(prefix), 1):
            pause = 10 + 20 * _chance(prefix.fingerprint, epoch)
            seconds += pause
            progress = Progress(
                stage=stage,
                num_stages=len(missing),
                kind=prefix.stages[-1].kind,
                epoch=epoch,
                epochs=len(_curve(prefix)),
                final=final,
                quality=quality if final else None,
                train_loss=1.0,
                seconds=seconds,
            )
            if not (yield pause, progress):
                return None
        if final and proposal.number in faults.failing:
            return "loss is nan at step 41"
        world.artifacts[prefix.fingerprint] = (seconds, _curve(prefix))
        world.trained.append(prefix.fingerprint)
        spent += seconds
    return _result(world, proposal, spent, faults)


def _result(world, proposal, spent, faults):
    plan = proposal.draw.plan
    alone = sum(world.artifacts[name][0] for name in {prefix.fingerprint for prefix in plan.trained_prefixes()})
    variants = []
    for precision in dict.fromkeys(precision for precision, _ in proposal.variants):
        value = math.nan if (proposal.number, precision) in faults.nan else _quality(plan, precision)
        low, high = value - 0.02, value + 0.02
        variants.append(Measured(precision=precision, value=value, low=low, high=high, predictions=(0, 1, 1)))
    return Result(
        variants=tuple(variants),
        curve=world.artifacts[plan.fingerprint][1],
        train_seconds=alone,
        spent_seconds=spent,
        overhead_seconds=1.0,
        host="node",
    )


class _Ears:
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


_SPACE = make_space()
_GOALS = Goals(metric="accuracy", objectives=("accuracy", "latency_ms"), targets=_TARGETS)


def _costs():
    factor = {"fp32": 1.0, "int8": 0.4, "cpu": 1.0, "phone": 2.5}
    return {
        (shape, precision, target): {
            "latency_ms": (shape.num_layers or 6) * factor[precision] * factor[target],
            "size_mb": (40 + 8.0 * (shape.num_layers or 6)) * factor[precision],
        }
        for shape in _SPACE.shapes()
        for precision in _PRECISIONS
        for target in _TARGETS
    }


def _history_sampler(past, running, number):
    """Any difference in what it is told, to the last digit, gives another plan."""
    told = [[o.number, o.precision, o.values, dict(o.violations), dict(o.draw.params), o.draw.plan] for o in past]
    rng = random.Random(canonical_json([told, sorted(found.plan.fingerprint for found in running), number]))
    had = {outcome.draw.plan.fingerprint for outcome in past} | {found.plan.fingerprint for found in running}
    found = (draw(_SPACE, RandomChooser(rng)) for _ in itertools.count())
    return next(one for one in found if one.plan.fingerprint not in had)


@dataclass(frozen=True)
class Case:
    """One search."""

    trials: int | None = 11
    minutes: float | None = None
    device_hours: float | None = None
    seats: int = 1
    sampler: object = _history_sampler
    scheduler: object = field(default_factory=ParetoHalving)
    goals: Goals = _GOALS
    faults: Faults = Faults()
    opening: tuple = tuple(opening(_SPACE))


def _conductor(world, case, ears=None, **changes):
    setup = Setup(
        goals=case.goals,
        costs=_costs(),
        estimated=frozenset({"phone"}),
        opening=case.opening,
        baseline=_SPACE.baseline().fingerprint,
        base_layers=6,
        precisions=_PRECISIONS,
        limits=Limits(trials=case.trials, minutes=case.minutes, device_hours=case.device_hours),
        max_seats=case.seats,
        **changes,
    )
    ledger = Ledger(_Fragile(world.location, world), metric="accuracy")
    return Conductor(
        setup,
        ledger=ledger,
        sampler=case.sampler,
        scheduler=case.scheduler,
        missing=world.missing,
        listener=ears or _Ears(),
        clock=lambda: world.now,
    )


def _drive(conductor, world, case):
    """Run to the end, or until the driver is killed: an event at a time, the earliest first."""
    working, over = {}, False
    while working or not over:
        while not over and len(working) < case.seats:
            world.moment()
            proposal = conductor.next()
            over = proposal == DONE
            if over or proposal == WAIT:
                assert over or working, "nothing runs and nothing is handed out"
                break
            work = _work(world, proposal, case.faults)
            _advance(conductor, world, working, proposal.number, work, answer=None)
        if working:
            number = min(working, key=lambda number: (working[number][0], number))
            at, progress, work = working.pop(number)
            world.now = max(world.now, at)
            world.moment()
            if conductor.goes_on(number, progress):
                world.moment()
                _advance(conductor, world, working, number, work, answer=True)


def _advance(conductor, world, working, number, work, *, answer):
    try:
        pause, progress = work.send(answer)
        working[number] = (world.now + pause, progress, work)
    except StopIteration as end:
        world.moment()
        if isinstance(end.value, str):
            conductor.fail(number, end.value)
        else:
            conductor.complete(number, end.value)


def _search(case, world=None, ears=None):
    world = world or _World()
    _drive(_conductor(world, case, ears), world, case)
    return world


def _ledger(world):
    return Ledger(Storage(world.location), metric="accuracy")


_TIMES = ("started_at", "finished_at", "train_seconds", "prefix_seconds_saved", "overhead_seconds")


def _without_times(world):
    ledger = _ledger(world)
    rows = [dataclasses.replace(record, **dict.fromkeys(_TIMES, 0.0)) for record in ledger.records]
    return sorted(rows, key=lambda record: record.record_id), ledger.proposals


def _statuses(world):
    return {record.record_id: record.status for record in _ledger(world).records}


def _check_whole(world, case):
    """The budget is met exactly; nothing is lost, doubled or trained twice."""
    ledger = _ledger(world)
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


# An undisturbed search ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seats", [1, 3])
@pytest.mark.parametrize("trials", [1, 4, 11])
def test_the_budget_is_met_exactly(seats, trials):
    case = Case(trials=trials, seats=seats)
    _check_whole(_search(case), case)


def test_some_plans_are_stopped_early_and_have_one_row_each():
    world = _search(Case(trials=24))
    stopped = [record for record in _ledger(world).records if record.status == "stopped"]
    assert stopped
    for record in stopped:
        assert 0 < record.fidelity < 1
        assert record.quality is None
        assert record.curve
        assert "others reach more" in record.error


def test_the_opening_comes_first_and_once():
    draws = [proposal.draw for proposal in _ledger(_search(Case())).proposals]
    assert draws[:6] == list(opening(_SPACE))


def test_records_carry_known_costs_and_what_reuse_saved():
    ledger = _ledger(_search(Case(scheduler=NeverStop())))
    for record in ledger.records:
        layers = record.params.get("student_layers", 6)
        factor = {"fp32": 1.0, "int8": 0.4}[record.precision] * {"cpu": 1.0, "phone": 2.5}[record.target]
        assert record.latency_ms == pytest.approx(layers * factor)
        assert record.estimated is (record.target == "phone")
        assert 0 <= record.prefix_seconds_saved < record.train_seconds
        assert ledger.predictions(record.record_id) == [0, 1, 1]
    assert any(record.prefix_seconds_saved > 0 for record in ledger.records)


def test_the_listener_hears_of_everything():
    ears = _Ears()
    _search(Case(trials=3, scheduler=NeverStop()), ears=ears)
    assert [event[:2] for event in ears.heard if event[0] != "progressed"] == [
        (what, number) for number in range(3) for what in ("started", "finished")
    ]
    assert ("progressed", 0, 1.0) in ears.heard


# Several seats --------------------------------------------------------------------------------------------------------


def _taught(temperature, layers=2):
    values = {"strategy": "distill_soft", "teacher": "standard", "student_layers": layers, "alpha": 0.5}
    return draw(
        _SPACE, FixedChooser({**values, "student_learning_rate": 2e-4, "epochs": 3, "temperature": temperature})
    )


def _plain(strategy):
    return next(found for found in opening(_SPACE) if found.strategy == strategy)


def test_a_plan_whose_beginning_is_being_computed_is_held_back_while_another_runs():
    case = Case(trials=3, seats=3, opening=(_taught(2.0), _taught(4.0), _plain("lora")))
    world = _World()
    conductor = _conductor(world, case)
    assert conductor.next().number == 0
    assert conductor.next().number == 2
    assert conductor.next() == WAIT
    teacher = next(_taught(2.0).plan.trained_prefixes())
    world.artifacts[teacher.fingerprint] = (10.0, _curve(teacher))
    assert conductor.next().number == 1
    assert conductor.next() == DONE


def test_a_held_plan_starts_when_the_one_it_waits_for_has_failed():
    case = Case(trials=2, seats=2, opening=(_taught(2.0), _taught(4.0)))
    conductor = _conductor(_World(), case)
    conductor.next()
    assert conductor.next() == WAIT
    conductor.fail(0, "broken")
    assert conductor.next().number == 1


def test_no_more_plans_wait_than_there_are_seats():
    case = Case(trials=None, minutes=60, seats=2, opening=tuple(_taught(t) for t in (1.0, 2.0, 3.0, 4.0, 5.0)))
    world = _World()
    conductor = _conductor(world, case)
    conductor.next()
    assert [conductor.next() for _ in range(4)] == [WAIT] * 4
    assert len(_ledger(world).proposals) == 3


@given(st.integers(2, 4), st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_seats_never_train_the_same_part(seats, seed):
    _forget()
    case = Case(trials=12, seats=seats, sampler=lambda p, r, n: _history_sampler(p, r, n + seed))
    _check_whole(_search(case), case)


# Killed and gone on with ----------------------------------------------------------------------------------------------


def _killed_at(case, moments):
    """The same search, whose driver is killed after so many moments, again and again."""
    world = _World()
    for left in [*moments, None]:
        world.moments_left = left
        try:
            _search(case, world)
        except Killed:
            continue
    world.moments_left = None
    return _search(case, world)


_MOMENTS = st.lists(st.integers(0, 180), min_size=1, max_size=6)
_FAULTY = Faults(failing=(2, 9), nan=((1, "int8"), (3, "fp32"), (5, "fp32"), (5, "int8")))
_CASES = {
    "plain": Case(),
    "faulty": Case(faults=_FAULTY),
    "constrained": Case(
        goals=replace(
            _GOALS, constraints=tuple(map(parse_constraint, ("size_mb <= 60", "accuracy >= 0.95 * baseline")))
        ),
        opening=(Draw(strategy="baseline", params={}, plan=_SPACE.baseline()), *tuple(opening(_SPACE))[1:]),
    ),
}


@pytest.fixture(scope="module")
def undisturbed():
    return {name: _without_times(_search(case)) for name, case in _CASES.items()}


@pytest.mark.parametrize("name", _CASES)
@given(moments=_MOMENTS)
@settings(max_examples=12, deadline=None)
def test_a_killed_search_with_one_seat_ends_in_the_same_records(undisturbed, name, moments):
    _forget()
    world = _killed_at(_CASES[name], moments)
    assert _without_times(world) == undisturbed[name]
    assert len(set(world.trained)) == len(world.trained)


@given(moments=_MOMENTS)
@settings(max_examples=8, deadline=None)
def test_a_killed_search_with_three_seats_loses_and_doubles_nothing(moments):
    _forget()
    case = Case(seats=3)
    _check_whole(_killed_at(case, moments), case)


def test_the_real_sampler_goes_on_as_if_nothing_had_happened():
    sampler = TpeSampler(space=_SPACE, directions=_GOALS.directions, seed=0)
    case = Case(trials=13, sampler=sampler)
    assert _without_times(_killed_at(case, [70, 95])) == _without_times(_search(case))


@pytest.mark.parametrize("writes", range(1, 4))
def test_a_plan_killed_between_its_variants_is_completed_and_not_doubled(writes):
    case = Case(trials=1)
    world, whole = _World(), _without_times(_search(case))
    conductor = _conductor(world, case)
    proposal = conductor.next()
    work = _work(world, proposal, case.faults)
    with pytest.raises(StopIteration) as end:
        answer = None
        while True:
            work.send(answer)
            answer = True
    world.moments_left = 2 * writes
    with pytest.raises(Killed):
        conductor.complete(0, end.value.value)
    world.moments_left = None
    assert len(_ledger(world).records) == writes
    assert len(_ledger(world).unfinished()) == 1
    assert _without_times(_search(case, world)) == whole
    assert len(world.trained) == 1


def test_a_proposal_that_was_deleted_does_not_stop_the_search():
    """The way out of a file that cannot be read."""
    case, world = Case(trials=5), _World()
    _search(case, world)
    Storage(world.location).remove("proposals/00003.json")
    _search(case, world)
    assert [proposal.number for proposal in _ledger(world).proposals] == [0, 1, 2, 4, 5]
    assert _ledger(world).unfinished() == []


def test_an_abandoned_plan_leaves_no_record_and_is_taken_up_again():
    case, world = Case(trials=1), _World()
    conductor = _conductor(world, case)
    conductor.next()
    conductor.interrupted = True
    conductor.abandon(0)
    assert conductor.running == ()
    assert conductor.next() == DONE
    assert _ledger(world).records == []
    assert _without_times(_search(case, world)) == _without_times(_search(case))


def test_a_restarted_worker_is_judged_from_its_new_reports():
    case, world, ears = Case(trials=8), _World(), _Ears()
    conductor = _conductor(world, case, ears)
    number = conductor.next().number
    report = Progress(
        stage=0,
        num_stages=1,
        kind="finetune",
        epoch=1,
        epochs=4,
        final=True,
        quality=0.9,
        train_loss=1.0,
        seconds=5.0,
    )
    assert conductor.goes_on(number, report)
    conductor.restarted(number)
    assert any("its worker died" in event[1] for event in ears.heard if event[0] == "said")
    assert conductor.goes_on(number, report)
    assert len(conductor._curves()[number]) == 1


# What goes wrong ------------------------------------------------------------------------------------------------------


def test_a_plan_that_fails_is_a_row_and_the_search_goes_on():
    case = Case(faults=Faults(failing=(0, 7)))
    world = _search(case)
    _check_whole(world, case)
    failed = [record for record in _ledger(world).records if record.status == "failed"]
    assert [(record.number, record.error) for record in failed] == [
        (0, "loss is nan at step 41"),
        (7, "loss is nan at step 41"),
    ]
    assert all(record.quality is None and record.fidelity == 0 for record in failed)


def test_everything_failing_still_ends():
    case = Case(faults=Faults(failing=tuple(range(11))), scheduler=NeverStop())
    world = _search(case)
    assert set(_statuses(world).values()) == {"failed"}
    assert len(_ledger(world).records) == 11


def test_a_quality_that_is_no_number_is_a_failed_row_and_never_complete():
    faults = Faults(nan=((0, "int8"), (1, "fp32"), (1, "int8")))
    case = Case(trials=3, faults=faults, scheduler=NeverStop())
    world = _search(case)
    statuses = _statuses(world)
    assert {record_id for record_id, status in statuses.items() if status == "failed"} == {
        f"t{number:05d}-{precision}-{target}" for number, precision in faults.nan for target in _TARGETS
    }
    assert len(statuses) == 12
    for record in _ledger(world).records:
        if record.status == "failed":
            assert record.quality is record.quality_low is record.quality_high is None
            assert "is nan; expected a number" in record.error
        else:
            assert math.isfinite(record.quality)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_means_any_of_them(value):
    world, case = _World(), Case(trials=1)
    conductor = _conductor(world, case)
    conductor.next()
    variants = tuple(
        Measured(precision=precision, value=value, low=0.0, high=1.0, predictions=()) for precision in _PRECISIONS
    )
    conductor.complete(
        0,
        Result(variants=variants, curve=(), train_seconds=1.0, spent_seconds=1.0, overhead_seconds=0.0, host="node"),
    )
    assert set(_statuses(world).values()) == {"failed"}


def test_shapes_that_are_ruled_out_are_recorded_once_with_the_reason():
    goals = replace(_GOALS, constraints=(parse_constraint("latency_ms <= 12"),))
    case, world = Case(trials=2, goals=goals), _World()
    for _ in range(2):
        _conductor(world, case).rule_out(_SPACE.shapes())
    records = _ledger(world).records
    assert sorted(record.record_id for record in records) == ["shape-6-fp32-phone"]
    assert records[0].status == "infeasible"
    assert records[0].error == "latency_ms 15 breaks 'latency_ms <= 12'"
    assert records[0].latency_ms == 15.0
    assert records[0].number == -1
    _check_whole_but_shapes(_search(case, world), case)


def _check_whole_but_shapes(world, case):
    ledger = _ledger(world)
    assert len(ledger.proposals) == case.trials
    assert ledger.unfinished() == []


def test_variants_that_known_constraints_forbid_are_not_evaluated_except_for_the_baseline():
    goals = replace(_GOALS, constraints=(parse_constraint("size_mb <= 60"),))
    baseline = Draw(strategy="baseline", params={}, plan=_SPACE.baseline())
    space = restrict(_SPACE, lambda shape: shape.num_layers is not None)
    case = Case(trials=2, goals=goals, opening=(baseline, *opening(space)), scheduler=NeverStop())
    ledger = _ledger(_search(case))
    every = tuple(itertools.product(_PRECISIONS, _TARGETS))
    assert ledger.proposals[0].variants == every
    assert ledger.proposals[1].draw.params["student_layers"] == 4
    assert ledger.proposals[1].variants == tuple(variant for variant in every if variant[0] == "int8")


# Budgets of time ------------------------------------------------------------------------------------------------------


def test_minutes_end_the_search_and_the_plan_under_way():
    case = Case(trials=None, minutes=10, seats=2)
    world = _search(case)
    assert 600 <= world.now - 1_000 <= 600 + 30
    ledger = _ledger(world)
    assert 2 < len(ledger.proposals) < 60
    cut = [record for record in ledger.records if record.error == "budget: 10 minutes are over"]
    assert cut
    assert all(record.status == "stopped" for record in cut)


def test_minutes_of_earlier_sessions_count():
    world, case = _World(), Case(minutes=10)
    assert _conductor(world, case, earlier_minutes=9.9).next() != DONE
    assert _conductor(world, case, earlier_minutes=10.0).next() == DONE


def test_device_hours_end_the_search():
    case = Case(trials=None, device_hours=0.25)
    world = _search(case)
    ledger = _ledger(world)
    hours = _conductor(world, case).spent.device_hours
    assert 0.25 <= hours <= 0.25 + 30 / 3600
    assert hours * 3600 == pytest.approx(world.now - 1_000)
    assert [record.error for record in ledger.records][-1] == "budget: 0.25 device hours are used"


def test_device_hours_count_every_worker_of_a_trial():
    case = Case(trials=2, scheduler=NeverStop())
    world = _search(case)
    one, two = (_conductor(world, case, devices_per_trial=n).spent.device_hours for n in (1, 2))
    assert two == pytest.approx(2 * one)


def test_a_raised_budget_goes_on_as_if_it_had_been_higher_from_the_start():
    world = _search(Case(trials=5))
    assert _conductor(world, Case(trials=5)).next() == DONE
    assert _without_times(_search(Case(trials=11), world)) == _without_times(_search(Case(trials=11)))


def test_a_lowered_budget_proposes_nothing_and_keeps_everything():
    world = _search(Case(trials=5))
    before = _without_times(world)
    assert _without_times(_search(Case(trials=3), world)) == before


def test_a_space_without_another_plan_ends_the_search():
    case, ears = Case(trials=20, sampler=lambda *_: None), _Ears()
    world = _search(case, ears=ears)
    assert len(_ledger(world).proposals) == 6
    assert ("said", "the space has no plan left that was not tried") in ears.heard
