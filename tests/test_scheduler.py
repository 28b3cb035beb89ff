"""Early stopping: pure rules on curves and costs that never stop what is on the front."""

import copy
import dataclasses
import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.entries import Entry, Growing, Variant
from search.race import Point, Race
from search.scheduler import NeverStop, ParetoHalving, ReachesFront, make_scheduler
from search.tracks import Tracks

_FIDELITIES = (0.2, 0.4, 0.6, 0.8, 1.0)


def _entry(curve, *costs, target="cpu", **more):
    """A plan with a variant for each cost."""
    variants = [Variant(target=target, costs=(cost,)) for cost in costs]
    return Entry(curve=curve, variants=variants, known=costs[:1], **more)


def _race(curves, costs):
    """Plans of one variant each."""
    return Race(entries={number: _entry(curve, *costs[number]) for number, curve in curves.items()})


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


def _complete(gain, *, start=0.5, cost=1.0, **more):
    """A plan that was at ``start`` at the fidelity 0.4."""
    return _entry([(0.4, start), (1.0, start + gain)], cost, end=start + gain, **more)


# Better and cheaper at 0.4: who comes after it is on no front of its rung, and the best of no stratum.
_AHEAD = {50: _entry([(0.4, 0.9)], 0.1)}


def _goes_on(entry, complete, *points, scheduler=None, ahead=_AHEAD, **more):
    """Whether a plan goes on, ``complete`` plans and ``points`` being there."""
    race = Race(entries={99: entry, **ahead, **dict(enumerate(complete))}, points=points, **more)
    return (scheduler or ReachesFront()).goes_on(99, race)


@pytest.mark.parametrize("num_peers", [4, 6])
def test_the_best_that_is_hoped_for_by_hand(num_peers):
    gains = [0.30, 0.28, 0.1, 0.2, 0.24, 0.25][:num_peers]
    hoped = 0.49 + 0.30 + statistics.stdev(gains) / math.sqrt(num_peers)
    complete = [_complete(gain) for gain in gains]
    entry = _entry([(0.4, 0.49)], 1.0)
    assert _goes_on(entry, complete, _point(hoped - 1e-6, 1.0))
    assert not _goes_on(entry, complete, _point(hoped + 1e-6, 1.0))
    assert _goes_on(entry, complete, _point(hoped + 1e-6, 1.01)), "at its cost there is none as good"


def test_the_reach_is_the_lead_of_the_best_that_is_hoped_for_where_that_is_most():
    complete = [_complete(0.1) for _ in range(4)]
    points = [_point(0.5, 0.9), _point(0.52, 1.0), _point(0.9, 2.0), _point(0.99, 1.0, target="phone")]

    def reach(entry, **more):
        entries = {99: entry, **dict(enumerate(complete))}
        return ReachesFront().reach(99, Race(entries=entries, points=points, **more))

    for costs, lead in (((1.0,), 0.03), ((2.0,), -0.35), ((0.95, 2.0), 0.05), ((0.8, 2.0), math.inf)):
        assert reach(_entry([(0.4, 0.45)], *costs)) == pytest.approx(lead)
    assert reach(_entry([(0.4, 0.45)], 1.0), floor=0.56) == pytest.approx(-0.01)
    assert reach(_entry([(0.4, math.nan)], 1.0)) is None
    assert reach(_entry([(0.2, 0.45)], 1.0)) is None, "nobody has been there"
    assert ReachesFront().reach(98, Race(entries={})) is None


def test_what_was_stopped_may_reach_the_front_once_another_like_it_has_risen():
    complete = {number: _complete(0.05) for number in range(8)}
    stopped, best = _entry([(0.4, 0.49)], 2.0), _point(0.8, 1.5)
    race = Race(entries={99: stopped, **complete, **_AHEAD}, points=[best])
    assert ReachesFront().reach(99, race) == pytest.approx(0.49 + 0.05 - 0.8)
    assert not ReachesFront().goes_on(99, race)
    late = _complete(0.4, start=0.49, cost=1.0)
    race = Race(entries={99: stopped, **complete, 8: late, **_AHEAD}, points=[best, _point(0.7, 1.0)])
    assert ReachesFront().reach(99, race) > 0


def test_quality_is_not_thought_to_fall():
    complete = [_complete(gain) for gain in (-0.3, -0.28, -0.1, -0.2)]
    assert _goes_on(_entry([(0.4, 0.49)], 1.0), complete, _point(0.48, 1.0))
    assert not _goes_on(_entry([(0.4, 0.49)], 1.0), complete, _point(0.49, 1.0))


