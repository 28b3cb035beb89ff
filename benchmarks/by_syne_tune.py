"""Syne Tune's MOASHA [Salinas2021] as the scheduler of a simulated search: its own class, told as its tuner tells it.

Its resource is the number of reports, its rungs and all else are its defaults. Plans are random ones, as it suggests
them. It minimises what a plan has shown at a report: quality, known costs, and those that grow with training.

As published it ranks wrongly: it takes the *order* of the sorted plans for each plan's rank, so that of [2, 2], [3, 3],
[4, 4], [1, 1] the last one, which beats all, is stopped; within a front it takes ranks for an order; and the distances
by which it spreads the plans of a front are those of the plain numbers, so that the largest unit decides. ``InOrder``
mends all three.

Needs the package and dill, not all that it declares:  pip install --no-deps -c constraints.txt syne-tune
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from syne_tune.backend.trial_status import Trial
from syne_tune.optimizer.scheduler import SchedulerDecision
from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA
from syne_tune.optimizer.schedulers.multiobjective.multiobjective_priority import MOPriority, NonDominatedPriority
from syne_tune.optimizer.schedulers.multiobjective.non_dominated_priority import compute_epsilon_net

from search.entries import Entry
from search.pareto import domination_ranks
from search.race import Race
from search.records import Curve
from search.simulation.simulate import goals_of
from search.simulation.table import Table

_RESOURCE = "training_iteration"


class InOrder(NonDominatedPriority):
    """The published ranking, mended: by front, within a front spread as [Clarkson2006], all objectives on [0, 1]."""

    def priority_unsafe(self, objectives: NDArray[np.float64]) -> NDArray[np.int64]:
        """The rank of each of n × m ``objectives``, 0 for the best."""
        spans = np.ptp(objectives, axis=0)
        points = (objectives - objectives.min(axis=0)) / np.where(spans > 0, spans, 1.0)
        # Ours for the fronts, which are the same: its own took two thirds of a search's time on LCBench.
        fronts, ranks = domination_ranks(points), np.empty(len(points), dtype=np.int64)
        for front in np.unique(fronts):
            there = np.flatnonzero(fronts == front)
            # For each of its items: what it gives are ranks, which ``nondominated_sort`` takes for an order.
            ranks[there] = np.sum(fronts < front) + compute_epsilon_net(points[there], dim=self.dim)
        return ranks


@dataclass
class Moasha:
    """One search's. It remembers the reports it was told, in their order: that is what it decides by."""

    max_reports: int
    """Of any training."""
    num_objectives: int
    """That show at a report."""
    ranking: type[MOPriority]
    reason: ClassVar[str] = "MOASHA: not among the best third at its rung"
    _told: dict[int, int] = field(default_factory=dict, init=False)
    """How many reports of each plan it was told."""

    def __post_init__(self) -> None:
        self._metrics = [f"objective {index}" for index in range(self.num_objectives)]
        self._rule = MOASHA(
            {}, self._metrics, multiobjective_priority=self.ranking(), max_t=self.max_reports, random_seed=0
        )

    def is_due(self, curve: Curve) -> bool:  # noqa: ARG002
        """At every report."""
        return True

    def goes_on(self, number: int, race: Race) -> bool:
        """What MOASHA says, told first what a search let pass without asking: the first plan of each strategy."""
        for other, entry in race.entries.items():
            if other != number and self._told.get(other, 0) < len(entry.curve):
                self._tell(other, entry)
        entry = race.entries[number]
        # At its end MOASHA says stop as well: there is nothing more to train.
        return self._tell(number, entry) != SchedulerDecision.STOP or entry.curve[-1][0] >= 1

    def reach(self, number: int, race: Race) -> None:
        """MOASHA goes on with nothing that it stopped."""

    def _tell(self, number: int, entry: Entry) -> str:
        """The reports that are new; its word on the last one."""
        said, trial = SchedulerDecision.CONTINUE, Trial(number, {}, datetime.min)
        if number not in self._told:
            self._rule.on_trial_add(trial)
        for count in range(self._told.get(number, 0) + 1, len(entry.curve) + 1):
            shown = entry.at(entry.curve[count - 1][0])
            assert shown is not None, entry
            values = dict(zip(self._metrics, (-shown[0], *shown[1:]), strict=True))
            said = self._rule.on_trial_result(trial, {_RESOURCE: count, **values})
        self._told[number] = len(entry.curve)
        return said


RANKINGS: Mapping[str, type[MOPriority]] = {"moasha": NonDominatedPriority, "moasha_mended": InOrder}
"""By the name of the scheduler."""


def schedulers_for(table: Table) -> dict[str, Callable[[], Moasha]]:
    """As published, and mended; each makes one for a search of ``table``."""
    goals = goals_of(table)
    of = goals.columns
    shown = [name for name in goals.objectives if name == goals.metric or of[name].known or of[name].grows]
    reports = max(len(training.curve) for training in table.trainings)
    return {
        name: partial(Moasha, max_reports=reports, num_objectives=len(shown), ranking=ranking)
        for name, ranking in RANKINGS.items()
    }
