"""The search on a simulated clock: what it hands out, how it judges, what it writes down, and what kills leave."""

import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import (
    GOALS,
    PRECISIONS,
    SPACE,
    TARGETS,
    Case,
    Ears,
    Faults,
    Killed,
    World,
    carry_out,
    check_whole,
    curve,
    empty_memory,
    history_sampler,
    ledger_of,
    new_conductor,
    run_search,
    statuses,
    without_times,
)

from search.conductor import DONE, WAIT
from search.sampler import TpeSampler
from search.scheduler import NeverStop, ParetoHalving, ReachesFront
from spaces.choosers import FixedChooser
from spaces.draw import Draw, draw, opening, restrict, shapes
from spaces.methods.finetune import baseline
from spaces.objectives import parse_constraint
from trainers.progress import Progress
from trainers.results import Measured, Result
from trainers.storage import Storage


@pytest.fixture(autouse=True)
def _empty_memory():
    yield
    empty_memory()


# An undisturbed search ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seats", [1, 3])
@pytest.mark.parametrize("trials", [1, 4, 11])
def test_the_budget_is_met_exactly(seats, trials):
    case = Case(trials=trials, seats=seats)
    check_whole(run_search(case), case)


@pytest.mark.parametrize("scheduler", [ReachesFront(), ParetoHalving()])
def test_some_plans_are_stopped_early_and_have_one_row_each(scheduler):
    world = run_search(Case(trials=24, scheduler=scheduler))
    stopped = [record for record in ledger_of(world).records if record.status == "stopped"]
    assert stopped
    for record in stopped:
        assert 0 < record.fidelity < 1
        assert record.quality is None
        assert record.curve
        assert len(record.curve_seconds) == len(record.curve)
        assert record.error == scheduler.reason


class _StopsAll(NeverStop):
    def is_due(self, curve):  # noqa: ARG002
        return True

    def goes_on(self, number, race):  # noqa: ARG002
        return False


def test_the_first_plan_of_a_strategy_runs_to_its_end():
    ledger = ledger_of(run_search(Case(trials=24, scheduler=_StopsAll())))
    firsts = {proposal.draw.strategy: proposal.number for proposal in reversed(ledger.proposals)}
    longer = {p.number for p in ledger.proposals if p.draw.plan.stages[-1].optimisation.epochs > 1}
    assert {r.number for r in ledger.records if r.status == "stopped"} == longer - set(firsts.values()) != set()


def test_the_opening_comes_first_and_once():
    draws = [proposal.draw for proposal in ledger_of(run_search(Case())).proposals]
    assert draws[: len(SPACE.strategies)] == list(opening(SPACE))


def test_records_carry_known_costs_and_what_reuse_saved():
    ledger = ledger_of(run_search(Case(scheduler=NeverStop())))
    for record in ledger.records:
        layers = record.params.get("student_layers", 6)
        factor = {"fp32": 1.0, "int8": 0.4}[record.precision] * {"cpu": 1.0, "phone": 2.5}[record.target]
        assert record.latency_ms == pytest.approx(layers * factor)
        assert record.estimated is (record.target == "phone")
        assert 0 <= record.prefix_seconds_saved < record.train_seconds
        assert ledger.predictions(record.record_id) == [0, 1, 1]
    assert any(record.prefix_seconds_saved > 0 for record in ledger.records)


def test_the_listener_hears_of_everything():
    ears = Ears()
    run_search(Case(trials=3, scheduler=NeverStop()), ears=ears)
    assert [event[:2] for event in ears.heard if event[0] != "progressed"] == [
        (what, number) for number in range(3) for what in ("started", "finished")
    ]
    assert ("progressed", 0, 1.0) in ears.heard


# Several seats --------------------------------------------------------------------------------------------------------


def _taught(temperature, layers=2):
    values = {"strategy": "finetune_then_distill", "teacher": "standard", "student_layers": layers, "alpha": 0.5}
    return draw(SPACE, FixedChooser({**values, "student_learning_rate": 2e-4, "epochs": 3, "temperature": temperature}))


