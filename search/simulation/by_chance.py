"""What random searches of a run's space would have reached, by simulation on what the run tells of that space."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from search.budget import Limits
from search.conductor import Setup
from search.foreknown import Works, work_of
from search.history import outcomes
from search.memory_ledger import MemoryLedger
from search.progress import Band, ByChance, Points, Step
from search.records import Record
from search.sampler import RandomSampler
from search.scheduler import NeverStop
from search.simulation.clock import Clock
from search.simulation.learned import LearnedPlans, Lessons
from search.simulation.workers import Recordings, search_through
from spaces.draw import draw
from spaces.methods.finetune import baseline
from spaces.space_json import SPACE

if TYPE_CHECKING:
    from search.run import Run

MIN_PLANS = 8
"""Complete ones, below which there is too little to learn from."""
_LEAST_EXPLAINED = 0.3
"""R² below which it is not said what plans would have reached."""
_SEARCHES = range(5, 12)
"""Fewest and most, so that a report is there in seconds."""
_PLANS = 600
"""Of all searches together, about."""
_MARKS = 60
"""Points of a band."""
_MOST = 300
"""Plans of a search."""


def by_chance(run: "Run") -> ByChance:
    """Simulate random searches that take as long as the run has trained: every plan to its end, beginnings shared.

    The same run, the same bands.
    """
    past = outcomes(run.ledger.proposals, run.records, run.goals, baseline=run.baseline_quality)
    past = [outcome for outcome in past if outcome.values is not None and outcome.train_seconds]
    num_plans = len({outcome.number for outcome in past})
    if num_plans < MIN_PLANS:
        return _nothing(f"with {num_plans} complete plans there is too little to go by; {MIN_PLANS} are needed")
    if run.space is None:
        return _nothing(f"it has no {SPACE} that this version can read; the same `distune search` once more writes it")
    lessons = Lessons.of(past, drawing=partial(draw, run.space), goals=run.goals, precisions=run.precisions)
    if lessons.explained < _LEAST_EXPLAINED:
        return _nothing(
            f"from its {num_plans} complete plans the quality of others cannot be told: of plans that are left out, "
            f"{max(0.0, lessons.explained):.0%} of the variance is explained, and {_LEAST_EXPLAINED:.0%} are needed"
        )
    boxes = {target: run.box(target) for target in run.goals.targets}
    until = boxes[run.goals.targets[0]].steps(run.records)[-1].train_seconds
    works = Works(partial(work_of, latency=run.full_precision_latency_s))
    found: dict[str, list[list[Step]]] = {target: [] for target in boxes}
    count = min(max(_PLANS // run.ledger.num_trials, _SEARCHES.start), _SEARCHES[-1])
    for seed in range(count):
        plans = LearnedPlans(lessons=lessons, works=works, seed=seed)
        records = _search(plans, run, Limits(trials=_MOST, device_hours=until / 3600))
        for target, box in boxes.items():
            found[target].append(box.steps(records))
    bands = {target: _band(steps, until) for target, steps in found.items()}
    return ByChance(
        bands=bands,
        num_searches=count,
        num_strategies=len(run.space.strategies),
        num_plans=num_plans,
        explained=lessons.explained,
    )


def _search(plans: LearnedPlans, run: "Run", limits: Limits) -> list[Record]:
    """One of them, with one worker: what is compared is what was trained, not how long it took."""
    assert run.space is not None
    clock, ledger, recordings = Clock(), MemoryLedger(), Recordings(plans.course)
    setup = Setup(
        goals=run.goals,
        costs=run.costs,
        estimated=frozenset(),
        opening=(),
        baseline=baseline(run.space).fingerprint,
        precisions=run.precisions,
        limits=limits,
    )
    sampler = RandomSampler(draw=partial(draw, run.space), seed=plans.seed)
    search_through(setup, recordings, sampler=sampler, scheduler=NeverStop(), ledger=ledger, clock=clock)
    return ledger.records


def _band(searches: Sequence[Sequence[Step]], until: float) -> Band:
    # Of a search that had its plans, nothing is known of later.
    until = min([until, *(steps[-1].train_seconds for steps in searches if len(steps) == _MOST)])
    marks = np.linspace(0.0, until, _MARKS)
    low, median, high = np.percentile([_reached(steps, marks) for steps in searches], (25, 50, 75), axis=0).tolist()
    return Band(train_seconds=tuple(marks.tolist()), low=tuple(low), median=tuple(median), high=tuple(high))


def _reached(steps: Sequence[Step], marks: Points) -> Points:
    """Hypervolume at each of ``marks``."""
    spent = [step.train_seconds for step in steps]
    volumes = np.array([0.0, *(step.hypervolume for step in steps)])
    return volumes[np.searchsorted(spent, marks, side="right")]


def _nothing(why: str) -> ByChance:
    return ByChance(bands={}, num_searches=0, num_strategies=0, num_plans=0, explained=0.0, note=why)
