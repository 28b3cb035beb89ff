"""The baselines of ``benchmarks/search_quality.py``, its ablations, and what it says of them."""

import argparse
import itertools
import json
from datetime import datetime

import numpy as np
import pytest
from ablations import ablations
from by_botorch import PointChooser, QLogNehvi
from by_syne_tune import InOrder, Moasha, schedulers_for
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from search_plot import figure
from search_quality import BASELINES, measured
from search_scores import POINTS, Field
from syne_tune.backend.trial_status import Trial
from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA
from syne_tune.optimizer.schedulers.multiobjective.multiobjective_priority import NonDominatedPriority
from tables import CURVES, PLAIN, curve_columns, plain_columns, write_problem

from search.budget import Limits
from search.entries import Entry
from search.race import Race
from search.scheduler import NeverStop
from search.simulation.problem import load_problem
from search.simulation.samplers import SAMPLERS
from search.simulation.simulate import simulate
from search.simulation.study import Competitor
from search.simulation.table import read_table
from search.simulation.trace import Trace

# Syne Tune's MOASHA ---------------------------------------------------------------------------------------------------


def _said_of_last(ranking, shown):
    """Whether the last of plans goes on that have reported once, of three times: (quality, cost) each."""
    rule, entries = Moasha(max_reports=3, num_objectives=2, ranking=ranking), {}
    for number, (quality, cost) in enumerate(shown):
        entries[number] = Entry(curve=[(1 / 3, quality)], variants=(), known=(cost,))
        said = rule.goes_on(number, Race(entries=entries))
    return said


def test_as_published_stops_a_newcomer_that_beats_all_and_mended_lets_it_go_on():
    shown = [(-2, 2), (-3, 3), (-4, 4), (-1, 1)]
    assert not _said_of_last(NonDominatedPriority, shown)
    assert _said_of_last(InOrder, shown)


def test_mended_stops_a_newcomer_that_all_beat():
    assert not _said_of_last(InOrder, [(-2, 2), (-3, 3), (-1, 1), (-4, 4)])


_OBJECTIVES = arrays(float, st.tuples(st.integers(1, 12), st.integers(2, 3)), elements=st.integers(0, 5).map(float))


@given(_OBJECTIVES)
def test_mended_ranks_are_ranks_and_whoever_beats_another_has_the_lower_one(objectives):
    ranks = InOrder()(objectives)
    assert sorted(ranks) == list(range(len(objectives)))
    for one, other in itertools.permutations(range(len(objectives)), 2):
        if (objectives[one] <= objectives[other]).all() and (objectives[one] < objectives[other]).any():
            assert ranks[one] < ranks[other]


@given(_OBJECTIVES, st.sampled_from((0.25, 8.0, 1024.0)))
def test_mended_ranks_do_not_hang_on_units(objectives, factor):
    np.testing.assert_array_equal(
        InOrder()(objectives), InOrder()(objectives * [factor, *[1] * (objectives.shape[1] - 1)])
    )


def test_a_front_is_spread_from_its_best_quality_on():
    # Units would make the second objective decide: the middle one is farthest from none of the ends.
    assert InOrder()(np.array([[0.5, 400.0], [0.0, 1000.0], [1.0, 0.0]])).tolist() == [2, 0, 1]


def test_every_report_is_told_once_and_in_order_also_those_that_it_was_not_asked_about():
    rule = Moasha(max_reports=9, num_objectives=1, ranking=InOrder)
    quiet = Entry(curve=[(1 / 9, 0.1), (2 / 9, 0.2), (3 / 9, 0.3)], variants=(), known=())
    asked = Entry(curve=[(1 / 9, 0.2)], variants=(), known=())
    assert rule.goes_on(1, Race(entries={0: quiet, 1: asked}))
    assert rule.goes_on(1, Race(entries={0: quiet, 1: asked}))
    (rungs,) = [bracket.rungs for bracket in rule._rule.brackets]
    told = {level: {number: -found["objective 0"] for number, found in recorded.items()} for level, recorded in rungs}
    assert told == {9: {}, 3: {0: 0.3}, 1: {0: 0.1, 1: 0.2}}


