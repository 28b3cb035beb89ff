"""A search in virtual time: what it costs, how workers share, and that it is the search that everybody has."""

import math

import numpy as np
import pytest
from optuna.trial import TrialState
from tables import CURVES, PLAIN, curve_columns, plain_columns, write_problem

from search.aside import NUM_KEPT
from search.budget import Limits
from search.pareto import hypervolume
from search.scheduler import NeverStop, ParetoHalving
from search.simulation.problem import load_problem
from search.simulation.recorded import ONLY
from search.simulation.samplers import SAMPLERS
from search.simulation.simulate import goals_of, simulate
from search.simulation.table import read_table
from search.simulation.trace import Yardstick, trace
from search.simulation.workers import Recordings
from search.spec_errors import SpecError


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    return read_table(load_problem(write_problem(tmp_path_factory.mktemp("curves"), CURVES, curve_columns(num=12))))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    columns = plain_columns(rates=(0.001, 0.003, 0.01, 0.03, 0.1), depths=tuple(range(1, 9)))
    return read_table(load_problem(write_problem(tmp_path_factory.mktemp("plain"), PLAIN, columns)))


def _run(table, name="random", *, scheduler=None, workers=1, seed=0, **limits):
    return simulate(
        table,
        sampler=SAMPLERS[name],
        seed=seed,
        scheduler=scheduler or NeverStop(),
        workers=workers,
        limits=Limits(**(limits or {"trials": 100})),
    )


def _spent(records):
    found = {record.number: record.train_seconds - record.prefix_seconds_saved for record in records}
    return sum(found.values())


def test_the_goals_are_the_problems(curves):
    goals = goals_of(curves)
    assert goals.axes == (("accuracy", None), ("size", "table"), ("seconds", None))
    assert goals.directions == ("max", "min", "min")


@pytest.mark.parametrize("workers", [1, 3, 50])
def test_every_training_answers_once_and_the_search_ends_with_the_table(curves, workers):
    found = _run(curves, workers=workers)
    assert found.num_trials == 12
    assert len(found.records) == 24
    assert len({record.fingerprint for record in found.records}) == 12
    assert all(record.status == "complete" for record in found.records)


def test_records_tell_what_the_table_tells(curves):
    goals = goals_of(curves)
    for record in _run(curves).records:
        training = next(t for t in curves.trainings if t.params == record.params)
        variant = training.variants[record.precision]
        assert goals.values([record]) == (variant.quality, variant.known["size"], training.costs[-1])
        assert record.curve == training.curve
        assert record.train_seconds == pytest.approx(training.cost)


def test_a_shared_beginning_is_paid_once(curves):
    records = _run(curves).records
    saved = {record.number: record.prefix_seconds_saved for record in records}
    assert sorted(saved.values()) == pytest.approx([0.0] * 5 + [96.0] * 7)
    assert _spent(records) == pytest.approx(sum(training.costs[-1] for training in curves.trainings) + 96.0)


def test_nobody_waits_for_a_beginning_that_is_there(curves):
    """One worker computes it, the others take what does not need it; then all go on."""
    records = _run(curves, workers=12).records
    alone = [
        record
        for record in records
        if record.prefix_seconds_saved == 0 and record.train_seconds > record.notes["seconds"]
    ]
    assert len({record.number for record in alone}) == 1
    first = alone[0].started_at + 96.0
    for record in records:
        if record.prefix_seconds_saved:
            assert record.started_at >= first - 1e-9
            assert record.finished_at - record.started_at == pytest.approx(record.notes["seconds"])


def test_workers_are_never_idle_while_there_is_work(plain):
    """Trainings of equal cost: n of them take n / workers."""
    for workers, until in ((1, 40.0), (4, 10.0), (40, 1.0)):
        assert max(record.finished_at for record in _run(plain, workers=workers).records) == until


def test_a_budget_of_cost_is_kept_and_ends_what_is_under_way(curves):
    found = _run(curves, workers=2, device_hours=300 / 3600)
    stopped = {record.number for record in found.records if record.status == "stopped"}
    assert 300 <= _spent(found.records) <= 300 + 2 * 120
    assert stopped


