"""A table as a space: what is drawn from it, and which training answers."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import CURVES, curve_columns, write_problem

from search.simulation.problem import load_problem
from search.simulation.table import Answers, Table, TablePlan, read_table
from spaces.choosers import FixedChooser, RandomChooser
from spaces.draw import Draw


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return read_table(load_problem(write_problem(tmp_path_factory.mktemp("table"), CURVES, curve_columns(num=12))))


def _drawn(table, count, seed=0):
    rng = random.Random(seed)
    return [table.draw(RandomChooser(rng)) for _ in range(count)]


def _asked(**params):
    return Draw(strategy=params.get("strategy", ""), params=params, plan=TablePlan(params=params))


def test_draws_ask_for_what_is_read_and_stay_within_the_table(table):
    for found in _drawn(table, 50):
        assert ("rank" in found.params) is (found.params["strategy"] == "lora")
        assert 0.001 <= found.params["rate"] <= 0.001 * 2**11
        assert found.strategy == found.params["strategy"]
        assert table.draw(FixedChooser(found.params)) == found


def test_a_training_is_answered_by_itself(table):
    for recorded in table.recorded:
        answers = Answers(table)
        assert answers.take(recorded) is recorded
        assert answers.take(recorded) is not recorded
        assert table.draw(FixedChooser(recorded.params)).params == recorded.params


def _squared(table: Table, asked, recorded):
    """The distance as the documents have it, parameter by parameter."""
    found = 0.0
    for axis in table.axes:
        if axis.name in asked and axis.name in recorded:
            one, other = asked[axis.name], recorded[axis.name]
            if axis.param.type == "categorical":
                found += one != other
                continue
            values = [training.params[axis.name] for training in table.trainings if axis.name in training.params]
            low, high = min(values), max(values)
            if axis.param.log:
                one, other, low, high = np.log([one, other, low, high])
            found += ((one - other) / (high - low)) ** 2
    return found


@given(st.integers(0, 10**6), st.lists(st.integers(0, 11), max_size=8), st.sampled_from([1, 40]))
def test_the_nearest_that_is_left_answers(table, seed, taken, times):
    answers = Answers(table)
    had = {answers.take(table.recorded[number]).plan.shape for number in taken}
    left = sorted(set(range(12)) - had)
    assert answers.num_left == len(left)
    (asked,) = _drawn(table, 1, seed)
    distances = {n: _squared(table, asked.params, table.trainings[n].params) for n in left}
    for found in answers.settle([asked] * times):
        assert distances[found.plan.shape] == pytest.approx(min(distances.values()), abs=1e-5)


def test_what_was_taken_answers_no_more_until_nothing_is_left(table):
    answers = Answers(table)
    found = [answers.take(_asked(strategy="full", rate=0.001)).plan.shape for _ in range(12)]
    assert sorted(found) == list(range(12))
    assert found[:3] == [0, 2, 4]
    assert answers.num_left == 0
    with pytest.raises(LookupError, match="every row"):
        answers.settle([_asked(strategy="full", rate=0.001)])
    assert answers.settle([table.recorded[0]]) == [table.recorded[0]]


def test_an_inactive_parameter_counts_by_the_category_that_opens_it(table):
    # Five doublings of the rate, of eleven, are less than another strategy, whatever the rank.
    assert Answers(table).settle([_asked(strategy="full", rate=0.032)])[0].plan.shape in (4, 6)
    near, far = (Answers(table).settle([_asked(strategy="lora", rate=0.002, rank=rank)])[0] for rank in (5, 15))
    assert near.plan.shape == 1
    assert far.plan.shape == 7  # (6/11)² + (4/10)²; the fifth and the ninth are at .49


def test_two_trainings_with_the_same_parameters_have_their_own_names(tmp_path):
    columns = curve_columns(num=2)
    twins = {name: [*values, *values] for name, values in columns.items()}
    twins["run"] = [*columns["run"], *(f"{run} again" for run in columns["run"])]
    recorded = read_table(load_problem(write_problem(tmp_path, CURVES, twins))).recorded
    assert recorded[0].params == recorded[2].params
    assert len({found.plan.fingerprint for found in recorded}) == 4


def test_many_at_once_are_answered_as_one_by_one(table):
    answers, asked = Answers(table), _drawn(table, 300)
    answers.take(table.recorded[3])
    many = answers.settle(asked)
    assert many == [answers.settle([one])[0] for one in asked]