def test_the_nearest_peers_tell_and_all_that_are_as_near():
    complete = [_complete(0.1) for _ in range(8)] + [_complete(0.4, start=0.3) for _ in range(8)]
    best = _point(0.75, 1.0)
    assert not _goes_on(_entry([(0.4, 0.48)], 1.0), complete, best)
    assert _goes_on(_entry([(0.4, 0.39)], 1.0), complete, best)
    assert _goes_on(_entry([(0.4, 0.48)], 1.0), [*complete, _complete(0.4, start=0.46)], best), (
        "0.46 and 0.5 are as near"
    )


def test_peers_of_its_own_strategy_tell_first():
    complete = [_complete(0.1, strategy="lora") for _ in range(8)]
    complete += [_complete(0.5, start=0.2, strategy="cot") for _ in range(4)]
    four = ReachesFront(num_peers=4)
    for strategy, goes_on in (("lora", False), ("cot", True), ("dft", False)):
        entry = _entry([(0.4, 0.45)], 1.0, strategy=strategy)
        assert _goes_on(entry, complete, _point(0.9, 1.0), scheduler=four) is goes_on


def test_one_variant_that_may_reach_the_front_is_enough():
    complete = [_complete(0.1) for _ in range(4)]
    assert not _goes_on(_entry([(0.4, 0.45)], 1.0, 1.5), complete, _point(0.6, 1.0))
    assert _goes_on(_entry([(0.4, 0.45)], 1.5, 0.95), complete, _point(0.6, 1.0))


def test_a_target_where_nothing_is_complete_can_be_reached():
    complete = [_complete(0.1) for _ in range(4)]
    assert _goes_on(_entry([(0.4, 0.45)], 1.0, target="phone"), complete, _point(0.6, 1.0))


def test_what_cannot_satisfy_the_constraints_does_not_reach_the_front():
    complete = [_complete(0.1) for _ in range(4)]
    assert _goes_on(_entry([(0.4, 0.45)], 1.0), complete)
    assert _goes_on(_entry([(0.4, 0.45)], 1.0), complete, floor=0.54)
    assert not _goes_on(_entry([(0.4, 0.45)], 1.0), complete, floor=0.56)


@pytest.mark.parametrize("factors", [(2.0, 2.5, 3.0, 2.2), (1.1, 1.5, 2.0, 3.0)])
def test_learned_costs_grow_as_they_grew_for_the_peers(factors):
    least = 5.0 + 10.0 * max(1.0, min(factors) - statistics.stdev(factors) / 2)
    complete = [_complete(0.1, learned=[Growing(curve=[(0.4, 10.0), (1.0, 10.0 * f)])]) for f in factors]
    entry = _entry([(0.4, 0.45)], 1.0, learned=[Growing(before=5.0, curve=[(0.4, 10.0)])])
    ahead = {50: _entry([(0.4, 0.9)], 0.1, learned=[Growing(curve=[(0.4, 1.0)])])}
    assert _goes_on(entry, complete, _point(0.7, 1.0, least + 1e-6), ahead=ahead)
    assert not _goes_on(entry, complete, _point(0.7, 1.0, least - 1e-6), ahead=ahead)


def test_a_learned_cost_that_shows_at_the_end_is_hoped_to_be_the_least_of_all():
    complete = [_complete(0.1, learned=[None]) for _ in range(4)]
    entry = _entry([(0.4, 0.45)], 1.0, learned=[None])
    assert _goes_on(entry, complete, _point(0.7, 1.0, 0.3), _point(0.1, 1.0, 0.2))
    assert not _goes_on(entry, complete, _point(0.7, 1.0, 0.3), _point(0.1, 1.0, 0.3))


def test_the_best_of_those_that_are_near_in_costs_goes_on():
    entries = {number: _entry([(0.4, 0.6 - 0.01 * number)], 1.0 + number) for number in range(20)}
    complete = {number: _complete(0.1, start=0.9, cost=0.1) for number in range(50, 54)}
    points = [_point(1.0, 0.1)]
    race = Race(entries=entries | complete, points=points)
    assert not any(ReachesFront().goes_on(number, race) for number in entries)
    race = Race(entries=entries | complete | {15: _entry([(0.4, 0.55)], 16.0)}, points=points)
    assert [number for number in entries if ReachesFront().goes_on(number, race)] == [15]


def test_quality_that_is_no_number_is_stopped_at_once():
    assert not ReachesFront().goes_on(0, _race({0: [(0.4, math.nan)]}, {0: (1.0,)}))
    assert ReachesFront().goes_on(0, _race({0: [(0.04, math.nan)]}, {0: (1.0,)}))


