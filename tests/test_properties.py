"""What holds of every search: whatever was found, in whichever order it came, and before and after a restart."""

import random
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import make_space

from search.clerk import Standing
from search.foreknown import CostTableForeknown
from search.goals import Goals
from search.memory_ledger import MemoryLedger, Proposal
from search.records import Record
from search.sampler import make_sampler
from search.scheduler import SCHEDULERS, make_scheduler
from search.standings import Standings
from search.tally import Tally
from spaces.choosers import FixedChooser, RandomChooser
from spaces.draw import draw, restrict, shapes
from spaces.methods.finetune import baseline
from spaces.objectives import parse_constraint

_SPACE = make_space()
_VARIANTS = (("fp32", "cpu"), ("int8", "cpu"))
_CONSTRAINTS = (parse_constraint("accuracy >= 0.6 * baseline"),)
_GOALS = Goals(metric="accuracy", objectives=("accuracy", "latency_ms"), constraints=_CONSTRAINTS)
_COSTS = {
    (shape, precision, "cpu"): {"latency_ms": (shape.num_layers or 6) * (0.4 if precision == "int8" else 1.0)}
    for shape in shapes(_SPACE)
    for precision, _ in _VARIANTS
}
_SAMPLERS = ("known_cost", "tpe", "random")


def _draws(count, *, space=_SPACE, seed=0):
    rng, found = random.Random(seed), {}
    while len(found) < count:
        one = draw(space, RandomChooser(rng))
        found[one.fingerprint] = one
    return list(found.values())


_DRAWS = _draws(16)


@dataclass(frozen=True)
class _Told:
    """Proposals, all of them under way or ended, and the records of those that have."""

    proposals: list[Proposal]
    records: list[Record]

    def tally(self) -> Tally:
        """Made of a ledger that holds them in this order."""
        ledger = MemoryLedger(proposals=self.proposals, records=self.records)
        return Tally(ledger, _GOALS, costs=_COSTS, baseline=baseline(_SPACE).fingerprint)

    @property
    def running(self):
        """Plans that have no record."""
        ended = {record.number for record in self.records}
        return [proposal.draw for proposal in self.proposals if proposal.number not in ended]


@st.composite
def _told(draw_):
    """Ends and curves of plans; times and qualities are of a few, so that there are ties."""
    end = st.sampled_from(["complete", "complete", "stopped", "failed", "running"])
    ends = draw_(st.lists(end, min_size=6, max_size=14))
    proposals = [Proposal(number=n, draw=_DRAWS[n], variants=_VARIANTS) for n in range(len(ends))]
    quality, at = st.sampled_from([0.3, 0.5, 0.55, 0.7, 0.9]), st.sampled_from([0.0, 1.0, 2.0])
    records = [
        record
        for proposal, end in zip(proposals, ends, strict=True)
        if end != "running"
        for record in _records(proposal, end, quality=draw_(quality), half=draw_(quality), finished_at=draw_(at))
    ]
    return _Told(proposals, records)


def _records(proposal, status, *, quality, half, finished_at):
    whole = status == "complete"
    for precision, target in _VARIANTS if whole else _VARIANTS[:1]:
        yield Record(
            **proposal.names(precision, target),
            estimated=False,
            status=status,
            quality=quality - 0.01 * (precision == "int8") if whole else None,
            curve=((0.5, half), (1.0, quality)) if whole else ((0.5, half),),
            train_seconds=10.0 + proposal.number % 3,
            finished_at=finished_at,
            **_COSTS[(proposal.draw.plan.shape, precision, target)],
        )


def _next(name, told, tally):
    foreknown = CostTableForeknown(_GOALS, _COSTS, ("fp32", "int8"), share_left=lambda _: 1.0)
    sampler = make_sampler(name, draw=partial(draw, _SPACE), goals=_GOALS, seed=5, foreknown=foreknown)
    return sampler(tally.outcomes, told.running, len(told.proposals))


def _judged(name, tally, *, quality, halves=(0.3, 0.5, 0.6, 0.8)):
    """Whether another plan goes on half-way, at each of these qualities."""
    proposal, found = Proposal(number=99, draw=_DRAWS[-1], variants=_VARIANTS), []
    for half in (*halves, quality):
        standing = Standing(started_at=0.0, curve=[(0.5, half)], curve_seconds=[5.0], seconds={0: 5.0})
        tally.hear(proposal, standing)
        found.append(make_scheduler(name).goes_on(99, tally.race))
        tally.forget(99)
    return found


