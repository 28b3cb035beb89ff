"""Records as sampler and scheduler see them: by proposal and precision, and never a half-way value as a result."""

import math
import random
from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgers import make_record, make_space

from search.budget import Limits, Spent
from search.clerk import Standing
from search.goals import Goals, baseline_quality
from search.history import outcomes
from search.memory_ledger import MemoryLedger, Proposal
from search.tally import Tally
from spaces.choosers import RandomChooser
from spaces.draw import draw
from spaces.objectives import parse_constraint

_TWO_TARGETS = Goals(metric="accuracy", objectives=("accuracy", "latency_ms"), targets=("cpu", "phone"))
_ONE_TARGET = Goals(metric="accuracy", objectives=("accuracy", "latency_ms"))


def _proposals(count):
    space = make_space()
    variants = (("fp32", "cpu"), ("fp32", "phone"), ("int8", "cpu"), ("int8", "phone"))
    return [
        Proposal(number=number, draw=draw(space, RandomChooser(random.Random(number))), variants=variants)
        for number in range(count)
    ]


def _records(number, **changes):
    return [
        make_record(
            number,
            record_id=f"t{number:05d}-{precision}-{target}",
            precision=precision,
            target=target,
            quality=0.6 + 0.01 * number,
            latency_ms={"cpu": 2.0, "phone": 5.0}[target] * {"fp32": 1.0, "int8": 0.5}[precision],
            **changes,
        )
        for precision in ("fp32", "int8")
        for target in ("cpu", "phone")
    ]


def test_one_outcome_a_variant_with_the_costs_of_every_target():
    found = outcomes(_proposals(1), _records(0), _TWO_TARGETS, baseline=None)
    assert [(o.number, o.precision, o.values) for o in found] == [
        (0, "fp32", (0.6, 2.0, 5.0)),
        (0, "int8", (0.6, 1.0, 2.5)),
    ]
    assert _TWO_TARGETS.directions == ("max", "min", "min")


@given(st.randoms())
def test_the_order_of_arrival_does_not_matter(rng):
    proposals, records = _proposals(4), [record for number in range(4) for record in _records(number)]
    before = outcomes(proposals, records, _TWO_TARGETS, baseline=None)
    rng.shuffle(proposals)
    rng.shuffle(records)
    assert outcomes(proposals, records, _TWO_TARGETS, baseline=None) == before


@given(st.randoms())
def test_a_plan_that_is_gone_on_with_is_told_once(rng):
    first, rest = _proposals(2)
    rest = replace(rest, draw=first.draw, resumes=0)
    stopped = make_record(0, quality=None, status="stopped", curve=((0.5, 0.6),), reach=-0.1)
    records = [stopped, *_records(1)]
    rng.shuffle(records)
    found = outcomes([first, rest], records, _TWO_TARGETS, baseline=None)
    assert [(outcome.number, outcome.status) for outcome in found] == [(1, "complete"), (1, "complete")]
    assert [outcome.number for outcome in outcomes([first, rest], [stopped], _TWO_TARGETS, baseline=None)] == []
    assert [outcome.number for outcome in outcomes([first], [stopped], _TWO_TARGETS, baseline=None)] == [0]


def test_records_of_other_proposals_and_of_ruled_out_shapes_are_passed_over():
    ruled_out = make_record(-1, record_id="shape-6-fp32-cpu", status="infeasible", quality=None)
    found = outcomes(_proposals(1), [ruled_out, *_records(0), *_records(1)], _TWO_TARGETS, baseline=None)
    assert {outcome.number for outcome in found} == {0}


@pytest.mark.parametrize("status", ["failed", "stopped"])
def test_what_did_not_complete_has_no_values(status):
    curve = ((0.3, 0.9), (0.6, 0.95))
    record = make_record(0, status=status, error="because", quality=0.95, curve=curve)
    (found,) = outcomes(_proposals(1), [record], _ONE_TARGET, baseline=None)
    assert found.values is None
    assert found.violations == {}


