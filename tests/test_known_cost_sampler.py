"""The known-cost sampler: a function of outcomes, seed and number that keeps to the space and beats what it should."""

import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from ledgers import make_space
from test_sampler import _GOALS, _layers, _outcomes, _quality, _random_draws, _tiny

from search.foreknown import CostTableForeknown, SharesLeft, question_of, work_of
from search.goals import Goals
from search.history import Outcome
from search.known_cost.beliefs import Question
from search.known_cost.observations import time_curve
from search.known_cost.sampler import KnownCostSampler
from search.pareto import hypervolume
from search.sampler import RandomSampler
from spaces.choosers import FixedChooser
from spaces.draw import draw, opening
from spaces.objectives import parse_constraint

_QUESTION = Question(signs=np.array([-1.0, 1.0]), metric=0, reference=None)


class _Layers:
    """Latency rises with layers; int8 takes 0.4 of it. ``allowed``: what a constraint leaves."""

    variants = ("fp32", "int8")

    def __init__(self, allowed=lambda _: True, left=lambda _: 1.0):
        self._allowed, self._left = allowed, left

    def values(self, draws):
        latency = np.array([[_layers(found), 0.4 * _layers(found)] for found in draws]).reshape(-1, 2)
        values = np.stack([np.full_like(latency, np.nan), latency], axis=2)
        values[~np.vectorize(self._allowed, otypes=[bool])(latency)] = np.inf
        return values

    def share_left(self, draws):
        return np.array([self._left(found) for found in draws])


def _sampler(space=None, *, foreknown=None, seed=3, question=_QUESTION):
    return KnownCostSampler(partial(draw, space or make_space()), foreknown or _Layers(), question, seed)


@pytest.mark.parametrize("count", [0, 3, 12])
def test_the_same_outcomes_seed_and_number_give_the_same_plan_whatever_the_order(count):
    past, running = _outcomes(_random_draws(make_space(), count)), _random_draws(make_space(), 2, seed=9)
    before = _sampler()(past, running, count + 2)
    warm = _sampler()
    for number in range(count + 1):
        warm(past[: 2 * number], running, number)
    rng = random.Random(0)
    rng.shuffle(past)
    assert warm(past, running[::-1], count + 2) == before
    assert _sampler(seed=4)(past, running, count + 2) != before


def test_a_proposal_is_a_member_of_the_space_and_new():
    space, draws = make_space(), _random_draws(make_space(), 8)
    sampler = _sampler()
    for number in range(8, 14):
        found = sampler(_outcomes(draws[:-1]), draws[-1:], number)
        assert draw(space, FixedChooser({"strategy": found.strategy, **found.params})) == found
        assert found.plan not in [one.plan for one in draws]
        draws.append(found)


def test_a_finite_space_is_tried_whole_and_then_over():
    sampler, had = _sampler(_tiny()), []
    while (found := sampler(_outcomes(had), [], len(had))) is not None:
        had.append(found)
    assert len({found.plan.fingerprint for found in had}) == len(had) == 8


def test_what_a_known_constraint_rules_out_at_every_precision_is_not_proposed():
    sampler = _sampler(foreknown=_Layers(allowed=lambda latency: latency <= 1.0))
    draws = _random_draws(make_space(), 12)
    for number in range(12, 18):
        found = sampler(_outcomes(draws), [], number)
        assert 0.4 * _layers(found) <= 1.0
        draws.append(found)


def test_proposals_side_by_side_differ():
    draws = _random_draws(make_space(), 12)
    sampler, running = _sampler(), []
    for number in range(12, 18):
        running.append(sampler(_outcomes(draws), running, number))
    assert len({found.plan.fingerprint for found in running}) == 6
    assert len({(found.strategy, _layers(found)) for found in running}) > 1


def test_plans_whose_beginning_is_there_are_preferred():
    past = _outcomes(_random_draws(make_space(), 12))
    there = _Layers(left=lambda found: 0.1 if found.strategy == "dft" else 1.0)
    candidates = _random_draws(make_space(), 40, seed=5)
    alone, sharing = (_sampler(foreknown=known)._beliefs(past, []).score(candidates) for known in (_Layers(), there))
    dft = np.array([found.strategy == "dft" for found in candidates])
    # Of a plan that is far behind, nobody asks what is there of it.
    close = alone > 0.05 * alone.max()
    assert (close & dft).any() and (close & ~dft).any()
    assert sharing[close & dft] == pytest.approx(10 * alone[close & dft])
    assert sharing[~dft] == pytest.approx(alone[~dft])


