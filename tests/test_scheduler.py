"""Early stopping: pure rules on curves and costs that never stop what is on the front."""

import copy
import dataclasses
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.race import Growing, Point, Race, Variant
from search.scheduler import NeverStop, ParetoHalving, ReachesFront, make_scheduler

_FIDELITIES = (0.2, 0.4, 0.6, 0.8, 1.0)


def _race(curves, costs, **more):
    """Plans of one variant each."""
    return Race(curves=curves, variants={n: (Variant(target="cpu", costs=costs[n]),) for n in curves}, **more)


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
            assert ParetoHalving().goes_on(number, _race(curves, costs))


@given(_rung(), st.randoms())
def test_a_decision_is_a_pure_function(rung, rng):
    curves, costs = rung
    before = copy.deepcopy((curves, costs))
    decisions = {number: ParetoHalving().goes_on(number, _race(curves, costs)) for number in curves}
    assert (curves, costs) == before
    order = list(curves)
    rng.shuffle(order)
    shuffled = {number: curves[number] for number in order}
    assert {number: ParetoHalving().goes_on(number, _race(shuffled, costs)) for number in curves} == decisions


@given(_rung(least=4))
def test_at_least_half_goes_on(rung):
    curves, costs = rung
    going_on = sum(ParetoHalving().goes_on(number, _race(curves, costs)) for number in curves)
    assert going_on >= len(curves) / 2


@given(_rung(), st.floats(0.01, 0.29))
def test_nothing_is_stopped_before_the_first_rung(rung, fidelity):
    curves, costs = rung
    early = {number: [(fidelity, curve[0][1])] for number, curve in curves.items()}
    assert all(ParetoHalving().goes_on(number, _race(early, costs)) for number in early)


def _ladder(count, *, fidelity=0.4):
    """Plans of the same cost, each better than the one before."""
    return {number: [(fidelity, 0.5 + 0.01 * number)] for number in range(count)}, dict.fromkeys(range(count), (1.0,))


@pytest.mark.parametrize("peers", [1, 2, 3])
def test_a_rung_decides_nothing_with_few_peers(peers):
    curves, costs = _ladder(peers)
    assert all(ParetoHalving(min_peers=4).goes_on(number, _race(curves, costs)) for number in curves)


def test_the_worse_half_is_stopped():
    curves, costs = _ladder(8)
    assert [ParetoHalving().goes_on(number, _race(curves, costs)) for number in range(8)] == [False] * 4 + [True] * 4


def test_the_reduction_factor_says_how_many_go_on():
    curves, costs = _ladder(9)
    going_on = [ParetoHalving(reduction_factor=3.0).goes_on(number, _race(curves, costs)) for number in range(9)]
    assert going_on == [False] * 6 + [True] * 3


def test_a_cheap_plan_is_not_stopped_for_lower_quality():
    curves, costs = _ladder(8)
    assert not ParetoHalving().goes_on(0, _race(curves, costs))
    assert ParetoHalving().goes_on(0, _race(curves, {**costs, 0: (0.5,)}))


@given(st.permutations(range(8)))
def test_who_comes_late_is_judged_like_who_came_early(order):
    """The last to arrive at a rung meets the same rule, whoever it is."""
    curves, costs = _ladder(8)
    arrived = {}
    for number in order:
        arrived[number] = curves[number]
        decision = ParetoHalving().goes_on(number, _race(arrived, costs))
        better = sum(other > number for other in arrived)
        assert decision is (len(arrived) < 4 or better < len(arrived) / 2)


def test_a_late_plan_is_compared_at_the_rung_and_not_with_what_others_became():
    scheduler = ParetoHalving()
    finished = {number: [(0.4, 0.5), (0.8, 0.8), (1.0, 0.9)] for number in range(5)}
    costs = dict.fromkeys(range(6), (1.0,))
    assert scheduler.goes_on(5, _race({**finished, 5: [(0.4, 0.51)]}, costs))
    assert not scheduler.goes_on(5, _race({**finished, 5: [(0.4, 0.49)]}, costs))


def test_between_rungs_and_at_the_end_nothing_is_decided():
    curves, costs = _ladder(8)
    scheduler = ParetoHalving()
    assert scheduler.goes_on(0, _race({**curves, 0: [(0.4, 0.1), (0.5, 0.1)]}, costs))
    full = {number: [(1.0, curve[0][1])] for number, curve in curves.items()}
    assert scheduler.goes_on(0, _race(full, costs))


