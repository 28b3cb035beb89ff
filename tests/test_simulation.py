"""A search in virtual time: what it costs, how workers share, and that it is the search that everybody has."""

import math

import pytest
from tables import CURVES, PLAIN, curve_columns, plain_columns, write_problem

from search.budget import Limits
from search.sampler import make_sampler
from search.scheduler import NeverStop, ParetoHalving
from search.simulation.problem import load_problem
from search.simulation.simulate import goals_of, simulate
from search.simulation.table import read_table


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
        sampler=lambda _: make_sampler(name, draw=table.draw, goals=goals_of(table), seed=seed, foreknown=None),
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


def test_a_variant_without_a_result_is_a_failed_record(tmp_path):
    columns = curve_columns(num=2)
    columns["accuracy"][3] = math.nan
    table = read_table(load_problem(write_problem(tmp_path, CURVES | {"shared": {}}, columns)))
    found = {(r.params["strategy"], r.precision): r.status for r in _run(table).records}
    assert found[("full", "int8")] == "failed"
    assert list(found.values()).count("complete") == 3


@pytest.mark.parametrize("name", ["random", "tpe"])
@pytest.mark.parametrize("workers", [1, 4])
def test_the_same_seed_gives_the_same_search(plain, name, workers):
    one, same, other = (_run(plain, name, workers=workers, seed=seed, trials=15).records for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_tpe_learns_from_the_table(plain):
    """It trains the best half of the depths and rates more often than chance does."""
    found = [_run(plain, "tpe", seed=seed, trials=25).records for seed in range(3)]
    middle = [0.002 < record.params["rate"] < 0.05 for records in found for record in records]
    assert sum(middle) / len(middle) > 3 / 5