def _plain(strategy):
    return next(found for found in opening(SPACE) if found.strategy == strategy)


def test_a_plan_whose_beginning_is_being_computed_is_held_back_while_another_runs():
    case = Case(trials=3, seats=3, opening=(_taught(2.0), _taught(4.0), _plain("lora")))
    world = World()
    conductor = new_conductor(world, case)
    assert conductor.next().number == 0
    assert conductor.next().number == 2
    assert conductor.next() == WAIT
    teacher = next(_taught(2.0).plan.trained_prefixes())
    world.artifacts[teacher.fingerprint] = (10.0, curve(teacher))
    assert conductor.next().number == 1
    assert conductor.next() == DONE


def test_a_held_plan_starts_when_the_one_it_waits_for_has_failed():
    case = Case(trials=2, seats=2, opening=(_taught(2.0), _taught(4.0)))
    conductor = new_conductor(World(), case)
    conductor.next()
    assert conductor.next() == WAIT
    conductor.fail(0, "broken")
    assert conductor.next().number == 1


def test_no_more_plans_wait_than_there_are_seats():
    case = Case(trials=None, minutes=60, seats=2, opening=tuple(_taught(t) for t in (1.0, 2.0, 3.0, 4.0, 5.0)))
    world = World()
    conductor = new_conductor(world, case)
    conductor.next()
    assert [conductor.next() for _ in range(4)] == [WAIT] * 4
    assert len(ledger_of(world).proposals) == 3


@given(st.integers(2, 4), st.integers(0, 10**6))
@settings(max_examples=10)
def test_seats_never_train_the_same_part(seats, seed):
    empty_memory()
    case = Case(trials=12, seats=seats, sampler=lambda p, r, n: history_sampler(p, r, n + seed))
    check_whole(run_search(case), case)


# Killed and gone on with ----------------------------------------------------------------------------------------------


def _killed_at(case, moments):
    """The same search, whose driver is killed after so many moments, again and again."""
    world = World()
    for left in [*moments, None]:
        world.moments_left = left
        try:
            run_search(case, world)
        except Killed:
            continue
    world.moments_left = None
    return run_search(case, world)


_MOMENTS = st.lists(st.integers(0, 180), min_size=1, max_size=6)
_FAULTY = Faults(failing=(2, 9), nan=((1, "int8"), (3, "fp32"), (5, "fp32"), (5, "int8")))
_CASES = {
    "plain": Case(),
    "faulty": Case(faults=_FAULTY),
    "constrained": Case(
        goals=replace(
            GOALS, constraints=tuple(map(parse_constraint, ("size_mb <= 60", "accuracy >= 0.95 * baseline")))
        ),
        opening=(Draw(strategy="baseline", params={}, plan=baseline(SPACE)), *tuple(opening(SPACE))[1:]),
    ),
}


@pytest.fixture(scope="module")
def undisturbed():
    return {name: without_times(run_search(case)) for name, case in _CASES.items()}


@pytest.mark.parametrize("name", _CASES)
@given(moments=_MOMENTS)
@settings(max_examples=12)
def test_a_killed_search_with_one_seat_ends_in_the_same_records(undisturbed, name, moments):
    empty_memory()
    world = _killed_at(_CASES[name], moments)
    assert without_times(world) == undisturbed[name]
    assert len(set(world.trained)) == len(world.trained)


@given(moments=_MOMENTS)
@settings(max_examples=8)
def test_a_killed_search_with_three_seats_loses_and_doubles_nothing(moments):
    empty_memory()
    case = Case(seats=3)
    check_whole(_killed_at(case, moments), case)


def test_the_real_sampler_goes_on_as_if_nothing_had_happened():
    sampler = TpeSampler(draw=partial(draw, SPACE), directions=GOALS.directions, seed=0)
    case = Case(trials=13, sampler=sampler)
    assert without_times(_killed_at(case, [70, 95])) == without_times(run_search(case))