def test_what_is_stopped_costs_less_and_what_ends_is_never_stopped(tmp_path):
    table = read_table(load_problem(write_problem(tmp_path, CURVES, curve_columns(num=24, epochs=9))))
    for make in schedulers_for(table).values():
        found = simulate(
            table, sampler=SAMPLERS["random"], seed=0, scheduler=make(), workers=2, limits=Limits(trials=20)
        ).records
        ends = {record.number: record for record in found}.values()
        stopped = [record for record in ends if record.status == "stopped"]
        assert 0 < len(stopped) < len(ends)
        assert all(record.fidelity < 1 for record in stopped)


@pytest.mark.parametrize("name", ["moasha", "moasha_mended"])
def test_decisions_are_those_of_moasha_driven_by_hand(tmp_path, name):
    problem = {**CURVES, "shared": {}}
    table = read_table(load_problem(write_problem(tmp_path, problem, curve_columns(num=40, epochs=9))))
    limits, scheduler = Limits(trials=40), schedulers_for(table)[name]()
    found = simulate(table, sampler=SAMPLERS["random"], seed=0, scheduler=scheduler, workers=1, limits=limits)
    rule = MOASHA({}, ["loss", "size", "s"], max_t=9, multiobjective_priority=scheduler.ranking(), random_seed=0)
    seen: set[str] = set()
    for number, record in {record.number: record for record in found.records}.items():
        training = table.trainings[int(record.fingerprint.removeprefix("training "))]
        trial, size = Trial(number, {}, datetime.min), training.variants["fp32"].known["size"]
        rule.on_trial_add(trial)
        for epoch, (quality, seconds) in enumerate(zip(training.qualities, training.costs, strict=True), 1):
            report = {"training_iteration": epoch, "loss": -quality, "size": size, "s": seconds}
            # The first of a strategy goes on whatever is said.
            if rule.on_trial_result(trial, report) == "STOP" and record.strategy in seen:
                break
        assert record.fidelity == pytest.approx(epoch / 9)
        seen.add(record.strategy)
    assert 10 < sum(record.status == "stopped" for record in found.records) < 40


# BoTorch's qLogNEHVI --------------------------------------------------------------------------------------------------


def _searched(folder, problem=PLAIN, *, columns=None, trials=9, workers=1):
    columns = columns or plain_columns(rates=tuple(10 ** (-3 + 0.4 * step) for step in range(6)), depths=range(1, 6))
    table = read_table(load_problem(write_problem(folder, problem, columns)))
    limits = Limits(trials=trials)
    return simulate(table, sampler=QLogNehvi, seed=0, scheduler=NeverStop(), workers=workers, limits=limits).records


@pytest.mark.parametrize("workers", [1, 3])
def test_qlognehvi_begins_with_six_sobol_points_for_two_parameters_and_repeats_itself(tmp_path, workers):
    found = _searched(tmp_path, workers=workers)
    assert len({record.fingerprint for record in found}) == 9
    again = _searched(tmp_path, workers=workers)
    assert [record.params for record in again] == [record.params for record in found]
    rates, depths = zip(*((record.params["rate"], record.params["depth"]) for record in found[:6]), strict=True)
    assert len({(rate > 0.02, depth > 2) for rate, depth in zip(rates, depths, strict=True)}) == 4


def test_qlognehvi_takes_what_is_best_once_it_has_seen_what_matters(tmp_path):
    # One parameter without an influence; quality peaks in the middle of the other, which costs nothing.
    pairs = [(x / 20, y / 2) for x in range(21) for y in range(3)]
    x, y = (np.array(column) for column in zip(*pairs, strict=True))
    columns = {"x": x, "y": y, "accuracy": 1 - (x - 0.55) ** 2, "size": np.ones(len(x)) + 1e-3 * y}
    params = {"x": {"type": "float"}, "y": {"type": "float"}}
    found = _searched(tmp_path, {**PLAIN, "params": params}, columns=columns, trials=12)
    assert {record.params["x"] for record in found[-4:]} <= {0.5, 0.55, 0.6}
    assert max(record.quality for record in found) == 1