@pytest.mark.parametrize("quality", [None, math.nan, math.inf])
def test_a_quality_that_is_no_number_has_no_values(quality):
    (found,) = outcomes(_proposals(1), [make_record(0, quality=quality)], _ONE_TARGET, baseline=None)
    assert found.values is None


def test_a_variant_that_failed_on_one_target_has_no_values():
    records = [_records(0)[0], make_record(0, target="phone", status="failed", quality=None)]
    (found,) = outcomes(_proposals(1), records, _TWO_TARGETS, baseline=None)
    assert found.values is None


def test_a_target_that_is_missing_leaves_no_values():
    (found,) = outcomes(_proposals(1), _records(0)[:1], _TWO_TARGETS, baseline=None)
    assert found.values is None


@pytest.mark.parametrize(
    ("text", "quality", "latency_ms", "miss"),
    [
        ("latency_ms <= 4", 0.7, 5.0, 0.25),
        ("latency_ms <= 4", 0.7, 3.0, -0.25),
        ("accuracy >= 0.8", 0.6, 3.0, 0.25),
        ("accuracy >= 0.8", 0.9, 3.0, -0.125),
        ("accuracy >= 0.9 * baseline", 0.63, 3.0, 0.125),
    ],
)
def test_violations_are_relative_to_the_limit(text, quality, latency_ms, miss):
    goals = Goals(metric="accuracy", objectives=("accuracy", "latency_ms"), constraints=(parse_constraint(text),))
    record = make_record(0, quality=quality, latency_ms=latency_ms)
    (found,) = outcomes(_proposals(1), [record], goals, baseline=0.8)
    assert found.violations == {text: pytest.approx(miss)}
    assert goals.feasible(record, baseline=0.8) is (miss <= 0)


def test_the_worst_target_counts():
    text = "latency_ms <= 4"
    goals = Goals(
        metric="accuracy",
        objectives=("accuracy", "latency_ms"),
        constraints=(parse_constraint(text),),
        targets=("cpu", "phone"),
    )
    found = outcomes(_proposals(1), _records(0), goals, baseline=None)
    assert [outcome.violations[text] for outcome in found] == [pytest.approx(0.25), pytest.approx(-0.375)]


def test_a_constraint_without_its_baseline_is_left_open():
    goals = Goals(
        metric="accuracy",
        objectives=("accuracy", "latency_ms"),
        constraints=(parse_constraint("accuracy >= 0.95 * baseline"),),
    )
    (found,) = outcomes(_proposals(1), [make_record(0, quality=0.1)], goals, baseline=None)
    assert found.violations == {}
    assert goals.needs_baseline()
    assert goals.feasible(make_record(0, quality=0.1), baseline=None)
    assert goals.broken_known({"latency_ms": 1e9}) == []


def test_known_constraints_say_what_is_broken():
    constraints = tuple(parse_constraint(text) for text in ("latency_ms <= 4", "size_mb <= 10", "accuracy >= 0.5"))
    goals = Goals(metric="accuracy", objectives=("accuracy", "latency_ms"), constraints=constraints)
    assert goals.broken_known({"latency_ms": 4.5, "size_mb": 9.0}) == ["latency_ms 4.5 breaks 'latency_ms <= 4'"]
    assert goals.broken_known({"latency_ms": 4.0, "size_mb": None}) == []


def test_the_baseline_is_the_complete_fp32_record_of_its_plan():
    name = "f" * 64
    records = [
        make_record(0, quality=0.9),
        make_record(1, fingerprint=name, precision="int8", quality=0.6),
        make_record(2, fingerprint=name, status="failed", quality=None),
        make_record(3, fingerprint=name, quality=0.7),
    ]
    assert baseline_quality(records, name) == 0.7
    assert baseline_quality(records[:3], name) is None


