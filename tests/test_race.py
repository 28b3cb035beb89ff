"""How plans stand: read from records and live reports, with every variant's costs, on a scale where more is better."""

import itertools
import math
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgers import make_record, make_space

from search.clerk import Standing
from search.entries import Growing, Variant, value_at
from search.goals import Goals
from search.memory_ledger import Proposal
from search.race import Point
from search.standings import Standings
from spaces.draw import opening
from spaces.objectives import parse_constraint

_DRAWS = list(opening(make_space()))
_GOALS = Goals(
    metric="accuracy",
    objectives=("accuracy", "latency_ms", "train_seconds", "forgetting"),
    constraints=(parse_constraint("accuracy >= 0.9 * baseline"), parse_constraint("size_mb <= 60")),
    targets=("cpu", "phone"),
)
_VARIANTS = tuple((precision, target) for precision in ("fp32", "int8") for target in ("cpu", "phone"))
_LATENCY = {("fp32", "cpu"): 4.0, ("fp32", "phone"): 9.0, ("int8", "cpu"): 2.0, ("int8", "phone"): 5.0}


def _standings(records, running, *, goals=_GOALS, baseline=0.8):
    numbers = {record.number for record in records} | set(running)
    proposals = {number: Proposal(number=number, draw=_DRAWS[number], variants=_VARIANTS) for number in numbers}
    costs = {
        (proposal.draw.plan.shape, *variant): {"latency_ms": latency}
        for proposal in proposals.values()
        for variant, latency in _LATENCY.items()
    }
    found = Standings(goals, costs)
    found.measure_by(baseline)
    for number in numbers - set(running):
        of_plan = [record for record in records if record.number == number]
        found.settle(proposals[number], of_plan)
    for number, standing in running.items():
        found.hear(proposals[number], standing)
    return found.race


def _complete(number, variant, quality, **changes):
    precision, target = variant
    values = {
        "record_id": f"t{number:05d}-{precision}-{target}",
        "precision": precision,
        "target": target,
        "quality": quality,
        "quality_low": quality - 0.0196,
        "quality_high": quality + 0.03,
        "latency_ms": _LATENCY[variant],
        "train_seconds": 100.0,
        "forgetting": 0.1,
        "size_mb": 40.0,
        "curve": ((0.5, 0.6), (1.0, 0.8)),
        "curve_seconds": (20.0, 50.0),
    }
    return make_record(number, **(values | changes))


def test_a_complete_plan_as_it_stands():
    race = _standings([_complete(0, ("fp32", "cpu"), 0.8), _complete(0, ("int8", "phone"), 0.79)], {})
    entry = race.entries[0]
    assert entry.curve == [(0.5, 0.6), (1.0, 0.8)]
    assert entry.variants == [Variant(target=target, costs=(_LATENCY[p, target],)) for p, target in _VARIANTS]
    assert (entry.strategy, entry.known, entry.end) == (_DRAWS[0].strategy, (4.0, 9.0), 0.8)
    assert entry.learned == [Growing(before=50.0, curve=[(0.5, 20.0), (1.0, 50.0)]), None]
    assert race.points == [
        Point(target="cpu", quality=pytest.approx(0.79), costs=(4.0, 100.0, 0.1)),
        Point(target="phone", quality=pytest.approx(0.78), costs=(5.0, 100.0, 0.1)),
    ]
    assert race.floor == pytest.approx(0.72)
    assert entry.at(0.75) == pytest.approx((0.7, 4.0, 9.0, 85.0))
    assert race.places(0.75).numbers.tolist() == [0]


def test_a_plan_under_way_as_it_stands():
    live = Standing(started_at=0.0, curve=[(0.25, 0.4)], curve_seconds=[7.0], seconds={0: 30.0, 1: 7.0})
    race = _standings([], {0: live, 1: Standing(started_at=0.0)})
    assert set(race.entries) == {0}
    assert race.entries[0].curve == [(0.25, 0.4)]
    assert race.entries[0].learned == [Growing(before=30.0, curve=[(0.25, 7.0)]), None]
    assert math.isnan(race.entries[0].end)
    assert race.points == []