def test_a_stopped_training_has_no_values_and_costs_what_it_took(tmp_path):
    columns = curve_columns(num=40, epochs=10)
    columns["accuracy"] = [
        quality - size / 8 for quality, size in zip(columns["accuracy"], columns["size"], strict=True)
    ]
    table = read_table(load_problem(write_problem(tmp_path, CURVES | {"shared": {}}, columns)))
    found = _run(table, scheduler=ParetoHalving(), seed=1)
    stopped = [record for record in found.records if record.status == "stopped"]
    assert stopped
    goals = goals_of(table)
    for record in stopped:
        training = next(t for t in table.trainings if t.params == record.params)
        steps = round(record.fidelity * 10)
        assert 3 <= steps < 10
        assert record.train_seconds == pytest.approx(training.costs[steps - 1])
        assert goals.values([record]) is None


class _HalfWay(NeverStop):
    """Stops at the middle, and then thinks that all of it would reach the front."""

    def is_due(self, curve):
        return 0.5 <= curve[-1][0] < 1.0

    def goes_on(self, number, race):  # noqa: ARG002
        return False

    def reach(self, number, race):
        return 1.0 if number in race.entries and math.isnan(race.entries[number].end) else None


@pytest.mark.parametrize("workers", [1, 4])
def test_what_was_stopped_and_gone_on_with_costs_what_it_would_have_cost_at_once(curves, workers):
    at_once = _run(curves, workers=workers, trials=NUM_KEPT)
    in_parts = _run(curves, workers=workers, scheduler=_HalfWay(), trials=NUM_KEPT, device_hours=1e6)
    whole, parts = (trace(found, Yardstick(curves)) for found in (at_once, in_parts))
    assert sum(bool(record.resumes) for record in in_parts.records) > len(in_parts.records) / 3
    assert parts.cost == pytest.approx(whole.cost)
    assert (parts.num_trials, parts.num_stopped, parts.stopped_cost) == (whole.num_trials, 0, 0.0)
    assert parts.share[-1] == pytest.approx(whole.share[-1])


def test_a_variant_without_a_result_is_a_failed_record(tmp_path):
    columns = curve_columns(num=2)
    columns["accuracy"][3] = math.nan
    table = read_table(load_problem(write_problem(tmp_path, CURVES | {"shared": {}}, columns)))
    found = {(r.params["strategy"], r.precision): r.status for r in _run(table).records}
    assert found[("full", "int8")] == "failed"
    assert list(found.values()).count("complete") == 3


# Samplers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "gp"])  # seconds, and not ours
def test_the_same_seed_gives_the_same_search(plain, name):
    one, same, other = (_run(plain, name, workers=3, seed=seed, trials=14).records for seed in (0, 0, 1))
    assert one == same
    assert one != other


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_takes_conditions_variants_and_trainings_that_were_stopped(curves, name):
    found = _run(curves, name, workers=2, scheduler=ParetoHalving())
    assert found.num_trials == 12


@pytest.mark.parametrize("name", ["tpe", "optuna_default", "known_cost"])
def test_samplers_learn_from_the_table(plain, name):
    """Eight of forty trainings are on the front; chance finds five of them in 25 trials."""
    found = [_run(plain, name, seed=seed, trials=25).records for seed in range(3)]
    assert np.mean([sum(record.params["rate"] == 0.01 for record in records) for records in found]) > 5.9


def test_a_study_is_told_what_answered(plain):
    """Every complete trial of the study is a training of the table, with its values; generations are kept."""
    made = []
    simulate(
        plain,
        sampler=lambda given: made.append(SAMPLERS["nsga2"](given)) or made[0],
        seed=0,
        scheduler=NeverStop(),
        workers=1,
        limits=Limits(trials=20),
    )
    complete = [trial for trial in made[0]._study.trials if trial.state == TrialState.COMPLETE]
    recorded = [(dict(t.params), [t.variants[ONLY].quality, t.variants[ONLY].known["size"]]) for t in plain.trainings]
    assert len(complete) == 19
    assert all((trial.params, trial.values) in recorded for trial in complete)
    assert {trial.system_attrs["NSGAIISampler:generation"] for trial in complete} == {0}


