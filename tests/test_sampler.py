"""Proposals: a function of outcomes, seed and number; always new; better than chance."""

import math
import random
from dataclasses import replace
from functools import partial

import numpy as np
import optuna
import pytest
from ledgers import make_space

from search.foreknown import CostTableForeknown
from search.goals import Goals
from search.history import Outcome
from search.pareto import hypervolume
from search.sampler import RandomSampler, TpeSampler, make_sampler
from spaces.catalogue import PARAMETERS
from spaces.choosers import FixedChooser, RandomChooser
from spaces.draw import Draw, draw, opening, shapes
from spaces.methods.finetune import baseline
from spaces.ranges import Range
from spaces.stages import Optimisation

_GOALS = Goals(metric="accuracy", objectives=("accuracy", "latency_ms"))
_DIRECTIONS = _GOALS.directions


def _random_draws(space, count, seed=0):
    rng, found = random.Random(seed), {}
    while len(found) < count:
        one = draw(space, RandomChooser(rng))
        found[one.plan.fingerprint] = one
    return list(found.values())


def _layers(found):
    return found.plan.shape.num_layers or 6


def _quality(found):
    """Made up, with conditions: each strategy has its own best settings, and more layers are better."""
    params = found.params
    rate = next(params[n] for n in ("learning_rate", "lora_learning_rate", "student_learning_rate") if n in params)
    best = {"full": 1e-4, "lora": 1e-3}.get(found.strategy, 2.5e-4)
    quality = 0.5 + 0.25 * (1 - math.exp(-_layers(found) / 2)) - 0.08 * math.log(rate / best) ** 2
    if "temperature" in params:
        quality += 0.08 - 0.05 * math.log(params["temperature"] / 3) ** 2
    return quality - (0.05 if found.strategy == "dft" else 0.0)


def _outcomes(draws, *, failed=()):
    return [
        Outcome(
            number=number,
            draw=found,
            precision=precision,
            values=None if number in failed else (_quality(found) - drop, _layers(found) * factor),
        )
        for number, found in enumerate(draws)
        for precision, drop, factor in (("fp32", 0.0, 1.0), ("int8", 0.01, 0.4))
    ]


def _make(name, space, *, seed, **more):
    costs = {
        (shape, precision, "cpu"): {"latency_ms": (shape.num_layers or 6) * factor}
        for shape in shapes(space)
        for precision, factor in (("fp32", 1.0), ("int8", 0.4))
    }
    foreknown = CostTableForeknown(_GOALS, costs, ("fp32", "int8"), share_left=lambda _: 1.0)
    return make_sampler(name, draw=partial(draw, space), goals=_GOALS, seed=seed, foreknown=foreknown, **more)


@pytest.fixture(params=["known_cost", "tpe", "random"])
def sampler(request):
    return _make(request.param, make_space(), seed=3)


@pytest.mark.parametrize("count", [0, 3, 12])
def test_the_same_outcomes_seed_and_number_give_the_same_plan(sampler, count):
    past, running = _outcomes(_random_draws(make_space(), count)), _random_draws(make_space(), 2, seed=9)
    assert sampler(past, running, count + 2) == sampler(list(past), tuple(running), count + 2)


@pytest.mark.parametrize("order", range(3))
def test_the_order_of_arrival_does_not_matter(sampler, order):
    past, running = _outcomes(_random_draws(make_space(), 12)), _random_draws(make_space(), 3, seed=9)
    before = sampler(past, running, 15)
    rng = random.Random(order)
    rng.shuffle(past)
    rng.shuffle(running)
    assert sampler(past, running, 15) == before


def test_number_seed_and_outcomes_all_count():
    past, space = _outcomes(_random_draws(make_space(), 12)), make_space()
    tpe = TpeSampler(draw=partial(draw, space), directions=_DIRECTIONS, seed=3)
    found = [
        tpe(past, [], 12),
        tpe(past, [], 13),
        replace(tpe, seed=4)(past, [], 12),
        tpe(past[:-8], [], 12),
    ]
    assert len({one.plan.fingerprint for one in found}) == 4


def test_a_proposal_is_a_member_of_the_space(sampler):
    space, past = make_space(), _outcomes(_random_draws(make_space(), 12))
    for number in range(12, 20):
        found = sampler(past, [], number)
        assert draw(space, FixedChooser({"strategy": found.strategy, **found.params})) == found


def _tiny(epochs=2):
    """A space of 3 students × ``epochs`` + ``epochs`` plans of full size."""
    fixed = {
        name: replace(span, low=span.default, high=span.default)
        for name, span in PARAMETERS.items()
        if isinstance(span, Range)
    }
    return replace(
        make_space(),
        strategies=("full", "small_finetune"),
        student_layers=(1, 2, 3),
        narrowed={**fixed, "epochs": replace(PARAMETERS["epochs"], low=1, high=epochs, default=1)},
        teacher_recipes={"standard": Optimisation(learning_rate=1e-4, epochs=3)},
    )