def test_a_plan_that_is_taken_up_again_is_looked_at_anew():
    proposal = Proposal(number=0, draw=_DRAWS[0], variants=_VARIANTS)
    found = Standings(_GOALS, defaultdict(lambda: {"latency_ms": 1.0}))
    found.settle(proposal, [make_record(0, quality=None, status="stopped", curve=((0.5, 0.6),))])
    assert found.race.places(0.5).qualities.tolist() == [0.6]
    live = Standing(started_at=0.0, curve=[(0.5, 0.7)], curve_seconds=[7.0], seconds={0: 7.0})
    found.hear(proposal, live)
    assert found.race.places(0.5).qualities.tolist() == [0.7]
    found.forget(0)
    assert found.race.places(0.5).qualities.tolist() == []


def test_stopped_and_failed_plans_have_curves_and_no_end():
    stopped = make_record(0, quality=None, status="stopped", fidelity=0.5, curve=((0.5, 0.6),))
    failed = make_record(1, quality=None, status="failed", fidelity=0.0)
    race = _standings([stopped, failed], {})
    assert set(race.entries) == {0}
    assert math.isnan(race.entries[0].end)
    assert race.points == []


def test_what_breaks_a_constraint_or_lacks_a_cost_is_on_no_front():
    records = [
        _complete(0, ("fp32", "cpu"), 0.7),
        _complete(1, ("fp32", "cpu"), 0.8, forgetting=None),
        _complete(2, ("fp32", "cpu"), 0.8, size_mb=70.0),
    ]
    race = _standings(records, {})
    assert race.points == []
    assert [race.entries[number].end for number in range(3)] == [0.7, 0.8, 0.8]


def test_what_another_one_beats_is_left_out():
    qualities = [0.8, 0.85, 0.85, 0.84]
    race = _standings([_complete(number, ("fp32", "cpu"), quality) for number, quality in enumerate(qualities)], {})
    assert [point.quality for point in race.points] == [pytest.approx(0.84)]


def test_seconds_that_were_not_heard_are_shared_out_evenly():
    race = _standings([_complete(0, ("fp32", "cpu"), 0.8, curve_seconds=())], {})
    assert race.entries[0].learned[0] == Growing(before=0.0, curve=[(0.5, 50.0), (1.0, 100.0)])


def test_a_quality_that_is_to_be_small_counts_by_its_logarithm():
    goals = Goals(
        metric="perplexity",
        objectives=("perplexity", "latency_ms"),
        constraints=(parse_constraint("perplexity <= 20"), parse_constraint("perplexity >= 1")),
        targets=("cpu", "phone"),
    )
    record = _complete(0, ("fp32", "cpu"), 8.0, quality_low=7.0, quality_high=16.0, curve=((0.5, 32.0), (1.0, 8.0)))
    race = _standings([record], {}, goals=goals)
    assert race.entries[0].curve == [(0.5, pytest.approx(-math.log(32))), (1.0, pytest.approx(-math.log(8)))]
    assert race.points[0].quality == pytest.approx(-math.log(8) - math.log(2) / 1.96)
    assert race.floor == pytest.approx(-math.log(20))


def test_a_cost_that_nothing_tells_is_the_same_for_all():
    record = _complete(0, ("fp32", "cpu"), 0.8, latency_ms=None)
    assert _standings([record], {}).points[0].costs[0] == 0.0


def test_a_value_between_two_reports_is_on_the_line_through_them():
    curve = [(0.2, 0.5), (0.4, 0.7), (1.0, 0.4)]
    assert [value_at(curve, fidelity) for fidelity in (0.1, 0.2, 0.3, 0.4, 0.7, 1.0)] == [
        None, 0.5, pytest.approx(0.6), 0.7, pytest.approx(0.55), 0.4,
    ]  # fmt: skip
    assert value_at(curve[:2], 0.5) is None
    assert value_at([], 0.5) is None


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(-1, 1)), min_size=1, unique_by=lambda point: point[0]))
def test_values_are_those_of_the_reports_and_between_them(points):
    curve = sorted(points)
    assert [value_at(curve, fidelity) for fidelity, _ in curve] == [value for _, value in curve]
    for (before, start), (after, end) in itertools.pairwise(curve):
        assert min(start, end) - 1e-9 <= value_at(curve, (before + after) / 2) <= max(start, end) + 1e-9
