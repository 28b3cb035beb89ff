"""What a study found, for those who show it and those who compute with it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from search.simulation.comparison import Comparison, Score, Traces, by_workers, compare
from search.simulation.study import Cell, Study
from search.simulation.trace import Trace, Yardstick


@dataclass(frozen=True)
class Findings:
    """All searches of a study, and how the competitors stand to each other."""

    name: str
    """Of the problem."""
    study: Study
    yardstick: Yardstick
    found: Mapping[Cell, Trace]

    @cached_property
    def traces(self) -> dict[int, Traces]:
        """By the number of workers and competitor."""
        return by_workers(self.study, self.found)

    @property
    def budget(self) -> float | None:
        """The cost that every search had; None where the number of trainings was the limit."""
        hours = self.study.limits.device_hours
        return None if hours is None else hours * 3600

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """One for each number of workers."""
        return [compare(traces, workers=workers, budget=self.budget) for workers, traces in self.traces.items()]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        goals = self.yardstick.goals
        reference = (self.yardstick.reference * goals.signs).tolist()
        return {
            "problem": self.name,
            "objectives": dict(zip(goals.objectives, goals.directions, strict=True)),
            "reference": dict(zip(goals.objectives, reference, strict=True)),
            "hypervolume": self.yardstick.whole,
            "trainings": len(self.yardstick.table.trainings),
            "seeds": self.study.num_seeds,
            "trials": self.study.limits.trials,
            "cost": self.budget,
            "comparisons": [self._comparison(comparison) for comparison in self.comparisons],
        }

    def _comparison(self, comparison: Comparison) -> dict[str, Any]:
        traces = self.traces[comparison.workers]
        return {
            "workers": comparison.workers,
            "budget": comparison.budget,
            "competitors": [
                _score(score) | {"searches": [asdict(trace) for trace in traces[score.competitor]]}
                for score in comparison.scores
            ],
        }


def _score(score: Score) -> dict[str, Any]:
    return {
        "name": score.competitor.name,
        **asdict(score.competitor),
        "shares": {f"{fraction:g}": asdict(spread) for fraction, spread in score.shares.items()},
        "rank": score.rank,
        "stopped": score.stopped,
        "beaten": score.beaten,
        "saved": score.saved,
        "cost": score.cost,
        "proposal_ms": score.proposal_ms,
        "results_per_s": score.results_per_s,
        "speed_up": {other.name: asdict(speed_up) for other, speed_up in score.speed_ups.items()},
    }
