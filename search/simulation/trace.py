"""How far a simulated search got, by what it had spent: hypervolume against cost, and where the cost went."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from search.budget import seconds_spent
from search.goals import Goals
from search.pareto import Points, StreamingFront, hypervolume, non_dominated
from search.records import Record
from search.simulation.simulate import Simulated, goals_of
from search.simulation.table import Table
from search.spec_errors import SpecError

_BEYOND = 0.1
"""How far beyond the table's worst the reference lies, as a share of its size."""


@dataclass(frozen=True)
class Yardstick:
    """What searches of one table are measured by; the same for all of them."""

    table: Table

    @cached_property
    def goals(self) -> Goals:
        """Objectives and their directions."""
        return goals_of(self.table)

    @cached_property
    def reference(self) -> Points:
        """Beyond it nothing counts; minimised. The problem's own, or a tenth beyond the worst of the table."""
        given = self.table.problem.reference
        if given:
            return self._minimised(np.array([[given[name] for name in self.goals.objectives]]))[0]
        values = self._minimised(self.table.objectives)
        worst, spread = values.max(axis=0), np.ptp(values, axis=0)
        size = np.where(worst != 0, np.abs(worst), np.where(spread > 0, spread, 1.0))
        return np.asarray(worst + _BEYOND * size)

    @cached_property
    def whole(self) -> float:
        """Hypervolume of all that the table holds.

        Raises:
            SpecError: nothing of it is below the reference.
        """
        found = hypervolume(self._minimised(self.table.objectives), self.reference)
        if not found:
            raise SpecError(
                [f"{self.table.problem.table}: reference: no training that has a result lies within it; widen it"]
            )
        return found

    def point(self, record: Record) -> Points | None:
        """The objectives of a complete variant, minimised; None of any other."""
        values = self.goals.values([record]) if record.status == "complete" else None
        return None if values is None else self._minimised(np.array([values]))[0]

    def _minimised(self, values: Points) -> Points:
        return values * np.array(self.goals.signs)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One search, as it went."""

    spent: Sequence[float]
    """Cost of training on all workers until each gain."""
    share: Sequence[float]
    """Hypervolume from then on, as a share of the table's."""
    cost: float
    """All that was spent on training."""
    stopped_cost: float
    """Of that, on trainings that ended without a result, stopped or failed, and were not gone on with."""
    beaten_cost: float
    """Of that, on trainings with results none of which is on the final front."""
    saved_cost: float
    """What shared beginnings saved."""
    makespan: float
    """Virtual time from start to end."""
    num_trials: int
    num_stopped: int
    proposal_ms: float
    """Median of our time for a proposal."""
    results_per_s: float
    """Trials that were handled in a second of our processor's time, proposals included."""

    def share_at(self, cost: float) -> float:
        """Share of the hypervolume when ``cost`` was spent; the last one where it never was."""
        reached = bisect_right(self.spent, cost)
        return self.share[reached - 1] if reached else 0.0

    def cost_to(self, share: float) -> float:
        """What was spent when the hypervolume first reached ``share``; infinite where it never did."""
        # A sum of gains may miss in its last digits what another sum of the same gains has reached.
        at = bisect_left(self.share, share * (1 - 1e-9))
        return self.spent[at] if at < len(self.spent) else math.inf


def trace(simulated: Simulated, yardstick: Yardstick) -> Trace:
    """What is to be said of a search."""
    records, whole = simulated.records, yardstick.whole
    of_trial = {record.number: record for record in records}
    costs = {number: seconds_spent([record]) for number, record in of_trial.items()}
    ended = {record.number for record in records if yardstick.point(record) is not None}
    gone_on = {record.resumes for record in records}
    stopped = {record.number for record in of_trial.values() if record.trial_id not in gone_on} - ended
    gains = _gains(records, yardstick)
    beaten = ended - _on_front(records, yardstick)
    return Trace(
        spent=_spent_at(list(gains), list(of_trial.values())),
        share=[volume / whole for volume in gains.values()],
        cost=sum(costs.values()),
        stopped_cost=sum(cost for number, cost in costs.items() if number in stopped),
        beaten_cost=sum(cost for number, cost in costs.items() if number in beaten),
        saved_cost=sum(record.prefix_seconds_saved for record in of_trial.values()),
        makespan=max((record.finished_at for record in records), default=0.0),
        num_trials=simulated.num_trials,
        num_stopped=sum(of_trial[number].status == "stopped" for number in stopped),
        proposal_ms=1e3 * float(np.median(simulated.proposal_s)) if simulated.proposal_s else 0.0,
        results_per_s=len(of_trial) / max(simulated.driver_s, 1e-9),
    )


def _gains(records: Sequence[Record], yardstick: Yardstick) -> dict[float, float]:
    """Hypervolume by the time since which it is that, at every rise; records come in the order of time."""
    rising, found = _Rising(yardstick.reference), {}
    for record in records:
        point = yardstick.point(record)
        if point is not None and (volume := rising.add(point)) is not None:
            found[record.finished_at] = volume
    return found


class _Rising:
    """The hypervolume of points that come one by one."""

    def __init__(self, reference: Points) -> None:
        self._reference = reference
        self._plane = StreamingFront(reference.tolist()) if len(reference) == 2 else None
        self._front: Points = np.empty((0, len(reference)))
        self._volume = 0.0

    def add(self, point: Points) -> float | None:
        """The hypervolume with ``point``; None where it adds nothing."""
        if self._plane is not None:
            return self._plane.hypervolume if self._plane.add(point.tolist()) > 0 else None
        if (self._front <= point).all(axis=1).any():
            return None
        front = np.vstack([self._front, point])
        self._front = front[non_dominated(front)]
        before, self._volume = self._volume, hypervolume(self._front, self._reference)
        return self._volume if self._volume > before else None


def _on_front(records: Sequence[Record], yardstick: Yardstick) -> set[int]:
    """Trials with a variant on the final front."""
    found = [(record.number, point) for record in records if (point := yardstick.point(record)) is not None]
    front = non_dominated(np.array([point for _, point in found]).reshape(-1, len(yardstick.reference)))
    return {number for (number, _), on_front in zip(found, front, strict=True) if on_front}


def _spent_at(times: Sequence[float], trials: Sequence[Record]) -> list[float]:
    """What all workers together had spent on training at each of ``times``: a trial trains from start to end."""
    starts = np.sort([record.started_at for record in trials])
    ends = np.sort([record.finished_at for record in trials])
    return [_until(time, starts) - _until(time, ends) for time in times]


def _until(time: float, marks: NDArray[np.float64]) -> float:
    """The sum of ``time`` - mark over the marks before it."""
    passed = marks[: np.searchsorted(marks, time)]
    return float(time * len(passed) - passed.sum())