@pytest.mark.parametrize("writes", range(1, 4))
def test_a_plan_killed_between_its_variants_is_completed_and_not_doubled(writes):
    case = Case(trials=1)
    world, whole = World(), without_times(run_search(case))
    conductor = new_conductor(world, case)
    proposal = conductor.next()
    work = carry_out(world, proposal, case.faults)
    with pytest.raises(StopIteration) as end:
        answer = None
        while True:
            work.send(answer)
            answer = True
    world.moments_left = 2 * writes
    with pytest.raises(Killed):
        conductor.complete(0, end.value.value)
    world.moments_left = None
    assert len(ledger_of(world).records) == writes
    assert len(ledger_of(world).unfinished()) == 1
    assert without_times(run_search(case, world)) == whole
    assert len(world.trained) == 1


def test_a_proposal_that_was_deleted_does_not_stop_the_search():
    """The way out of a file that cannot be read."""
    case, world = Case(trials=5), World()
    run_search(case, world)
    Storage(world.location).remove("proposals/00003.json")
    run_search(case, world)
    assert [proposal.number for proposal in ledger_of(world).proposals] == [0, 1, 2, 4, 5]
    assert ledger_of(world).unfinished() == []


def test_an_abandoned_plan_leaves_no_record_and_is_taken_up_again():
    case, world = Case(trials=1), World()
    conductor = new_conductor(world, case)
    conductor.next()
    conductor.interrupted = True
    conductor.abandon(0)
    assert conductor.running == ()
    assert conductor.next() == DONE
    assert ledger_of(world).records == []
    assert without_times(run_search(case, world)) == without_times(run_search(case))


def test_a_restarted_worker_is_judged_from_its_new_reports():
    case, world, ears = Case(trials=8), World(), Ears()
    conductor = new_conductor(world, case, ears)
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
    assert len(conductor._tally.race.entries[number].curve) == 1


# What goes wrong ------------------------------------------------------------------------------------------------------


def test_a_plan_that_fails_is_a_row_and_the_search_goes_on():
    case = Case(faults=Faults(failing=(0, 7)), scheduler=NeverStop())
    world = run_search(case)
    check_whole(world, case)
    failed = [record for record in ledger_of(world).records if record.status == "failed"]
    assert [(record.number, record.error) for record in failed] == [
        (0, "loss is nan at step 41"),
        (7, "loss is nan at step 41"),
    ]
    assert all(record.quality is None and record.fidelity == 0 for record in failed)


def test_everything_failing_still_ends():
    case = Case(faults=Faults(failing=tuple(range(11))), scheduler=NeverStop())
    world = run_search(case)
    assert set(statuses(world).values()) == {"failed"}
    assert len(ledger_of(world).records) == 11


def test_a_quality_that_is_no_number_is_a_failed_row_and_never_complete():
    faults = Faults(nan=((0, "int8"), (1, "fp32"), (1, "int8")))
    case = Case(trials=3, faults=faults, scheduler=NeverStop())
    world = run_search(case)
    found = statuses(world)
    assert {record_id for record_id, status in found.items() if status == "failed"} == {
        f"t{number:05d}-{precision}-{target}" for number, precision in faults.nan for target in TARGETS
    }
    assert len(found) == 12
    for record in ledger_of(world).records:
        if record.status == "failed":
            assert record.quality is record.quality_low is record.quality_high is None
            assert "is nan; expected a number" in record.error
        else:
            assert math.isfinite(record.quality)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_means_any_of_them(value):
    world, case = World(), Case(trials=1)
    conductor = new_conductor(world, case)
    conductor.next()
    variants = tuple(
        Measured(precision=precision, value=value, low=0.0, high=1.0, predictions=()) for precision in PRECISIONS
    )
    conductor.complete(
        0,
        Result(
            variants=variants,
            curve=(),
            train_seconds=1.0,
            spent_seconds=1.0,
            train_memory_mb=500.0,
            overfit=0.1,
            forgetting=-0.02,
            overhead_seconds=0.0,
            host="node",
        ),
    )
    assert set(statuses(world).values()) == {"failed"}
    for record in ledger_of(world).records:
        assert (record.train_memory_mb, record.overfit, record.forgetting) == (500.0, 0.1, -0.02)


