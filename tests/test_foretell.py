"""What a search is foretold to take: by hand where all plans take as long, and against the conductor itself."""

import json
from dataclasses import replace
from functools import partial
from statistics import median

import pytest
from ledgers import RunSettings, make_run, make_space

from search import foretold
from search.budget import Limits
from search.conductor import Conductor, Setup
from search.foresee import pace_of
from search.foretold import foretell, numbers_of_workers, table
from search.goals import Goals
from search.memory_ledger import MemoryLedger
from search.run import load_run
from search.sampler import RandomSampler
from search.scheduler import NeverStop, ReachesFront
from search.simulation import foretell as simulation
from search.simulation.clock import Clock, Nobody, Workers
from search.simulation.foretell import Foreseen, _Plans, prospect
from search.simulation.workers import Recordings
from spaces.catalogue import PARAMETERS
from spaces.draw import draw, opening, shapes
from spaces.methods.finetune import baseline
from spaces.ranges import Range


def _foreseen(space, *, goals=None, sampler="random", scheduler=None, train_s=lambda _: 60.0, **limits):
    setup = Setup(
        goals=goals or Goals(metric="accuracy", objectives=("accuracy", "latency_ms")),
        costs={
            (shape, precision, "cpu"): {"latency_ms": (shape.num_layers or 6) * factor}
            for shape in shapes(space)
            for precision, factor in (("fp32", 1.0), ("int8", 0.4))
        },
        estimated=frozenset(),
        opening=(),
        baseline=baseline(space).fingerprint,
        precisions=("fp32", "int8"),
        limits=Limits(**limits),
    )
    return Foreseen(
        setup=setup,
        drawing=partial(draw, space),
        sampler=sampler,
        scheduler=scheduler or NeverStop(),
        seed=0,
        train_s=train_s,
        beside_s=lambda _: 0.0,
    )


_ALONE = replace(make_space(), strategies=("full", "lora"))
"""No plan of it shares a beginning."""


def _said(one):
    return one.limit, one.num_plans, pytest.approx(one.minutes), pytest.approx(one.device_hours)


def _end(foreseen, workers):
    return _said(prospect(foreseen, workers=workers, stopping=False).end)


def test_each_limit_by_hand_where_every_plan_takes_a_minute():
    foreseen = _foreseen(_ALONE, trials=8, minutes=2.5, device_hours=10 / 60)
    slow, fast = (prospect(foreseen, workers=workers, stopping=False) for workers in (1, 4))
    assert [_said(one) for one in slow.alone] == [
        ("trials", 8, 8.0, 8 / 60),
        ("minutes", 3, 2.5, 2.5 / 60),
        ("device_hours", 10, 10.0, 10 / 60),
    ]
    assert [_said(one) for one in fast.alone] == [
        ("trials", 8, 2.0, 8 / 60),
        ("minutes", 12, 2.5, 10 / 60),
        ("device_hours", 12, 2.5, 10 / 60),
    ]
    assert (slow.end, fast.end) == (slow.alone[1], fast.alone[0])


def test_plans_that_may_not_begin_use_up_no_other_limit():
    """The second of two plans takes an hour, and ever more of a minute would have begun beside it."""
    hour = next(found for found in opening(_ALONE) if found.strategy == "lora")
    foreseen = _foreseen(_ALONE, trials=2, device_hours=1.5, train_s=lambda plan: 3600.0 if plan == hour.plan else 60.0)
    foreseen = replace(foreseen, setup=replace(foreseen.setup, opening=tuple(opening(_ALONE))))
    assert _end(foreseen, 2) == ("trials", 2, 60.0, 61 / 60)


def test_devices_of_a_trial_and_time_beside_training_count():
    foreseen = _foreseen(_ALONE, trials=3)
    foreseen = replace(foreseen, setup=replace(foreseen.setup, devices_per_trial=2), beside_s=lambda _: 30.0)
    assert _end(foreseen, 1) == ("trials", 3, 4.5, 6 / 60)


def test_a_shared_beginning_is_paid_once():
    recipes = {"standard": make_space().teacher_recipes["standard"]}
    space = replace(make_space(), strategies=("dft",), teacher_recipes=recipes)
    assert _end(_foreseen(space, trials=5), 1) == ("trials", 5, 6.0, 6 / 60)


def test_a_space_that_is_tried_before_any_limit_ends_the_search():
    spans = [span for span in PARAMETERS.values() if isinstance(span, Range)]
    fixed = {span.name: replace(span, low=span.default, high=span.default) for span in spans}
    tiny = replace(make_space(), strategies=("small_finetune",), narrowed=fixed)
    assert _end(_foreseen(tiny, minutes=60), 1) == ("space", 4, 4.0, 4 / 60)


def test_what_comes_after_the_simulated_plans_goes_on_at_their_pace(monkeypatch):
    monkeypatch.setattr(simulation, "MOST", 10)
    found = prospect(_foreseen(_ALONE, trials=40, minutes=100), workers=1, stopping=False)
    assert [_said(one) for one in found.alone] == [("trials", 40, 40.0, 40 / 60), ("minutes", 100, 100.0, 100 / 60)]


def _makespan(foreseen, workers):
    """Of the conductor itself under these limits: plans, minutes, device hours."""
    clock, ledger, recordings = Clock(), MemoryLedger(), Recordings(_Plans(foreseen).course)
    conductor = Conductor(
        replace(foreseen.setup, max_seats=workers),
        ledger=ledger,
        sampler=RandomSampler(draw=foreseen.drawing, seed=0),
        scheduler=NeverStop(),
        missing=recordings.missing,
        release=recordings.release,
        listener=Nobody(),
        clock=clock,
    )
    Workers(conductor, clock, workers, recordings.carry_out).drive()
    return ledger.num_trials, clock.now / 60, conductor.spent.device_hours