def _slow(found):
    return 100.0 if _layers(found) == 6 else 10.0


def test_gain_is_for_a_second_of_training():
    draws = _random_draws(make_space(), 16)
    plain = _outcomes(draws)
    timed = [
        Outcome(**{**vars(outcome), "train_seconds": _slow(outcome.draw) * (1 + 0.01 * outcome.number)})
        for outcome in plain
    ]
    candidates = _random_draws(make_space(), 40, seed=5)
    alone, by_time = (_sampler()._beliefs(past, []).score(candidates) for past in (plain, timed))
    ratio = by_time / np.maximum(alone, 1e-300)
    slow = np.array([_layers(found) == 6 for found in candidates])
    assert np.median(ratio[~slow]) == pytest.approx(10 * np.median(ratio[slow]), rel=0.5)


def test_a_learned_constraint_is_avoided():
    """Quality has to be at least .6, and only large students get there."""
    draws = _random_draws(make_space(), 30)
    past = [
        Outcome(**{**vars(outcome), "violations": {"accuracy >= 0.6": 0.6 - outcome.values[0]}})
        for outcome in _outcomes(draws)
    ]
    found = [_sampler(seed=seed)(past, [], 30) for seed in range(5)]
    assert np.mean([_quality(one) for one in found]) > np.mean([_quality(one) for one in draws]) + 0.03


def test_time_is_foretold_at_the_pace_so_far():
    """20 s before the curve, then 30 s until 0.3 of the last stage; a complete plan tells its end as well."""
    found = _random_draws(make_space(), 2)
    told = {"precision": "fp32", "curve_seconds": (9.0, 30.0), "curve": ((0.1, 0.5), (0.3, 0.6))}
    stopped = Outcome(number=0, draw=found[0], values=None, status="stopped", train_seconds=50.0, **told)
    assert time_curve(stopped) == [(0.1, pytest.approx(110.0)), (0.3, pytest.approx(120.0))]
    assert time_curve(replace(stopped, train_seconds=None)) == time_curve(replace(stopped, curve_seconds=())) == ()
    complete = replace(stopped, number=1, draw=found[1], status="complete", values=(0.7, 2.0, 95.0), train_seconds=95.0)
    complete = replace(complete, curve=(*told["curve"], (1.0, 0.7)), curve_seconds=(9.0, 30.0, 75.0))
    observer = _sampler()._learner.observer
    rows = observer.of_axis([stopped, complete], axis=2, sign=1.0, curve_of=time_curve)
    assert rows.values.tolist() == pytest.approx([110.0, 120.0, 110.0, 120.0, 95.0])
    assert rows.complete.tolist() == [-1, -1, -1, -1, 1]


def test_the_pace_of_stopped_plans_tells_which_will_take_long():
    draws = _random_draws(make_space(), 30)
    question = Question(signs=np.array([-1.0, 1.0, 1.0]), metric=0, time=2, reference=None)
    past = [
        replace(outcome, values=(*outcome.values, 50.0), train_seconds=50.0)
        for outcome in _outcomes(draws[:8])
        if _layers(outcome.draw) != 6
    ]
    stopped = [
        Outcome(
            number=100 + n, draw=found, precision="fp32", values=None, status="stopped", curve=((0.2, 0.5),),
            curve_seconds=(0.2 * 5 * _slow(found),), train_seconds=0.2 * 5 * _slow(found),
        )
        for n, found in enumerate(draws[8:])
    ]  # fmt: skip
    sampler = _sampler(foreknown=_Timed(), question=question)
    queries = sampler._learner.observer.queries(draws)[::2]
    expected = sampler._beliefs([*past, *stopped], [])._learned[2].at(queries).median()
    slow = np.array([_layers(found) == 6 for found in draws])
    assert expected[slow].min() > expected[~slow].max()


class _Timed(_Layers):
    """Training time is an objective as well, and learned."""

    def values(self, draws):
        values = super().values(draws)
        return np.concatenate([values, np.full_like(values[:, :, :1], np.nan)], axis=2)