def test_who_jumps_over_a_rung_is_judged_at_the_last_one():
    curves, costs = _ladder(8, fidelity=0.7)
    assert not ParetoHalving().goes_on(0, _race(curves, costs))


def test_quality_that_is_no_number_is_stopped_and_stops_nobody():
    curves, costs = _ladder(8)
    scheduler = ParetoHalving()
    broken = {**curves, 7: [(0.4, float("nan"))]}
    assert not scheduler.goes_on(7, _race(broken, costs))
    assert scheduler.goes_on(6, _race(broken, costs))


def test_never_stop_never_stops():
    curves, costs = _ladder(8)
    assert all(NeverStop().goes_on(number, _race(curves, costs)) for number in curves)


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
                if not ParetoHalving().goes_on(number, _race(curves, costs)):
                    stopped.add(number)
        for cost in {cost for (cost,) in costs.values()}:
            best = max((n for n in quality if costs[n] == (cost,)), key=quality.__getitem__)
            assert best not in stopped or any(
                quality[other] > quality[best] and costs[other][0] <= cost for other in quality
            )
        assert all(curves[number][-1][0] == 1.0 for number in set(quality) - stopped)


# What can still reach the front ---------------------------------------------------------------------------------------


def _point(quality, *costs, target="cpu"):
    return Point(target=target, quality=quality, costs=costs)


def _field(gains, *, start=0.5, cost=1.0):
    """Complete plans of the same cost that all were at ``start`` at the fidelity 0.4."""
    curves = {number: [(0.4, start), (1.0, start + gain)] for number, gain in enumerate(gains)}
    return {
        "curves": curves,
        "variants": {number: (Variant(target="cpu", costs=(cost,)),) for number in curves},
        "ends": {number: start + gain for number, gain in enumerate(gains)},
        "points": [_point(start + gain, cost) for gain in gains],
    }


def _joined(field, quality, *costs, target="cpu", learned=None):
    """The race with a further plan, 99, that is at the fidelity 0.4, one variant for each cost."""
    variants = tuple(Variant(target=target, costs=(cost,)) for cost in costs)
    race = Race(**field)
    return dataclasses.replace(
        race,
        curves={**race.curves, 99: [(0.4, quality)]},
        variants={**race.variants, 99: variants},
        learned={**race.learned, 99: learned} if learned else {},
    )


# No rung front and no stratum, so that what is hoped for decides alone: a cheaper, better plan at the same share.
_BETTER = {"curves": {50: [(0.4, 0.9)]}, "variants": {50: (Variant(target="cpu", costs=(0.1,)),)}}


def _against(field):
    return {**field, **{name: {**field[name], **value} for name, value in _BETTER.items()}}


@pytest.mark.parametrize("num_peers", [4, 6])
def test_the_best_that_is_hoped_for_by_hand(num_peers):
    gains = [0.30, 0.28, 0.1, 0.2, 0.24, 0.25][:num_peers]
    quality = 0.5 - 1e-9
    hoped = quality + 0.30 + statistics.stdev(gains) / math.sqrt(num_peers)
    for lead, goes_on in ((-1e-6, True), (1e-6, False)):
        field = _against(_field(gains))
        field["points"] = [_point(hoped + lead, 1.0)]
        assert ReachesFront().goes_on(99, _joined(field, quality, 1.0)) is goes_on


def test_the_nearest_peers_tell_and_all_that_are_as_near():
    field = _field([0.1] * 8)
    far = _field([0.4] * 8, start=0.3)
    far = {name: {n + 20: value for n, value in far[name].items()} for name in ("curves", "variants", "ends")}
    field = _against({**field, **{name: {**field[name], **far[name]} for name in far}, "points": [_point(0.75, 1.0)]})
    assert not ReachesFront().goes_on(99, _joined(field, 0.48, 1.0))
    assert ReachesFront().goes_on(99, _joined(field, 0.39, 1.0))
    tenth = {**field, "curves": {**field["curves"], 8: [(0.4, 0.46), (1.0, 0.9)]}, "ends": {**field["ends"], 8: 0.9}}
    tenth["variants"] = {**field["variants"], 8: field["variants"][0]}
    assert ReachesFront().goes_on(99, _joined(tenth, 0.48, 1.0)), "0.46 and 0.5 are as near"