def test_shapes_that_are_ruled_out_are_recorded_once_with_the_reason():
    goals = replace(GOALS, constraints=(parse_constraint("latency_ms <= 12"),))
    case, world = Case(trials=2, goals=goals), World()
    for _ in range(2):
        new_conductor(world, case).rule_out(shapes(SPACE))
    records = ledger_of(world).records
    full_depth = [shape.additions for shape in shapes(SPACE) if shape.num_layers is None]
    names = ["-".join(["shape", "6", *additions, "fp32", "phone"]) for additions in full_depth]
    assert sorted(record.record_id for record in records) == sorted(names)
    assert records[0].status == "infeasible"
    assert records[0].error == "latency_ms 15 breaks 'latency_ms <= 12'"
    assert records[0].latency_ms == 15.0
    assert records[0].number == -1
    _check_whole_but_shapes(run_search(case, world), case)


def _check_whole_but_shapes(world, case):
    ledger = ledger_of(world)
    assert len(ledger.proposals) == case.trials
    assert ledger.unfinished() == []


def test_variants_that_known_constraints_forbid_are_not_evaluated_except_for_the_baseline():
    goals = replace(GOALS, constraints=(parse_constraint("size_mb <= 60"),))
    reference = Draw(strategy="baseline", params={}, plan=baseline(SPACE))
    space = restrict(SPACE, lambda shape: shape.num_layers is not None)
    case = Case(trials=2, goals=goals, opening=(reference, *opening(space)), scheduler=NeverStop())
    ledger = ledger_of(run_search(case))
    every = tuple(itertools.product(PRECISIONS, TARGETS))
    assert ledger.proposals[0].variants == every
    assert ledger.proposals[1].draw.params["student_layers"] == 4
    assert ledger.proposals[1].variants == tuple(variant for variant in every if variant[0] == "int8")


# Budgets of time ------------------------------------------------------------------------------------------------------


def test_minutes_end_the_search_and_the_plan_under_way():
    case = Case(trials=None, minutes=10, seats=2)
    world = run_search(case)
    assert 600 <= world.now - 1_000 <= 600 + 30
    ledger = ledger_of(world)
    assert 2 < len(ledger.proposals) < 60
    cut = [record for record in ledger.records if record.error == "budget: 10 minutes are over"]
    assert cut
    assert all(record.status == "stopped" for record in cut)


def test_minutes_of_earlier_sessions_count():
    world, case = World(), Case(minutes=10)
    assert new_conductor(world, case, earlier_minutes=9.9).next() != DONE
    assert new_conductor(world, case, earlier_minutes=10.0).next() == DONE


def test_device_hours_end_the_search():
    case = Case(trials=None, device_hours=0.25)
    world = run_search(case)
    ledger = ledger_of(world)
    hours = new_conductor(world, case).spent.device_hours
    assert 0.25 <= hours <= 0.25 + 30 / 3600
    assert hours * 3600 == pytest.approx(world.now - 1_000)
    assert [record.error for record in ledger.records][-1] == "budget: 0.25 device hours are used"


def test_device_hours_count_every_worker_of_a_trial():
    case = Case(trials=2, scheduler=NeverStop())
    world = run_search(case)
    one, two = (new_conductor(world, case, devices_per_trial=n).spent.device_hours for n in (1, 2))
    assert two == pytest.approx(2 * one)


def test_a_raised_budget_goes_on_as_if_it_had_been_higher_from_the_start():
    world = run_search(Case(trials=5))
    assert new_conductor(world, Case(trials=5)).next() == DONE
    assert without_times(run_search(Case(trials=11), world)) == without_times(run_search(Case(trials=11)))


def test_a_lowered_budget_proposes_nothing_and_keeps_everything():
    world = run_search(Case(trials=5))
    before = without_times(world)
    assert without_times(run_search(Case(trials=3), world)) == before


def test_a_space_without_another_plan_ends_the_search():
    case, ears = Case(trials=40, sampler=lambda *_: None), Ears()
    world = run_search(case, ears=ears)
    assert len(ledger_of(world).proposals) == len(SPACE.strategies)
    assert ("said", "the space has no plan left that was not tried") in ears.heard