def test_qlognehvi_weighs_all_variants_of_a_training_together(tmp_path):
    # At every place int8 serves at a tenth of the size; at high rates it loses all quality, and fp32 a little.
    rates = [10 ** (-4 + 0.2 * step) for step in range(16)]
    rows = [
        {"run": index, "rate": rate, "precision": precision, "accuracy": accuracy, "size": size}
        for index, rate in enumerate(rates)
        for precision, size, accuracy in (("fp32", 10.0, 0.9 - index / 1000), ("int8", 1.0, 0.9 - index / 16))
    ]
    problem = {
        **PLAIN,
        "id": "run",
        "params": {"rate": {"type": "float", "log": True}, "pad": {"type": "categorical"}},
        "fan_out": "precision",
        "reference": {"accuracy": 0.0, "size": 11.0},
    }
    columns = {name: [row[name] for row in rows] for name in rows[0]} | {"pad": ["a"] * len(rows)}
    found = _searched(tmp_path, problem, columns=columns, trials=11)
    assert len(found) == 22
    # With the precision three inputs: eight Sobol points, none of which is the lowest rate.
    assert [record.number for record in found if record.params["rate"] == rates[0]] == [8, 8]


def test_a_point_of_the_cube_is_a_place_in_each_range():
    chooser = PointChooser({"low": 0.0, "middle": 0.5, "high": 1.0})
    assert [chooser.real(name, 1.0, 100.0, log=True) for name in chooser._places] == pytest.approx([1, 10, 100])
    assert [chooser.real(name, 1.0, 100.0) for name in chooser._places] == [1, 50.5, 100]
    assert [chooser.integer(name, 1, 9, log=True) for name in chooser._places] == [1, 3, 9]
    assert [chooser.categorical(name, "abc") for name in chooser._places] == ["a", "b", "c"]


# What is compared, and what is said of it -----------------------------------------------------------------------------


def _options(**changes):
    defaults = {"baselines": ",".join(BASELINES), "workers": "1", "seeds": 2, "slow_seeds": 1, "trials": 6, "jobs": 1}
    return argparse.Namespace(**{**defaults, "ablation": False, "by_cost": False, **changes})


@pytest.fixture(scope="module")
def of_curves(tmp_path_factory):
    path = write_problem(tmp_path_factory.mktemp("curves"), CURVES, curve_columns(num=30, epochs=4))
    (row,) = measured(path, _options(ablation=True))
    return json.loads(json.dumps(row))


def test_every_baseline_is_there_in_both_kinds_where_it_has_a_place(of_curves, tmp_path):
    of_all = {"optuna_default", "tpe", "nsga2", "random", "gp", "random + moasha", "random + moasha_mended"}
    single = {name.replace("random +", "random:single +") if "+" in name else f"{name}:single" for name in of_all}
    ours = {"known_cost", "known_cost + known_cost", *of_curves["ablations"].values()}
    assert set(of_curves["scores"]) == of_all | single | ours
    # No conditions, no curves, one variant.
    (plain,) = measured(write_problem(tmp_path, PLAIN, plain_columns(depths=range(1, 11))), _options())
    assert set(plain["scores"]) == {"optuna_default", "tpe", "nsga2", "random", "gp", "qlognehvi", "known_cost"}


def test_all_five_ablations_are_named_by_their_idea(of_curves):
    assert of_curves["ablations"] == {
        "known costs": "without_known_costs + known_cost",
        "fan-out": "without_fan_out:single + known_cost",
        "early stopping": "known_cost",
        "sharing": "without_sharing + known_cost",
        "cost-awareness": "without_cost_awareness + known_cost",
    }


def test_an_idea_that_a_problem_has_no_use_for_is_no_ablation(tmp_path):
    found = ablations(load_problem(write_problem(tmp_path, PLAIN)))
    assert [ablation.idea for ablation in found] == ["known costs"]