def test_a_stopped_plan_informs_by_its_curve_and_is_not_on_the_front():
    draws = _random_draws(make_space(), 14)
    past = _outcomes(draws[:12])
    stopped = [
        Outcome(number=n, draw=draws[n], precision="fp32", values=None, status="stopped", curve=((0.3, 0.99),))
        for n in (12, 13)
    ]
    beliefs = [_sampler()._beliefs(told, []) for told in (past, [*past, *stopped])]
    assert not {found.plan for found in beliefs[1].parents} & {found.plan for found in draws[12:]}
    assert beliefs[1].score(draws[12:]).tolist() != pytest.approx(beliefs[0].score(draws[12:]).tolist())


def test_failures_alone_do_not_stop_the_search():
    assert _sampler()(_outcomes(_random_draws(make_space(), 12), failed=range(12)), [], 12) is not None


def _reached(sampler, space, trials):
    draws = list(opening(space))
    while len(draws) < trials:
        draws.append(sampler(_outcomes(draws), [], len(draws)))
    points = np.array([(-outcome.values[0], outcome.values[1]) for outcome in _outcomes(draws)])
    return hypervolume(points, np.array([-0.4, 6.5]))


def test_fewer_plans_reach_more_than_chance():
    gains = []
    for seed in range(2):
        space = make_space(seed)
        chance = _reached(RandomSampler(draw=partial(draw, space), seed=seed), space, 40)
        gains.append(_reached(_sampler(space, seed=seed), space, 30) - chance)
    assert np.mean(gains) > 0.03, gains


def test_the_question_is_that_of_the_goals():
    found = question_of(_GOALS)
    assert (list(found.signs), found.metric, found.time, found.reference) == ([-1.0, 1.0], 0, None, None)
    timed = question_of(replace(_GOALS, objectives=("accuracy", "latency_ms", "train_seconds")))
    assert (timed.metric, timed.time) == (0, 2)


# What is known beforehand ---------------------------------------------------------------------------------------------


def test_known_costs_are_those_of_the_table_and_what_breaks_a_constraint_is_ruled_out():
    goals = Goals(
        metric="accuracy",
        objectives=("accuracy", "latency_ms"),
        constraints=(parse_constraint("size_mb <= 40"),),
        targets=("cpu", "phone"),
    )
    full, student = (
        next(found for found in opening(make_space()) if found.strategy == name) for name in ("full", "dft")
    )
    costs = {
        (full.plan.shape, "fp32", "cpu"): {"latency_ms": 6.0, "size_mb": 90.0},
        (full.plan.shape, "fp32", "phone"): {"latency_ms": 9.0, "size_mb": 90.0},
        (full.plan.shape, "int8", "cpu"): {"latency_ms": 3.0, "size_mb": 30.0},
        (full.plan.shape, "int8", "phone"): {"latency_ms": 4.0, "size_mb": 30.0},
        (student.plan.shape, "fp32", "cpu"): {"latency_ms": 1.0, "size_mb": 20.0},
    }
    known = CostTableForeknown(goals, costs, ("fp32", "int8"), share_left=lambda _: 0.5)
    values = known.values([full, student])
    assert values.shape == (2, 2, 3)
    assert values[0, 1] == pytest.approx([np.nan, 3.0, 4.0], nan_ok=True)
    assert np.isinf(values[0, 0]).all() and np.isinf(values[1]).all()
    assert known.values([]).shape == (0, 2, 3)
    assert list(known.share_left([full])) == [0.5]


def test_the_share_that_is_left_counts_what_is_there():
    taught = next(found for found in opening(make_space()) if found.strategy == "finetune_then_distill")
    *beginnings, end = taught.plan.trained_prefixes()
    assert beginnings and end == taught.plan

    def work(plan):
        return work_of(plan, {plan.shape: 1.0})

    first, rest = work(beginnings[0]), work(end)
    assert SharesLeft(lambda _: False, work)(taught) == 1.0
    assert SharesLeft(lambda _: True, work)(taught) == pytest.approx(rest / (first + rest))
    # An epoch is three forward passes of each row.
    assert first == 3 * beginnings[0].stages[-1].optimisation.epochs