def test_peers_of_its_own_strategy_tell_first():
    late = {n: [(0.4, 0.2), (1.0, 0.7)] for n in range(20, 24)}
    field = _against({**_field([0.1] * 8), "points": [_point(0.9, 1.0)]})
    field["curves"] |= late
    field["variants"] |= dict.fromkeys(late, (Variant(target="cpu", costs=(1.0,)),))
    field["ends"] |= dict.fromkeys(late, 0.7)
    race = _joined(field, 0.45, 1.0)
    assert not ReachesFront(num_peers=4).goes_on(99, race)
    named = dataclasses.replace(race, strategies={n: "cot" if n in late or n == 99 else "lora" for n in race.curves})
    assert ReachesFront(num_peers=4).goes_on(99, named)


def test_one_variant_that_may_reach_the_front_is_enough():
    field = _against(_field([0.1] * 4))
    assert not ReachesFront().goes_on(99, _joined(field, 0.45, 1.0, 1.5))
    assert ReachesFront().goes_on(99, _joined(field, 0.45, 1.5, 0.95))


def test_a_target_where_nothing_is_complete_can_be_reached():
    field = _against(_field([0.1] * 4))
    assert ReachesFront().goes_on(99, _joined(field, 0.45, 1.0, target="phone"))


def test_what_cannot_satisfy_the_constraints_does_not_reach_the_front():
    field = _against({**_field([0.1] * 4), "points": []})
    assert ReachesFront().goes_on(99, _joined(field, 0.45, 1.0))
    assert ReachesFront().goes_on(99, _joined({**field, "floor": 0.54}, 0.45, 1.0))
    assert not ReachesFront().goes_on(99, _joined({**field, "floor": 0.56}, 0.45, 1.0))


def test_learned_costs_grow_as_they_grew_for_the_peers():
    factors = [2.0, 2.5, 3.0, 2.2]
    least = 5.0 + 10.0 * (2.0 - statistics.stdev(factors) / 2)
    learned = [Growing(before=5.0, curve=[(0.4, 10.0)])]
    for lead, goes_on in ((1e-6, True), (-1e-6, False)):
        field = _against(_field([0.1] * 4))
        field["learned"] = {n: [Growing(curve=[(0.4, 10.0), (1.0, 10.0 * f)])] for n, f in enumerate(factors)}
        field["learned"][50] = [Growing(curve=[(0.4, 1.0)])]
        field["points"] = [_point(0.7, 1.0, least + lead)]
        assert ReachesFront().goes_on(99, _joined(field, 0.45, 1.0, learned=learned)) is goes_on


def test_a_learned_cost_that_shows_at_the_end_is_hoped_to_be_the_least_of_all():
    field = _against({**_field([0.1] * 4), "learned": {number: [None] for number in (*range(4), 50)}})
    field["points"] = [_point(0.7, 1.0, 0.3), _point(0.1, 1.0, 0.2)]
    assert ReachesFront().goes_on(99, _joined(field, 0.45, 1.0, learned=[None]))
    field["points"] = [_point(0.7, 1.0, 0.3), _point(0.1, 1.0, 0.3)]
    assert not ReachesFront().goes_on(99, _joined(field, 0.45, 1.0, learned=[None]))


def test_the_best_of_those_that_are_near_in_costs_goes_on():
    costs = {number: 1.0 + number for number in range(20)}
    curves = {number: [(0.4, 0.6 - 0.01 * number)] for number in costs}
    field = {
        "curves": curves,
        "variants": {number: (Variant(target="cpu", costs=(cost,)),) for number, cost in costs.items()},
    }
    complete = _field([0.1] * 4, start=0.9, cost=0.1)
    field = {name: {**field[name], **{n + 50: v for n, v in complete[name].items()}} for name in ("curves", "variants")}
    field |= {"ends": {n + 50: 1.0 for n in range(4)}, "points": complete["points"]}
    race = Race(**field)
    going_on = [number for number in curves if ReachesFront().goes_on(number, race)]
    assert going_on == []
    best = dataclasses.replace(race, curves={**race.curves, 15: [(0.4, 0.55)]})
    assert [number for number in curves if ReachesFront().goes_on(number, best)] == [15]


