"""A plan that was stopped, gone on with when every plan was had and time is left."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import (
    GOALS,
    PRECISIONS,
    SPACE,
    TARGETS,
    Case,
    Ears,
    Killed,
    World,
    carry_out,
    empty_memory,
    ledger_of,
    new_conductor,
    run_search,
    without_times,
)

from search.aside import NUM_KEPT, Aside
from search.conductor import DONE, WAIT
from search.history import outcomes
from search.memory_ledger import Proposal
from search.scheduler import NeverStop
from spaces.draw import opening
from spaces.objectives import parse_constraint

_HOUR = 3600.0


class _StopsOnce(NeverStop):
    """Stops every plan at its first report, and thinks the better of the later ones."""

    reason = "enough for now"

    def is_due(self, curve):
        return curve[-1][0] < 1.0

    def goes_on(self, number, race):
        return len(race.entries[number].curve) > 1

    def reach(self, number, race):
        return float(number) if number in race.entries and math.isnan(race.entries[number].end) else None


@pytest.fixture(autouse=True)
def _empty_memory():
    yield
    empty_memory()


def _case(**changes):
    return Case(**({"trials": 12, "minutes": 1000, "scheduler": _StopsOnce()} | changes))


def _rests(world):
    return [proposal for proposal in ledger_of(world).proposals if proposal.resumes is not None]


@pytest.mark.parametrize("seats", [1, 3])
def test_when_every_plan_was_had_the_stopped_ones_are_trained_to_their_end(seats):
    ears, world = Ears(), run_search(_case(seats=seats))
    ledger = ledger_of(world)
    stopped = [record for record in ledger.records if record.status == "stopped"]
    rests = _rests(world)
    assert stopped
    assert [proposal.number for proposal in rests] == list(range(12, 12 + len(stopped)))
    assert {proposal.resumes for proposal in rests} == {record.number for record in stopped}
    assert all(proposal.draw == ledger.proposals[proposal.resumes].draw for proposal in rests)
    for proposal in rests:
        records = ledger.records_of(proposal.number)
        assert {record.resumes for record in records} == {f"t{proposal.resumes:05d}"}
        assert {record.status for record in records} == {"complete"}
        assert len(records) == len(proposal.variants) == len(PRECISIONS) * len(TARGETS)
    assert len(set(world.trained)) == len(world.trained)
    assert world.checkpoints == {}
    assert run_search(_case(seats=seats), world, ears).now == world.now
    assert ears.heard == [], "the search is done"


def test_the_furthest_reach_comes_first():
    rests = _rests(run_search(_case()))
    resumed = [proposal.resumes for proposal in rests]
    assert len(resumed) > 3
    assert resumed == sorted(resumed, reverse=True)


@pytest.mark.parametrize(
    "changes", [{"minutes": None}, {"scheduler": type("_Blind", (_StopsOnce,), {"reach": lambda *_: None})()}]
)
def test_nothing_is_gone_on_with_where_time_is_not_limited_or_nothing_tells(changes):
    world = run_search(_case(**changes))
    assert any(record.status == "stopped" for record in ledger_of(world).records)
    assert _rests(world) == []
    assert world.checkpoints == {}


def test_nothing_is_gone_on_with_that_is_not_expected_to_reach_the_front():
    class _Hopeless(_StopsOnce):
        def reach(self, number, race):
            return None if super().reach(number, race) is None else -1.0

    world = run_search(_case(scheduler=_Hopeless()))
    assert {record.reach for record in ledger_of(world).records if record.status == "stopped"} == {-1.0}
    assert _rests(world) == []


def test_what_was_spent_is_counted_once():
    case = _case(minutes=None, device_hours=100)
    world = run_search(case)
    assert _rests(world)
    assert new_conductor(world, case).spent.device_hours * _HOUR == pytest.approx(world.now - 1_000)
    rows = {record.number: record for record in ledger_of(world).records}
    spent = sum(record.train_seconds - record.prefix_seconds_saved for record in rows.values())
    assert spent == pytest.approx(world.now - 1_000)
    assert new_conductor(world, case).spent.trials == 12


def test_a_plan_whose_checkpoint_is_lost_is_trained_again_and_pays_for_it():
    case, world = _case(minutes=None, device_hours=100), World()
    world.checkpoints = _Forgetful()
    run_search(case, world)
    assert _rests(world)
    assert new_conductor(world, case).spent.device_hours * _HOUR == pytest.approx(world.now - 1_000)
    assert without_times(world)[1] == without_times(run_search(case))[1]


class _Forgetful(dict):
    def __setitem__(self, key, value):
        pass


def test_no_more_checkpoints_are_kept_than_plans_are_thought_of():
    class _Counted(dict):
        most = 0

        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            self.most = max(self.most, len(self))

    world = World(checkpoints=_Counted())
    run_search(_case(trials=30), world)
    assert sum(record.status == "stopped" for record in ledger_of(world).records) > NUM_KEPT + 3
    assert world.checkpoints.most == NUM_KEPT


_SHORT = _case(trials=8, goals=replace(GOALS, constraints=(parse_constraint("accuracy >= 0.5 * baseline"),)))


@pytest.fixture(scope="module")
def undisturbed():
    return without_times(run_search(_SHORT))


@given(moments=st.lists(st.integers(90, 165), min_size=1, max_size=2))
@settings(max_examples=5)
def test_a_search_that_is_killed_goes_on_with_the_same_plans(undisturbed, moments):
    empty_memory()
    world = World()
    for moment in moments:
        world.moments_left = moment
        try:
            run_search(_SHORT, world)
        except Killed:
            continue
    world.moments_left = None
    assert without_times(run_search(_SHORT, world)) == undisturbed
    assert len(set(world.trained)) == len(world.trained)


def test_a_plan_is_not_judged_again_where_it_was_stopped():
    class _Strict(_StopsOnce):
        def goes_on(self, number, race):
            return race.entries[number].curve[-1][0] > 0.5

    world = run_search(_case(scheduler=_Strict()))
    ledger = ledger_of(world)
    fidelities = {proposal.number: ledger.records_of(proposal.number)[0].fidelity for proposal in ledger.proposals}
    assert any(proposal.resumes in {other.number for other in _rests(world)} for proposal in _rests(world))
    assert all(fidelities[proposal.number] > fidelities[proposal.resumes] for proposal in _rests(world))


def test_who_waits_for_a_rest_waits_for_what_is_under_way():
    case = _case(trials=2, seats=2)
    world = World()
    conductor = new_conductor(world, case)
    first, _ = conductor.next(), conductor.next()
    assert conductor.next() == WAIT, "what is under way may still be stopped, and be worth its rest"
    assert new_conductor(World(), replace(case, minutes=None)).next() != DONE
    work = carry_out(world, first, case.faults)
    _, progress = next(work)
    assert conductor.goes_on(first.number, progress), "the first of its strategy"


def test_a_live_search_knows_what_its_ledger_tells():
    case, world = _case(), World()
    run_search(case, world)
    ledger, conductor = ledger_of(world), new_conductor(world, case)
    assert list(conductor._tally.outcomes) == outcomes(ledger.proposals, ledger.records, GOALS, baseline=None)
    resumed = {proposal.resumes for proposal in _rests(world)}
    assert resumed.isdisjoint(conductor._tally.race.entries)
    assert conductor.promising is None


@given(st.permutations(range(2 * NUM_KEPT)), st.lists(st.sampled_from([-1.0, -0.5, 0.0]), min_size=16, max_size=16))
def test_the_nearest_are_the_same_in_whatever_order_they_were_stopped(order, reaches):
    draw = next(iter(opening(SPACE)))
    found = Aside()
    for number in order:
        found.put(Proposal(number=number, draw=draw, variants=()), reach=reaches[number])
    expected = sorted(range(2 * NUM_KEPT), key=lambda number: (-reaches[number], number))
    assert [proposal.number for proposal in found.nearest] == expected[:NUM_KEPT]
    found.take(expected[0])
    assert [proposal.number for proposal in found.nearest] == expected[1 : NUM_KEPT + 1]
