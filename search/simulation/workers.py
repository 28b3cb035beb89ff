"""Virtual workers: they carry a plan out by reading what was recorded of it."""

import math
from collections.abc import Iterator, Mapping

from search.memory_ledger import Proposal
from search.simulation.clock import Work
from search.simulation.recorded import Training
from search.simulation.table import Table, TablePlan
from trainers.context import Progress
from trainers.results import Measured, Result


class Recordings:
    """The trainings of a table, and which shared beginnings are there already."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._there: set[str] = set()

    def missing(self, plan: TablePlan) -> set[str]:
        """Beginnings of ``plan`` that still have to be trained. Its end is nobody else's: a training answers once."""
        return set(self._beginnings(plan))

    def share_left(self, number: int) -> float:
        """The share of a training's whole cost that is still to be spent; 1 for one that costs nothing."""
        training = self._table.trainings[number]
        there = sum(cost for part, cost in training.parts.items() if part in self._there)
        return 1 - there / training.cost if training.cost else 1.0

    def carry_out(self, proposal: Proposal) -> Work:
        """One plan on a worker: its beginnings that are not there yet, then itself, with a report at each step."""
        training, beginnings = self._training(proposal.draw.plan), self._beginnings(proposal.draw.plan)
        for pause, progress in _reports(training, beginnings):
            if not (yield pause, progress):
                return None
            if not progress.final:
                self._there.add(progress.kind)
        return _result(training, spent=training.costs[-1] + sum(beginnings.values()))

    def _beginnings(self, plan: TablePlan) -> Mapping[str, float]:
        """Those that are not there, with what each costs."""
        return {part: cost for part, cost in self._training(plan).parts.items() if part not in self._there}

    def _training(self, plan: TablePlan) -> Training:
        assert plan.shape is not None, plan
        return self._table.trainings[plan.shape]


def _reports(training: Training, beginnings: Mapping[str, float]) -> Iterator[tuple[float, Progress]]:
    """(seconds since the report before, report); a beginning's name is the kind of its stage."""
    count = len(beginnings) + 1
    for stage, (part, cost) in enumerate(beginnings.items()):
        yield cost, _progress(stage, count, kind=part, epoch=1, epochs=1, seconds=cost)
    before = 0.0
    for step, quality, cost in zip(training.steps, training.qualities, training.costs, strict=True):
        seen = quality if math.isfinite(quality) else None
        yield (
            cost - before,
            _progress(count - 1, count, epoch=step, epochs=training.steps[-1], final=True, quality=seen, seconds=cost),
        )
        before = cost


def _progress(stage: int, num_stages: int, **told: object) -> Progress:
    defaults = {"kind": "training", "final": False, "quality": None, "train_loss": math.nan}
    return Progress(stage=stage, num_stages=num_stages, **(defaults | told))  # type: ignore[arg-type]


def _result(training: Training, *, spent: float) -> Result:
    variants = (
        Measured(precision=name, value=found.quality, low=found.quality, high=found.quality, predictions=())
        for name, found in training.variants.items()
    )
    return Result(
        variants=tuple(variants),
        curve=training.curve,
        curve_seconds=training.curve_costs,
        train_seconds=training.cost,
        spent_seconds=spent,
        train_memory_mb=math.nan,
        overfit=math.nan,
        forgetting=None,
        overhead_seconds=0.0,
        host="virtual",
        notes=training.learned,
    )
