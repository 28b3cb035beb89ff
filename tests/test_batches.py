"""Proposals in batches: the same whenever they are asked for, and each worth something beside the others."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import make_space
from sklearn.gaussian_process.kernels import Matern
from test_known_cost_sampler import _sampler
from test_sampler import _make, _outcomes, _random_draws, _tiny

from search.history import Outcome
from search.known_cost.batches import Batched
from search.known_cost.gaussian_process import Design, Hyperparameters, Posterior
from search.known_cost.sampler import KnownCostSampler

_WORKERS = 60
_SIZE = 3
_DRAWS = _random_draws(make_space(), 400)


class _Told:
    """Answers by all that it is told, whatever the order, and keeps it."""

    def __init__(self, *, num_new=_SIZE + 1):
        self.told, self._num_new = [], num_new

    def best_first(self, outcomes, running, number, *, count):
        past, under_way = sorted(o.number for o in outcomes), sorted(found.fingerprint for found in running)
        self.told.append((past, under_way, number, count))
        rng = random.Random(repr((past, under_way, number)))
        had = {found.fingerprint for found in [*running, *(outcome.draw for outcome in outcomes)]}
        new = [found for found in _DRAWS if found.fingerprint not in had]
        return iter(rng.sample(new, self._num_new))

    def __call__(self, outcomes, running, number):  # noqa: ARG002
        had = {found.fingerprint for found in [*running, *(outcome.draw for outcome in outcomes)]}
        return next((found for found in reversed(_DRAWS) if found.fingerprint not in had), None)


def _proposals(sampler, rng, *, count, watch=lambda *_: None):
    """A search with all workers busy: what was proposed, plans ending by chance, one list of outcomes growing."""
    outcomes, running, found = [], {}, []
    for number in range(count):
        watch(outcomes, list(running.values()), number)
        running[number] = sampler(outcomes, list(running.values()), number)
        found.append(running[number].fingerprint)
        if len(running) == _WORKERS:
            ended = rng.choice(list(running))
            outcome = Outcome(number=ended, draw=running.pop(ended), precision="fp32", values=(0.5, 1.0))
            place = sum(other.number < ended for other in outcomes)
            outcomes.insert(place, Outcome(**{**vars(outcome), "finished_at": float(number)}))
    return found


@given(st.randoms(use_true_random=False))
@settings(max_examples=8)
def test_a_batch_is_the_same_whenever_it_is_asked_for(rng):
    seed, asked_again = rng.random(), []

    def again(outcomes, running, number):
        asked_again.append(Batched(_Told(), _WORKERS)(list(outcomes), running, number).fingerprint)

    found = _proposals(Batched(_Told(), _WORKERS), random.Random(seed), count=110, watch=again)
    assert found == asked_again
    assert len(set(found)) == len(found)


def test_a_batch_knows_all_but_what_was_under_way_and_looks_once():
    told = _Told()
    _proposals(Batched(told, _WORKERS), random.Random(0), count=99)
    assert [number for *_, number, _ in told.told] == list(range(0, 99, _SIZE))
    for past, under_way, number, count in told.told:
        assert count == _SIZE
        assert len(past) == max(0, number - _WORKERS)
        assert len(past) + len(under_way) == number


def test_a_batch_that_falls_short_is_made_up_for_one_by_one():
    found = _proposals(Batched(_Told(num_new=1), _WORKERS), random.Random(0), count=12)
    assert len(set(found)) == 12


def test_few_workers_have_no_batches():
    space = make_space()
    few, many = _make("known_cost", space, seed=0), _make("known_cost", space, seed=0, workers=_WORKERS)
    assert isinstance(few, KnownCostSampler)
    assert isinstance(_make("known_cost", space, seed=0, workers=39), KnownCostSampler)
    assert isinstance(many, Batched) and many.size == _SIZE
    assert Batched(few, 1000).size == 50


def test_a_batch_of_the_real_sampler_is_new_and_apart():
    past, running = _outcomes(_random_draws(make_space(), 12)), _random_draws(make_space(), 4, seed=9)
    sampler = Batched(_sampler(), _WORKERS)
    # So many had finished when the batch began that it knows of all twelve.
    for number in range(72, 72 + _SIZE):
        running.append(sampler(past, running, number))
    fingerprints = {found.fingerprint for found in [*running, *(outcome.draw for outcome in past)]}
    assert len(fingerprints) == 12 + 4 + _SIZE
    first = _sampler().best_first(past, running[:4], 72, count=1)
    assert next(first) == running[4], "the first of a batch is what would be proposed alone"


def test_a_finite_space_is_tried_whole_in_batches_too():
    sampler, had = Batched(_sampler(_tiny()), _WORKERS), []
    while (found := sampler(_outcomes(had), [], len(had))) is not None:
        had.append(found)
    assert len({found.fingerprint for found in had}) == len(had) == 8


def test_plans_taken_together_leave_less_to_each_other():
    beliefs = _sampler()._beliefs(_outcomes(_random_draws(make_space(), 12)), [])
    draws = _random_draws(make_space(), 30, seed=5)
    scores = beliefs.score(draws)
    assert beliefs.best_together(draws, scores, count=1) == np.argsort(-scores, kind="stable").tolist()
    (surrogate,) = beliefs._learned.values()
    alike = surrogate.correlation(beliefs._observer.queries(draws)[::2])
    expected, left = [], dict(enumerate(scores))
    while len(expected) < 5:
        expected.append(max(left, key=left.__getitem__))
        left = {index: left[index] * (1 - alike[expected[-1], index] ** 2) for index in left if index != expected[-1]}
    assert beliefs.best_together(draws, scores, count=5) == expected
    twice = [*draws, draws[expected[0]]]
    together = beliefs.best_together(twice, np.append(scores, scores[expected[0]]), count=5)
    assert together == expected, "a twin has nothing to add"


def test_the_correlation_is_the_priors():
    rng = np.random.default_rng(0)
    x, scales = rng.random((6, 3)), np.array([0.3, 1.0, 2.0])
    found = Hyperparameters(log_scales=np.log(scales), log_noise=-3.0, log_luck=-4.0)
    own = Posterior(Design(x=x, groups=np.arange(3), trainings=np.arange(6)), rng.random(6), found)
    queries = rng.random((5, 3))
    assert own.correlation(queries) == pytest.approx(Matern(length_scale=scales, nu=2.5)(queries))