@pytest.mark.parametrize("name", ["known_cost", "tpe", "random"])
def test_a_finite_space_is_tried_whole_and_then_over(name):
    sampler = _make(name, _tiny(), seed=0)
    had = []
    while (found := sampler(_outcomes(had), [], len(had))) is not None:
        had.append(found)
    assert len({found.plan.fingerprint for found in had}) == len(had) == 8


def test_plans_under_way_are_not_proposed_again():
    space = _tiny()
    every = _random_draws(space, 8)
    for name in ("known_cost", "tpe", "random"):
        sampler = _make(name, space, seed=0)
        assert sampler([], every[:7], 7).plan == every[7].plan
        assert sampler(_outcomes(every[:4]), every[4:], 8) is None


def test_the_last_plan_of_a_larger_finite_space_is_found():
    space = _tiny(epochs=60)
    every = _random_draws(space, 240)
    found = RandomSampler(draw=partial(draw, space), seed=0)(_outcomes(every[:-1]), [], 239)
    assert found is not None
    assert found.plan == every[-1].plan


def _told(monkeypatch, past, running=()):
    told = []
    monkeypatch.setattr(optuna.Study, "add_trials", lambda _, trials: told.extend(trials))
    TpeSampler(draw=partial(draw, make_space()), directions=_DIRECTIONS, seed=0)(past, running, 20)
    return told


def test_every_variant_is_told_and_failures_as_failures(monkeypatch):
    draws = _random_draws(make_space(), 10)
    past = _outcomes(draws, failed=range(0, 10, 3))
    told = _told(monkeypatch, past, _random_draws(make_space(), 2, seed=9))
    states = [trial.state.name for trial in told]
    assert states == [*(["FAIL", "FAIL", *["COMPLETE"] * 4] * 3), "FAIL", "FAIL", "RUNNING", "RUNNING"]
    for trial, outcome in zip(told, past, strict=False):
        assert trial.params == {"strategy": outcome.draw.strategy, **outcome.draw.params}
        assert (tuple(trial.values) if trial.values else None) == outcome.values


def test_constraints_are_told(monkeypatch):
    (found,) = _random_draws(make_space(), 1)
    past = [Outcome(number=0, draw=found, precision="fp32", values=(0.7, 3.0), violations={"size_mb <= 3": 0.5})]
    assert _told(monkeypatch, past)[0].constraints == {"size_mb <= 3": 0.5}


def test_failures_alone_do_not_stop_the_search():
    draws = _random_draws(make_space(), 12)
    past = _outcomes(draws, failed=range(12))
    assert TpeSampler(draw=partial(draw, make_space()), directions=_DIRECTIONS, seed=0)(past, [], 12) is not None


@pytest.mark.parametrize("name", ["known_cost", "tpe"])
def test_a_plan_from_outside_the_space_is_passed_over(name):
    """The baseline that a constraint needs, where `full` is not searched."""
    space = replace(make_space(), strategies=("lora", "dft"))
    outside = Draw(strategy="baseline", params={}, plan=baseline(space))
    told = Outcome(number=0, draw=outside, precision="fp32", values=(0.9, 6.0))
    past = [told, *_outcomes(_random_draws(space, 12))]
    found = _make(name, space, seed=0)(past, [outside], 13)
    assert found.strategy in space.strategies


def test_what_was_tried_before_the_space_became_narrower_still_informs():
    wide, narrow = make_space(), replace(make_space(), strategies=("lora", "dft"), student_layers=(1, 3))
    past = _outcomes(_random_draws(wide, 12))
    assert {outcome.draw.strategy for outcome in past} - set(narrow.strategies)
    found = _make("known_cost", narrow, seed=0)(past, [], 12)
    assert found.strategy in narrow.strategies


def _reached(name, seed, trials):
    space = replace(make_space(seed), strategies=("full", "lora", "small_finetune", "dft", "distill_then_finetune"))
    sampler = _make(name, space, seed=seed)
    draws = list(opening(space))
    while len(draws) < trials:
        draws.append(sampler(_outcomes(draws), [], len(draws)))
    points = np.array([(-outcome.values[0], outcome.values[1]) for outcome in _outcomes(draws)])
    return hypervolume(points, np.array([-0.4, 6.5]))


def test_tpe_is_better_than_chance():
    gains = [_reached("tpe", seed, 40) - _reached("random", seed, 40) for seed in range(10)]
    assert np.mean(gains) > 0
    assert sum(gain > 0 for gain in gains) >= 7