@pytest.mark.parametrize("workers", [1, 3])
def test_a_search_of_so_many_plans_is_the_conductors(workers):
    seconds = lambda plan: 10.0 * plan.stages[-1].passes  # noqa: E731
    foreseen = _foreseen(replace(make_space(), teacher_base=None), trials=20, train_s=seconds)
    found = prospect(foreseen, workers=workers, stopping=False).end
    plans, minutes, hours = _makespan(foreseen, workers)
    assert (found.num_plans, found.minutes, found.device_hours) == (plans, pytest.approx(minutes), pytest.approx(hours))
    timed = replace(foreseen, setup=replace(foreseen.setup, limits=Limits(minutes=5)))
    by_time = prospect(timed, workers=workers, stopping=False).end
    # Plans under way are ended at their next report, the others wait for nobody.
    assert by_time.num_plans == pytest.approx(_makespan(timed, workers)[0], abs=workers)


def test_plans_that_are_stopped_take_less_and_the_answer_is_always_the_same():
    foreseen = _foreseen(make_space(), scheduler=ReachesFront(), trials=25)
    foreseen = replace(foreseen, setup=replace(foreseen.setup, opening=tuple(opening(make_space()))))
    whole, stopped = (prospect(foreseen, workers=2, stopping=stopping).end for stopping in (False, True))
    assert stopped.device_hours < whole.device_hours
    assert prospect(foreseen, workers=2, stopping=True).end == stopped


@pytest.mark.parametrize(("metric", "better"), [("accuracy", 1), ("perplexity", -1)])
def test_quality_is_assumed_to_rise_with_latency_and_over_epochs(metric, better):
    goals = Goals(metric=metric, objectives=(metric, "latency_ms", "forgetting"))
    plans = _Plans(_foreseen(make_space(), goals=goals, trials=1))
    courses = {found.shape.num_layers or 6: plans.course(found) for found in opening(make_space())}
    ends = [better * courses[layers].variants["fp32"].quality for layers in (2, 6)]
    assert ends[0] < ends[1]
    for course in courses.values():
        rising = [better * quality for quality in course.qualities]
        assert rising == sorted(rising) and course.qualities[-1] == course.variants["int8"].quality
        assert set(course.learned) == {"forgetting"}


def test_a_run_that_is_there_tells_the_pace(tmp_path):
    """Foreseen as 10 s for each part of a plan; ``ledgers`` makes up 14 s a layer and 55 s of a teacher."""
    run = load_run(make_run(tmp_path, RunSettings(trials=9)).location)
    complete = {record.number: record for record in run.records if record.status == "complete"}
    parts = {proposal.number: list(proposal.draw.plan.trained_prefixes()) for proposal in run.ledger.proposals}
    paces = [record.train_seconds / (10.0 * len(set(parts[number]))) for number, record in complete.items()]
    assert pace_of(run, lambda _: 10.0) == (pytest.approx(median(paces)), len(complete))


def test_the_pace_of_few_plans_is_not_told(tmp_path):
    run = load_run(make_run(tmp_path, RunSettings(trials=2)).location)
    assert pace_of(run, lambda _: 10.0) == (1.0, 0)


# For people ---------------------------------------------------------------------------------------------------------


def test_a_table_says_time_money_and_plans():
    foreseen = _foreseen(_ALONE, trials=8, minutes=6)
    found = foretell(foreseen, workers=[1, 4], here=4, usd_per_hour=3.0)
    assert [(one.workers, one.is_here, one.ends_by, one.usd) for one in found] == [
        (1, False, ("minutes",), (pytest.approx(0.3), pytest.approx(0.3))),
        (4, True, ("trials",), (pytest.approx(0.4), pytest.approx(0.4))),
    ]
    lines = [line.split("  ") for line in table(found, foreseen.setup.limits)]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells == [
        ["workers", "plans", "wall time", "device hours", "usd", "plans by 6 minutes", "ends after"],
        ["1", "6", "6 min 0 s", "0.10", "0.30", "6", "6 minutes"],
        ["here 4", "8", "2 min 0 s", "0.13", "0.40", "24", "8 plans"],
    ]
    json.dumps([vars(one) for one in found])


def test_without_a_price_and_with_one_limit_the_table_is_short():
    foreseen = _foreseen(_ALONE, trials=4)
    found = foretell(foreseen, workers=[2], here=1, usd_per_hour=None)
    (head, _) = table(found, foreseen.setup.limits)
    assert head.split("  ") == ["workers", "plans", "wall time", "device hours", "ends after"]
    said = foretold.explained(foreseen)
    assert said[3] == "No plan is stopped early." and "rough" in said[1]
    assert "median pace of the 7 plans" in foretold.explained(replace(foreseen, num_timed=7))[1]


@pytest.mark.parametrize(
    ("most", "here", "expected"),
    [
        ("auto", 2, [1, 2, 4, 8]),
        ("auto", 12, [1, 2, 4, 8, 12]),
        (6, 6, [1, 2, 4, 6]),
        (1, 1, [1]),
        ("auto", 1, [1, 2, 4, 8]),
    ],
)
def test_numbers_of_workers(most, here, expected):
    assert numbers_of_workers(most, here=here) == expected