# Budgets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "another", "reason"),
    [
        ({}, True, None),
        ({"trials": 10}, False, None),
        ({"trials": 11}, True, None),
        ({"minutes": 30}, False, "budget: 30 minutes are over"),
        ({"minutes": 30.5}, True, None),
        ({"device_hours": 2}, False, "budget: 2 device hours are used"),
        ({"trials": 11, "device_hours": 1.5}, False, "budget: 1.5 device hours are used"),
    ],
)
def test_a_budget_ends_at_whichever_comes_first(limits, another, reason):
    spent = Spent(trials=10, minutes=30, device_hours=2)
    assert Limits(**limits).allows_another(spent) is another
    assert Limits(**limits).time_is_up(spent) == reason


def test_device_hours_count_a_plan_once_and_leave_out_what_was_reused():
    records = [
        *_records(0, train_seconds=3600.0, prefix_seconds_saved=1800.0),
        make_record(1, status="stopped", quality=None, train_seconds=900.0),
        make_record(2, status="failed", quality=None),
        make_record(-1, record_id="shape-6-fp32-cpu", status="infeasible", quality=None),
    ]
    assert _tally(MemoryLedger(records=records)).seconds == pytest.approx(1800 + 900)


# What is at hand ------------------------------------------------------------------------------------------------------


def _tally(ledger, goals=_ONE_TARGET, baseline=""):
    costs = defaultdict(lambda: {"latency_ms": 2.0})
    return Tally(ledger, goals, costs=costs, baseline=baseline)


_ENDS = st.lists(st.sampled_from(["complete", "stopped", "failed"]), min_size=1, max_size=8)


@given(_ENDS, st.randoms(), st.sampled_from(["accuracy >= 0.9 * baseline", "latency_ms <= 4"]))
def test_a_tally_that_was_there_equals_one_that_is_made_afterwards(ends, rng, text):
    """Whatever the order in which plans end, and when the baseline comes to be known."""
    goals = Goals(metric="accuracy", objectives=("accuracy", "latency_ms"), constraints=(parse_constraint(text),))
    proposals = [replace(found, variants=(("fp32", "cpu"),)) for found in _proposals(len(ends))]
    baseline = proposals[0].draw.plan.fingerprint
    ledger = MemoryLedger()
    tally = _tally(ledger, goals, baseline)
    for proposal in proposals:
        ledger.propose(proposal)
        tally.propose(proposal)
    rng.shuffle(proposals)
    for at, proposal in enumerate(proposals):
        curve = ((0.5, 0.1 * at), (1.0, 0.5))
        tally.hear(proposal, Standing(started_at=0.0, curve=[curve[0]], curve_seconds=[4.0], seconds={0: 4.0}))
        ledger.append(_ended(proposal, ends[proposal.number], curve=curve, finished_at=float(at)))
        tally.forget(proposal.number)
        tally.settle(proposal)
        again = _tally(ledger, goals, baseline)
        assert (_by_number(again.race), again.outcomes) == (_by_number(tally.race), tally.outcomes)
        assert again.seconds == pytest.approx(tally.seconds) == pytest.approx(9.0 * (at + 1))
        finished = [proposal for proposal in ledger.proposals if ledger.is_finished(proposal)]
        known = baseline_quality(ledger.records, baseline)
        assert tally.outcomes == outcomes(finished, ledger.records, goals, baseline=known)


def _by_number(race):
    """What does not depend on the order in which plans ended."""
    points = sorted(race.points, key=lambda point: (point.quality, point.costs))
    entries = {number: repr(entry) for number, entry in race.entries.items()}
    return entries, points, race.floor, sorted(race.places(0.5).numbers)


def _ended(proposal, status, **changes):
    return make_record(
        proposal.number,
        fingerprint=proposal.draw.plan.fingerprint,
        status=status,
        quality=0.5 + 0.05 * proposal.number if status == "complete" else None,
        train_seconds=10.0,
        prefix_seconds_saved=1.0,
        **changes,
    )
