"""How competitors of a study stand to each other, at one number of workers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search.simulation.study import Cell, Competitor, Study
from search.simulation.trace import Trace

FRACTIONS = (0.1, 0.2, 0.3, 0.6, 1.0)
"""Of the budget, at which the hypervolume is told."""

Traces = Mapping[Competitor, Sequence[Trace]]
"""Of each competitor, by seed."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Quartiles over seeds."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, kw_only=True)
class SpeedUp:
    """How many times less one competitor spent until it had what another one ended with."""

    median: float
    """Over seeds, each with its own; 0 where at least half of them never had it."""
    num_never: int
    """Seeds that never had it."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One competitor."""

    competitor: Competitor
    shares: Mapping[float, Spread]
    """Share of the table's hypervolume, by fraction of the budget."""
    rank: float
    """By the hypervolume at the end, 1 for the best, mean over seeds; equal ones share theirs."""
    stopped: float
    """Share of the cost that went into trainings which were stopped or failed, mean over seeds."""
    beaten: float
    """Share of the cost that went into complete trainings which are not on the final front, mean over seeds."""
    saved: float
    """Cost that shared beginnings saved, mean over seeds."""
    cost: float
    """Spent on training, median over seeds."""
    proposal_ms: float
    results_per_s: float
    """Our own time, the latter the processor's, medians over seeds."""
    speed_ups: Mapping[Competitor, SpeedUp]
    """Against each other competitor."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All competitors at one number of workers."""

    workers: int
    budget: float
    """The cost that fractions are of."""
    scores: Sequence[Score]
    """In the order of the study."""


def by_workers(study: Study, found: Mapping[Cell, Trace]) -> dict[int, Traces]:
    """A study's traces by workers and competitor, each by seed."""
    seeds = range(study.num_seeds)
    return {
        workers: {
            competitor: [found[Cell(competitor=competitor, workers=workers, seed=seed)] for seed in seeds]
            for competitor in study.competitors
        }
        for workers in study.workers
    }


def compare(traces: Traces, *, workers: int, budget: float | None) -> Comparison:
    """How competitors stand; ``budget``: the cost that all had, None where the number of trainings was the limit.

    Fractions are then of what the one that spent most did spend.
    """
    of = budget or max(float(np.median([found.cost for found in each])) for each in traces.values())
    ranks = _ranks(traces)
    scores = [_score(competitor, traces, budget=of, rank=ranks[competitor]) for competitor in traces]
    return Comparison(workers=workers, budget=of, scores=scores)


def _score(competitor: Competitor, traces: Traces, *, budget: float, rank: float) -> Score:
    own = traces[competitor]
    return Score(
        competitor=competitor,
        shares={fraction: spread([found.share_at(fraction * budget) for found in own]) for fraction in FRACTIONS},
        rank=rank,
        stopped=float(np.mean([found.stopped_cost / found.cost if found.cost else 0.0 for found in own])),
        beaten=float(np.mean([found.beaten_cost / found.cost if found.cost else 0.0 for found in own])),
        saved=float(np.mean([found.saved_cost for found in own])),
        cost=float(np.median([found.cost for found in own])),
        proposal_ms=float(np.median([found.proposal_ms for found in own])),
        results_per_s=float(np.median([found.results_per_s for found in own])),
        speed_ups={other: speed_up(own, traces[other]) for other in traces if other != competitor},
    )


def spread(values: Sequence[float]) -> Spread:
    """Quartiles of ``values``."""
    low, median, high = np.percentile(values, (25, 50, 75)).tolist()
    return Spread(low=low, median=median, high=high)


def speed_up(own: Sequence[Trace], others: Sequence[Trace]) -> SpeedUp:
    """How many times less ``own`` spent until it had what ``others`` ended with: seed by seed, since they had it."""
    found = []
    for ours, theirs in zip(own, others, strict=True):
        end = theirs.share[-1] if theirs.share else 0.0
        mine = ours.cost_to(end)
        found.append(theirs.cost_to(end) / mine if mine and math.isfinite(mine) else 0.0)
    never = found.count(0.0)
    return SpeedUp(median=0.0 if 2 * never >= len(found) else float(np.median(found)), num_never=never)


def _ranks(traces: Traces) -> dict[Competitor, float]:
    ends = np.array([[found.share[-1] if found.share else 0.0 for found in each] for each in traces.values()])
    better = (ends[:, None] < ends).sum(axis=1)
    equal = (ends[:, None] == ends).sum(axis=1) - 1
    return dict(zip(traces, (1 + better + equal / 2).mean(axis=1).tolist(), strict=True))
