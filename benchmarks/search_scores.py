"""What ``search_quality.py`` says of competitors, some of whom may have had fewer seeds than others.

Two are compared on the seeds that both had.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from search.simulation.comparison import Score, Traces, compare, spread
from search.simulation.study import Competitor

POINTS = 20
"""Of a curve of hypervolume against cost."""


@dataclass(frozen=True)
class Field:
    """All competitors on one problem at one number of workers."""

    traces: Traces
    """Each by seed from 0 on."""
    workers: int

    @cached_property
    def budget(self) -> float:
        """What the one that spent most did spend, median over seeds."""
        return max(float(np.median([found.cost for found in each])) for each in self.traces.values())

    @cached_property
    def scores(self) -> Mapping[Competitor, Score]:
        """Each on all of its own seeds; the rank on those that all had."""
        found: dict[Competitor, Score] = {}
        for count in sorted({len(each) for each in self.traces.values()}):
            there = {one: each[:count] for one, each in self.traces.items() if len(each) >= count}
            for score in compare(there, workers=self.workers, budget=self.budget).scores:
                before = found.get(score.competitor, score)
                speed_ups = {**before.speed_ups, **score.speed_ups}
                found[score.competitor] = replace(score, rank=before.rank, speed_ups=speed_ups)
        return {competitor: found[competitor] for competitor in self.traces}

    def end(self, competitor: Competitor) -> float:
        """Its share of the hypervolume at the end, median over its seeds."""
        return self.scores[competitor].shares[1.0].median

    def ratio(self, one: Competitor, other: Competitor) -> float:
        """The first one's share of the hypervolume at the end, over the other's."""
        few = min(len(self.traces[one]), len(self.traces[other]))
        mine, its = (np.median([found.share[-1] for found in self.traces[who][:few]]) for who in (one, other))
        return float(mine / its)

    def costs(self, training: float) -> list[float]:
        """Where curves are told: from what one ``training`` costs to the whole budget, by equal factors."""
        return np.geomspace(min(training, self.budget), self.budget, POINTS).tolist()

    def plain(self, training: float) -> dict[str, Any]:
        """Plain values; ``training``: the mean cost of one."""
        costs = self.costs(training)
        scores = {
            one.name: {**_plain(score), "seeds": len(self.traces[one]), "curve": self._curve(one, costs)}
            for one, score in self.scores.items()
        }
        return {"workers": self.workers, "training_cost": training, "costs": costs, "scores": scores}

    def _curve(self, competitor: Competitor, costs: list[float]) -> list[list[float]]:
        """Quartiles of the share of the hypervolume at each cost."""
        quartiles = [spread([found.share_at(cost) for found in self.traces[competitor]]) for cost in costs]
        return [[at.low, at.median, at.high] for at in quartiles]


def _plain(score: Score) -> dict[str, Any]:
    return {
        "shares": {str(at): [found.low, found.median, found.high] for at, found in score.shares.items()},
        "speed_ups": {other.name: [up.median, up.num_never] for other, up in score.speed_ups.items()},
        "rank": score.rank,
        "stopped": score.stopped,
        "beaten": score.beaten,
        "cost": score.cost,
        "saved": score.saved,
        "proposal_ms": score.proposal_ms,
    }
