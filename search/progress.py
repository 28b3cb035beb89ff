"""How far a search got, by what it had spent: hypervolume against seconds of training.

n = variants, m = objectives, all minimised; t = trials.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.budget import seconds_spent
from search.goals import Goals
from search.pareto import hypervolume
from search.records import Record
from spaces.objectives import OBJECTIVES

Points = NDArray[np.float64]

_MARGIN = 1.1
"""The reference point of the hypervolume, in ranges of each objective from its best value: the ends count too."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A search at the moment at which one of its trials ended."""

    seconds: float
    """Since the first trial began."""
    train_seconds: float
    """Training that was really spent on all trials that have ended."""
    trials: int
    hypervolume: float
    """Share of the box that feasible variants cover."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """The objectives, each scaled to a range: what hypervolume is a share of. 1 is best in everything."""

    goals: Goals
    target: str
    baseline: float | None
    """Quality that constraints may be relative to."""
    low: Points
    span: Points
    """m."""

    @classmethod
    def around(cls, records: Sequence[Record], goals: Goals, target: str, *, baseline: float | None) -> "Box":
        """From the best to the worst value of each objective among the complete variants on ``target``."""
        values = _logarithms(points_on(records, goals, target)[1], goals)
        if not len(values):
            values = np.zeros((1, len(goals.objectives)))
        with np.errstate(invalid="ignore"):
            low = np.nanmin(values, axis=0)
            span = np.nanmax(values, axis=0) - low
        return cls(goals=goals, target=target, baseline=baseline, low=low, span=np.where(span > 0, span, 1.0))

    def steps(self, records: Sequence[Record]) -> list[Step]:
        """After each trial of a search, in the order in which they ended."""
        complete, points = points_on(records, self.goals, self.target)
        feasible = np.array([self.goals.feasible(record, baseline=self.baseline) for record in complete], dtype=bool)
        scaled = (_logarithms(points, self.goals) - self.low) / self.span
        ends = np.array([record.finished_at for record in complete])
        of_trial: dict[str, list[Record]] = {}
        for record in records:
            if record.number >= 0:
                of_trial.setdefault(record.trial_id, []).append(record)
        start = min((trial[0].started_at for trial in of_trial.values()), default=0.0)
        found, spent = [], 0.0
        for trials, (until, trial) in enumerate(sorted(map(_ended, of_trial.values()), key=lambda one: one[0]), 1):
            spent += seconds_spent(trial)
            covered = self._share(scaled[feasible & (ends <= until)])
            found.append(Step(seconds=until - start, train_seconds=spent, trials=trials, hypervolume=covered))
        return found

    def _share(self, scaled: Points) -> float:
        num_objectives = len(self.low)
        return hypervolume(scaled, np.full(num_objectives, _MARGIN)) / _MARGIN**num_objectives


@dataclass(frozen=True, kw_only=True)
class Band:
    """Hypervolume on one target that several searches had by so many seconds of training."""

    train_seconds: tuple[float, ...]
    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]
    """Quartiles."""


@dataclass(frozen=True, kw_only=True)
class ByChance:
    """Random searches of a run's space, simulated."""

    bands: Mapping[str, Band]
    """By target; empty, with a note that says why, where there is too little to go by."""
    num_searches: int
    num_strategies: int
    """Of the space."""
    num_plans: int
    """Of the run, from which it was learned how plans go: the complete ones."""
    explained: float
    """Share of the variance of quality that is explained on plans that were left out; below 0: none of it."""
    note: str = ""


def points_on(records: Sequence[Record], goals: Goals, target: str) -> tuple[list[Record], Points]:
    """Complete variants on ``target`` and their objectives, all minimised: n × m, NaN where a value is not known."""
    found = [record for record in records if record.status == "complete" and record.target == target]
    rows = [[minimised(record.value(name, goals.metric), name) for name in goals.objectives] for record in found]
    return found, np.array(rows, dtype=float).reshape(len(found), len(goals.objectives))


def minimised(value: float | None, name: str) -> float:
    """The value of an objective so that less is better; NaN where there is none."""
    return np.nan if value is None else -OBJECTIVES[name].gain(value)


def _ended(trial: list[Record]) -> tuple[float, list[Record]]:
    return max(record.finished_at for record in trial), trial


def _logarithms(points: Points, goals: Goals) -> Points:
    """Costs that compare by factors by their logarithm."""
    found = points.copy()
    for column, name in enumerate(goals.objectives):
        if OBJECTIVES[name].direction == "min" and OBJECTIVES[name].by_factor:
            found[:, column] = np.log(np.maximum(points[:, column], 1e-12))
    return found