def test_quality_that_is_no_number_is_stopped_at_once():
    assert not ReachesFront().goes_on(0, _race({0: [(0.4, math.nan)]}, {0: (1.0,)}))
    assert ReachesFront().goes_on(0, _race({0: [(0.04, math.nan)]}, {0: (1.0,)}))


@st.composite
def _mixed(draw):
    """A race of plans, some complete, with two costs, two targets and ties."""
    values, costs = st.sampled_from([0.5, 0.6, 0.7, 0.8]), st.sampled_from([1.0, 2.0, 3.0])
    curves, variants, learned, ends, points = {}, {}, {}, {}, []
    for number in range(draw(st.integers(4, 14))):
        reached = draw(st.sampled_from([2, 2, 5]))
        curves[number] = [(f, draw(values)) for f in _FIDELITIES[:reached]]
        variants[number] = [Variant(target=t, costs=(draw(costs),)) for t in ("cpu", "phone", "cpu")]
        seconds = draw(costs)
        learned[number] = [Growing(curve=[(f, seconds * f) for f in _FIDELITIES[:reached]])]
        if reached == 5:
            ends[number] = draw(values)
            points += [_point(draw(values), *v.costs, seconds, target=v.target) for v in variants[number]]
    return Race(curves=curves, variants=variants, learned=learned, ends=ends, points=points)


def _decisions(race):
    return {n: ReachesFront().goes_on(n, race) for n, curve in race.curves.items() if curve[-1][0] < 1}


def _renumbered(race, numbers):
    def of(found):
        return {numbers[number]: found[number] for number in numbers if number in found}

    return dataclasses.replace(
        race, curves=of(race.curves), variants=of(race.variants), learned=of(race.learned), ends=of(race.ends),
        points=race.points[::-1],
    )  # fmt: skip


@given(_mixed(), st.randoms(use_true_random=False))
def test_who_is_judged_and_when_it_came_makes_no_difference(race, rng):
    numbers = list(race.curves)
    rng.shuffle(numbers)
    others = {number: rng.choice([1, 10]) * 100 + number for number in numbers}
    before = copy.deepcopy(race)
    expected = {others[number]: decision for number, decision in _decisions(race).items()}
    assert race == before
    assert _decisions(_renumbered(race, others)) == expected


def _beats(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@given(_mixed())
def test_the_front_of_a_rung_always_goes_on(race):
    def row(number):
        (fidelity, quality), (seconds,) = race.curves[number][1], race.learned[number]
        first = {v.target: v.costs for v in reversed(race.variants[number])}
        return (-quality, *first["cpu"], *first["phone"], dict(seconds.curve)[fidelity])

    for number, goes_on in _decisions(race).items():
        if not any(_beats(row(other), row(number)) for other in race.curves):
            assert goes_on


@given(_mixed())
def test_who_stops_is_beaten_at_every_variant_even_if_all_goes_well(race):
    """Were it complete with the largest gain that was seen, and at what it has cost so far, it would add nothing."""
    for number, goes_on in _decisions(race).items():
        if not goes_on:
            fidelity, quality = race.curves[number][-1]
            gains = [end - dict(race.curves[other])[fidelity] for other, end in race.ends.items()]
            near = sorted(race.ends, key=lambda other: abs(dict(race.curves[other])[fidelity] - quality))[0]
            seconds = race.learned[number][0].curve[-1][1] / fidelity
            hoped = quality + max(0.0, race.ends[near] - dict(race.curves[near])[fidelity])
            assert hoped <= quality + max(0.0, *gains)
            for variant in race.variants[number]:
                assert any(
                    point.target == variant.target
                    and point.quality >= hoped
                    and all(x <= y + 1e-9 for x, y in zip(point.costs, (*variant.costs, seconds), strict=True))
                    for point in race.points
                )


@pytest.mark.parametrize(
    ("name", "kind"), [("known_cost", ReachesFront), ("pareto_halving", ParetoHalving), ("none", NeverStop)]
)
def test_schedulers_have_names(name, kind):
    assert isinstance(make_scheduler(name), kind)