# The order of arrival ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _SAMPLERS)
@settings(max_examples=4)
@given(told=_told(), rng=st.randoms(use_true_random=False))
def test_records_in_any_order_give_the_same_proposal(name, told, rng):
    shuffled = _Told(rng.sample(told.proposals, len(told.proposals)), rng.sample(told.records, len(told.records)))
    assert _next(name, told, told.tally()) == _next(name, shuffled, shuffled.tally())


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@settings(max_examples=25)
@given(told=_told(), rng=st.randoms(use_true_random=False), quality=st.floats(0.2, 1.0))
def test_records_in_any_order_give_the_same_decision(name, told, rng, quality):
    shuffled = _Told(rng.sample(told.proposals, len(told.proposals)), rng.sample(told.records, len(told.records)))
    assert _judged(name, told.tally(), quality=quality) == _judged(name, shuffled.tally(), quality=quality)


# A restart ---------------------------------------------------------------------------------------------------------


def _lived(told):
    """The tally of a search that has heard of everything as it happened."""
    ledger = MemoryLedger()
    tally = Tally(ledger, _GOALS, costs=_COSTS, baseline=baseline(_SPACE).fingerprint)
    for proposal in told.proposals:
        ledger.propose(proposal)
        tally.propose(proposal)
    times = {record.number: record.finished_at for record in told.records}
    for number in sorted(times, key=times.__getitem__):
        own = [record for record in told.records if record.number == number]
        curve = list(own[0].curve[:1])
        tally.hear(told.proposals[number], Standing(started_at=0.0, curve=curve, curve_seconds=[4.0], seconds={0: 4.0}))
        for record in reversed(own):
            ledger.append(record)
        tally.forget(number)
        tally.settle(told.proposals[number])
    return tally


@pytest.mark.parametrize("name", _SAMPLERS)
@settings(max_examples=4)
@given(told=_told())
def test_a_ledger_that_is_read_again_gives_the_same_proposal(name, told):
    assert _next(name, told, _lived(told)) == _next(name, told, told.tally())


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@settings(max_examples=25)
@given(told=_told(), quality=st.floats(0.2, 1.0))
def test_a_ledger_that_is_read_again_gives_the_same_decision(name, told, quality):
    assert _judged(name, _lived(told), quality=quality) == _judged(name, told.tally(), quality=quality)


# What is proposed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _SAMPLERS)
@settings(max_examples=4)
@given(told=_told())
def test_a_proposal_is_a_member_of_the_space_and_new(name, told):
    found = _next(name, told, told.tally())
    assert draw(_SPACE, FixedChooser({"strategy": found.strategy, **found.params})) == found
    assert found.fingerprint not in {proposal.draw.fingerprint for proposal in told.proposals}


@pytest.mark.parametrize("name", _SAMPLERS)
@settings(max_examples=4)
@given(data=st.data())
def test_what_is_known_to_be_infeasible_is_never_proposed(name, data):
    """Any shape may break the constraint at any precision; what a search draws from is what is left of the space."""
    size = st.sampled_from([1.0, 50.0])
    costs = {key: {**cost, "size_mb": data.draw(size)} for key, cost in _COSTS.items()}
    goals = replace(_GOALS, constraints=(parse_constraint("size_mb <= 10"),))

    def feasible(shape):
        return any(not goals.broken_known(cost) for (of, _, _), cost in costs.items() if of == shape)

    space = restrict(_SPACE, feasible)
    if not space.strategies:
        assert not any(feasible(shape) for shape in space.student_shapes)
        return
    foreknown = CostTableForeknown(goals, costs, ("fp32", "int8"), share_left=lambda _: 1.0)
    sampler = make_sampler(name, draw=partial(draw, space), goals=goals, seed=1, foreknown=foreknown)
    tally = Tally(MemoryLedger(), goals, costs=costs, baseline="")
    running = []
    for number in range(3):
        running.append(sampler(tally.outcomes, running, number))
        assert feasible(running[-1].plan.shape)


# Fronts ------------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(told=_told(), data=st.data())
def test_a_record_that_another_one_beats_changes_no_front(told, data):
    complete = [record for record in told.records if record.status == "complete"]
    if not complete:
        return
    best = data.draw(st.sampled_from(complete))
    worse = replace(
        best,
        quality=best.quality - data.draw(st.sampled_from([0.0, 0.05])),
        latency_ms=best.latency_ms + data.draw(st.sampled_from([0.5, 3.0])),
    )
    fronts = []
    for records in (complete, [*complete, worse], [worse, *complete]):
        standings = Standings(_GOALS, _COSTS)
        for record in records:
            standings.settle(told.proposals[record.number], [record])
        fronts.append({(point.quality, point.costs) for point in standings.race.points})
    assert fronts[0] == fronts[1] == fronts[2]
    assert np.isfinite([quality for quality, _ in fronts[0]]).all()
