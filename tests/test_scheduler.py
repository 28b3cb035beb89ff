"""Early stopping: a pure rule on curves and costs that never stops what is on the front."""

import copy
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.scheduler import NeverStop, ParetoHalving

_FIDELITIES = (0.2, 0.4, 0.6, 0.8, 1.0)


@st.composite
def _rung(draw, *, least=1):
    """(curves, costs) of some plans, all at the same share of training; few values, so that ties are common."""
    count = draw(st.integers(least, 12))
    reached = draw(st.integers(1, 4))
    values = st.sampled_from([0.5, 0.6, 0.7, 0.8])
    curves = {
        number: [(f, draw(values)) for f in _FIDELITIES[:reached]] for number in draw(st.permutations(range(count)))
    }
    costs = {number: (draw(st.sampled_from([1.0, 2.0, 3.0])),) for number in range(count)}
    return curves, costs


def _on_front(number, curves, costs):
    def at_end(other):
        return curves[other][-1][1]

    return not any(
        at_end(other) >= at_end(number)
        and costs[other][0] <= costs[number][0]
        and (at_end(other), -costs[other][0]) != (at_end(number), -costs[number][0])
        for other in curves
    )


@given(_rung())
def test_the_front_is_never_stopped(rung):
    curves, costs = rung
    for number in curves:
        if _on_front(number, curves, costs):
            assert ParetoHalving().goes_on(number, curves, costs)


@given(_rung(), st.randoms())
def test_a_decision_is_a_pure_function(rung, rng):
    curves, costs = rung
    before = copy.deepcopy((curves, costs))
    decisions = {number: ParetoHalving().goes_on(number, curves, costs) for number in curves}
    assert (curves, costs) == before
    order = list(curves)
    rng.shuffle(order)
    shuffled = {number: curves[number] for number in order}
    assert {number: ParetoHalving().goes_on(number, shuffled, costs) for number in curves} == decisions


@given(_rung(least=4))
def test_at_least_half_goes_on(rung):
    curves, costs = rung
    going_on = sum(ParetoHalving().goes_on(number, curves, costs) for number in curves)
    assert going_on >= len(curves) / 2


@given(_rung(), st.floats(0.01, 0.29))
def test_nothing_is_stopped_before_the_first_rung(rung, fidelity):
    curves, costs = rung
    early = {number: [(fidelity, curve[0][1])] for number, curve in curves.items()}
    assert all(ParetoHalving().goes_on(number, early, costs) for number in early)


def _ladder(count, *, fidelity=0.4):
    """Plans of the same cost, each better than the one before."""
    return {number: [(fidelity, 0.5 + 0.01 * number)] for number in range(count)}, dict.fromkeys(range(count), (1.0,))


@pytest.mark.parametrize("peers", [1, 2, 3])
def test_a_rung_decides_nothing_with_few_peers(peers):
    curves, costs = _ladder(peers)
    assert all(ParetoHalving(min_peers=4).goes_on(number, curves, costs) for number in curves)


def test_the_worse_half_is_stopped():
    curves, costs = _ladder(8)
    assert [ParetoHalving().goes_on(number, curves, costs) for number in range(8)] == [False] * 4 + [True] * 4


def test_the_reduction_factor_says_how_many_go_on():
    curves, costs = _ladder(9)
    going_on = [ParetoHalving(reduction_factor=3.0).goes_on(number, curves, costs) for number in range(9)]
    assert going_on == [False] * 6 + [True] * 3


def test_a_cheap_plan_is_not_stopped_for_lower_quality():
    curves, costs = _ladder(8)
    assert not ParetoHalving().goes_on(0, curves, costs)
    assert ParetoHalving().goes_on(0, curves, {**costs, 0: (0.5,)})


@given(st.permutations(range(8)))
def test_who_comes_late_is_judged_like_who_came_early(order):
    """The last to arrive at a rung meets the same rule, whoever it is."""
    curves, costs = _ladder(8)
    arrived = {}
    for number in order:
        arrived[number] = curves[number]
        decision = ParetoHalving().goes_on(number, arrived, costs)
        better = sum(other > number for other in arrived)
        assert decision is (len(arrived) < 4 or better < len(arrived) / 2)


def test_a_late_plan_is_compared_at_the_rung_and_not_with_what_others_became():
    scheduler = ParetoHalving()
    finished = {number: [(0.4, 0.5), (0.8, 0.8), (1.0, 0.9)] for number in range(5)}
    costs = dict.fromkeys(range(6), (1.0,))
    assert scheduler.goes_on(5, {**finished, 5: [(0.4, 0.51)]}, costs)
    assert not scheduler.goes_on(5, {**finished, 5: [(0.4, 0.49)]}, costs)


def test_between_rungs_and_at_the_end_nothing_is_decided():
    curves, costs = _ladder(8)
    scheduler = ParetoHalving()
    assert scheduler.goes_on(0, {**curves, 0: [(0.4, 0.1), (0.5, 0.1)]}, costs)
    full = {number: [(1.0, curve[0][1])] for number, curve in curves.items()}
    assert scheduler.goes_on(0, full, costs)


def test_who_jumps_over_a_rung_is_judged_at_the_last_one():
    curves, costs = _ladder(8, fidelity=0.7)
    assert not ParetoHalving().goes_on(0, curves, costs)


def test_quality_that_is_no_number_is_stopped_and_stops_nobody():
    curves, costs = _ladder(8)
    scheduler = ParetoHalving()
    broken = {**curves, 7: [(0.4, float("nan"))]}
    assert not scheduler.goes_on(7, broken, costs)
    assert scheduler.goes_on(6, broken, costs)


def test_never_stop_never_stops():
    curves, costs = _ladder(8)
    assert all(NeverStop().goes_on(number, curves, costs) for number in curves)


def test_stragglers_in_any_order_end_in_full_curves_or_a_stop():
    """A simulated clock, plans that start late or are slow: the best plan at each cost always ends."""
    for seed in range(20):
        rng = random.Random(seed)
        quality = {number: rng.random() for number in range(12)}
        costs = {number: (float(rng.randint(1, 3)),) for number in range(12)}
        start = {number: (3 * rng.random(), rng.uniform(0.5, 5)) for number in range(12)}
        events = sorted((at + pace * f, number, f) for number, (at, pace) in start.items() for f in _FIDELITIES)
        curves, stopped = {}, set()
        for _, number, fidelity in events:
            if number not in stopped:
                curves.setdefault(number, []).append((fidelity, quality[number] * fidelity))
                if not ParetoHalving().goes_on(number, curves, costs):
                    stopped.add(number)
        for cost in {cost for (cost,) in costs.values()}:
            best = max((n for n in quality if costs[n] == (cost,)), key=quality.__getitem__)
            assert best not in stopped or any(
                quality[other] > quality[best] and costs[other][0] <= cost for other in quality
            )
        assert all(curves[number][-1][0] == 1.0 for number in set(quality) - stopped)