@st.composite
def _mixed(draw):
    """A race of plans, some complete, with costs of two kinds, two targets and ties."""
    values, costs = st.sampled_from([0.5, 0.6, 0.7, 0.8]), st.sampled_from([1.0, 2.0, 3.0])
    entries, points = {}, []
    for number in range(draw(st.integers(4, 14))):
        fidelities = _FIDELITIES[: draw(st.sampled_from([2, 2, 5]))]
        variants = [Variant(target=t, costs=(draw(costs),)) for t in ("cpu", "phone", "cpu")]
        seconds, is_complete = draw(costs), len(fidelities) == 5
        entries[number] = Entry(
            curve=[(f, draw(values)) for f in fidelities],
            strategy=draw(st.sampled_from(["lora", "full"])),
            variants=variants,
            known=variants[0].costs + variants[1].costs,
            learned=[Growing(curve=[(f, seconds * f) for f in fidelities])],
            end=draw(values) if is_complete else math.nan,
        )
        if is_complete:
            points += [_point(draw(values), *v.costs, seconds, target=v.target) for v in variants]
    return Race(entries=entries, points=points)


def _decisions(race):
    return {n: ReachesFront().goes_on(n, race) for n, entry in race.entries.items() if entry.curve[-1][0] < 1}


@given(_mixed(), st.randoms(use_true_random=False))
def test_who_is_judged_and_when_it_came_makes_no_difference(race, rng):
    order = list(race.entries)
    rng.shuffle(order)
    others = {number: rng.choice([1, 10]) * 100 + number for number in order}
    before = copy.deepcopy(race)
    expected = {others[number]: decision for number, decision in _decisions(race).items()}
    assert race == before
    entries = {others[number]: race.entries[number] for number in order}
    assert _decisions(Race(entries=entries, points=race.points[::-1])) == expected


def _beats(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@given(_mixed())
def test_the_front_of_a_rung_always_goes_on(race):
    def row(entry):
        fidelity, quality = entry.curve[1]
        return (-quality, *entry.known, dict(entry.learned[0].curve)[fidelity])

    for number, goes_on in _decisions(race).items():
        if not any(_beats(row(other), row(race.entries[number])) for other in race.entries.values()):
            assert goes_on


@given(_mixed())
def test_who_stops_is_beaten_at_every_variant_even_if_all_goes_well(race):
    """Were it to end as the nearest of its peers did, it would add nothing."""
    complete = [entry for entry in race.entries.values() if not math.isnan(entry.end)]
    for number, goes_on in _decisions(race).items():
        entry = race.entries[number]
        (fidelity, quality), ((_, seconds),) = entry.curve[-1], entry.learned[0].curve[-1:]
        if not goes_on:
            near = min(complete, key=lambda c: (c.strategy != entry.strategy, abs(dict(c.curve)[fidelity] - quality)))
            hoped = quality + max(0.0, near.end - dict(near.curve)[fidelity])
            ends = [_point(hoped, *v.costs, seconds / fidelity + 1e-9, target=v.target) for v in entry.variants]
            assert all(any(point.beats(end) for point in race.points) for end in ends)


@given(_mixed(), st.randoms(use_true_random=False))
def test_the_front_of_what_is_complete_is_as_good_as_all_of_it(race, rng):
    points = list(race.points)
    rng.shuffle(points)
    front = []
    for point in points:
        if not any(other.beats(point) for other in front):
            front = [other for other in front if not point.beats(other)] + [point]
    assert _decisions(dataclasses.replace(race, points=front)) == _decisions(race)


@given(_mixed(), st.data())
def test_tracks_side_by_side_tell_what_entries_tell_one_by_one(race, data):
    tracks = Tracks()
    numbers = sorted(race.entries)
    for number, reached in data.draw(st.lists(st.tuples(st.sampled_from(numbers), st.integers(1, 5)))):
        entry = race.entries[number]
        tracks.extend(number, dataclasses.replace(entry, curve=entry.curve[:reached], end=math.nan))
    for number in data.draw(st.lists(st.sampled_from(numbers))):
        tracks.remove(number)
    for number in data.draw(st.permutations(numbers)):
        data.draw(st.sampled_from([tracks.put, tracks.extend]))(number, race.entries[number])
    faster = dataclasses.replace(race, tracks=tracks)
    for fidelity in (0.1, 0.2, 0.3, 0.4, 0.7, 1.0):
        one, other = race.places(fidelity), faster.places(fidelity)
        order = np.argsort(other.numbers)
        assert len(one.numbers) == len(other.numbers)
        for name, found in vars(one).items() if len(one.numbers) else ():
            np.testing.assert_array_equal(found, vars(other)[name][order], strict=True)
    assert _decisions(faster) == _decisions(race)


@pytest.mark.parametrize(
    ("name", "kind"), [("known_cost", ReachesFront), ("pareto_halving", ParetoHalving), ("none", NeverStop)]
)
def test_schedulers_have_names(name, kind):
    assert isinstance(make_scheduler(name), kind)