def test_what_is_there_of_a_training_need_not_be_spent(curves):
    recordings, draws = Recordings(curves.course), curves.recorded[:2]
    assert [recordings.share_left(draw) for draw in draws] == [1.0, 1.0]
    recordings._there.add("teacher=long")
    assert [recordings.share_left(draw) for draw in draws] == [1.0, pytest.approx(60 / 156)]


# What it came to ------------------------------------------------------------------------------------------------------


def test_a_search_of_the_whole_table_reaches_all_of_it(curves, plain):
    for table, cost in ((plain, 40.0), (curves, sum(t.costs[-1] for t in curves.trainings) + 96.0)):
        found = trace(_run(table, workers=3), Yardstick(table))
        assert found.share[-1] == pytest.approx(1.0)
        assert found.cost == pytest.approx(cost)
        assert found.spent[-1] <= cost + 1e-9
        assert found.stopped_cost == 0
        assert found.num_trials == len(table.trainings)


def test_volume_against_cost_is_that_of_the_records_so_far(curves):
    """With one worker, what was spent is the time; the volume is computed anew from all records until then."""
    simulated, yardstick = _run(curves, seed=3), Yardstick(curves)
    found = trace(simulated, yardstick)
    for spent, share in zip(found.spent, found.share, strict=True):
        before = [record for record in simulated.records if record.finished_at <= spent + 1e-9]
        points = np.array([[-r.quality, r.notes["size"], r.notes["seconds"]] for r in before])
        assert share * yardstick.whole == pytest.approx(hypervolume(points, yardstick.reference))
    assert list(found.share) == sorted(set(found.share))
    assert found.saved_cost == pytest.approx(7 * 96.0)


def test_what_several_workers_spent_is_added_up(plain):
    one, four = (trace(_run(plain, workers=workers), Yardstick(plain)) for workers in (1, 4))
    assert (one.makespan, four.makespan) == (40.0, 10.0)
    assert one.cost == four.cost == 40.0
    assert all(spent % 4 == 0 for spent in four.spent)


def test_costs_are_told_apart_by_what_came_of_them(tmp_path):
    """Three trainings, one after another: beaten, failed, on the front."""
    columns = {
        "depth": [1, 2, 3],
        "rate": [0.1, 0.1, 0.1],
        "accuracy": [0.5, None, 0.6],
        "size": [2.0, 2.0, 1.0],
        "seconds": [5.0, 7.0, 11.0],
    }
    path = write_problem(tmp_path, PLAIN, columns, train_cost="seconds", reference={"accuracy": 0, "size": 3})
    table = read_table(load_problem(path))
    found = trace(_run(table), Yardstick(table))
    assert (found.cost, found.beaten_cost, found.stopped_cost) == (23.0, 5.0, 7.0)
    assert found.share[-1] == 1.0
    assert Yardstick(table).whole == pytest.approx(0.6 * 2.0)
    assert found.cost_to(0.5 / 1.2) in found.spent
    assert found.cost_to(1.0) == found.spent[-1]
    assert found.cost_to(1.01) == math.inf
    assert (found.share_at(0.0), found.share_at(1e9)) == (0.0, 1.0)


def test_the_reference_is_a_tenth_beyond_the_worst(plain):
    """Accuracy is maximised, size is not: 0.511 less a tenth of it, and 80 more a tenth of it."""
    assert Yardstick(plain).reference == pytest.approx([-0.9 * 0.51, 88.0])


def test_a_reference_that_nothing_lies_within_is_refused(tmp_path):
    table = read_table(load_problem(write_problem(tmp_path, reference={"accuracy": 2, "size": 9})))
    with pytest.raises(SpecError, match="reference: no training that has a result lies within it"):
        trace(_run(table), Yardstick(table))