def test_slow_ones_have_fewer_seeds_and_the_file_says_so(of_curves):
    seeds = {name: score["seeds"] for name, score in of_curves["scores"].items()}
    assert {name for name, count in seeds.items() if count == 1} == {"gp", "gp:single"}
    assert {count for name, count in seeds.items() if "gp" not in name} == {2}


def test_moasha_spends_what_optuna_search_spends(of_curves):
    costs = {name: score["cost"] for name, score in of_curves["scores"].items()}
    budget = costs["optuna_default:single"]
    # Beyond it by what a worker has under way at most.
    for name in costs:
        assert "moasha" not in name or budget <= costs[name] < budget + 300 * 4


def test_ours_spends_what_optuna_search_spends_where_that_is_said(tmp_path):
    path = write_problem(tmp_path, CURVES, curve_columns(num=30, epochs=4))
    (row,) = measured(path, _options(baselines="optuna_default", by_cost=True))
    costs = {name: score["cost"] for name, score in row["scores"].items()}
    budget = costs["optuna_default:single"]
    assert all(budget <= costs[name] < budget + 300 * 4 for name in ("known_cost", "known_cost + known_cost"))


@pytest.mark.parametrize("changes", [{"baselines": "random,moasha"}, {"baselines": "random", "by_cost": True}])
def test_whoever_spends_what_optuna_search_spends_needs_it(tmp_path, changes):
    path = write_problem(tmp_path, CURVES, curve_columns(num=30, epochs=4))
    with pytest.raises(SystemExit, match="--baselines needs optuna_default"):
        measured(path, _options(**changes))


def test_curves_are_quartiles_that_end_with_the_whole_budget(of_curves):
    assert len(of_curves["costs"]) == POINTS
    for score in of_curves["scores"].values():
        low, median, high = np.array(score["curve"]).T
        assert (low <= median).all() and (median <= high).all()
        assert (np.diff(median) >= 0).all()
        assert list(score["curve"][-1]) == score["shares"]["1.0"]


def _trace(spent, share):
    return Trace(
        spent=spent, share=share, cost=10.0, stopped_cost=0.0, beaten_cost=0.0, saved_cost=0.0,
        makespan=10.0, num_trials=2, num_stopped=0, proposal_ms=1.0, results_per_s=1.0,
    )  # fmt: skip


def test_two_are_compared_on_the_seeds_that_both_had():
    quick, slow = Competitor(sampler="quick", scheduler="none"), Competitor(sampler="slow", scheduler="none")
    traces = {quick: [_trace([2, 4], [0.4, 0.8]), _trace([1], [1.0])], slow: [_trace([4, 8], [0.4, 0.6])]}
    field = Field(traces, workers=1)
    # On the first seed: 0.8 at 4, where the slow one had its 0.6 at 8. Alone, the median of 0.8 and 1.
    assert field.scores[quick].speed_ups[slow].median == 2
    assert field.scores[slow].speed_ups[quick].num_never == 1
    assert field.ratio(quick, slow) == pytest.approx(0.8 / 0.6)
    assert (field.end(quick), field.end(slow)) == (pytest.approx(0.9), 0.6)
    assert (field.scores[quick].rank, field.scores[slow].rank) == (1, 2)


def test_the_picture_has_everyone_but_ours_without_an_idea(of_curves):
    chart = figure([of_curves, {**of_curves, "workers": 4}])
    lines = [trace for trace in chart.data if trace.fill is None]
    less = set(of_curves["ablations"].values())
    assert [line.name for line in lines if line.xaxis == "x2"] == [line.name for line in lines if line.xaxis == "x"]
    assert {line.name for line in lines} == set(of_curves["scores"]) - less
    ours = lines[-1]
    assert ours.name == "known_cost + known_cost"
    assert list(ours.y) == [max(1e-3, 1 - median) for _, median, _ in of_curves["scores"][ours.name]["curve"]]
    assert ours.x[-1] == pytest.approx(of_curves["costs"][-1] / of_curves["training_cost"])
