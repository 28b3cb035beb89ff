"""What a search is after: the objectives on each target, the constraints, and how a record measures up to them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from search.records import Record
from spaces.objectives import OBJECTIVES, Constraint, Direction, Objective

Costs = Mapping[str, float | None]
CostTable = Mapping[tuple[Any, str, str], Costs]
"""(shape, precision, target) → known costs by column name."""


@dataclass(frozen=True, kw_only=True)
class Goals:
    """Objectives, constraints and targets of one search."""

    metric: str
    objectives: tuple[str, ...]
    constraints: tuple[Constraint, ...] = ()
    targets: tuple[str, ...] = ("cpu",)
    columns: Mapping[str, Objective] = field(default_factory=lambda: OBJECTIVES, hash=False)
    """What each name of a column means; a simulated search has those of its table."""

    @property
    def axes(self) -> tuple[tuple[str, str | None], ...]:
        """(objective, target) of each number that is optimised: known costs once a target, the rest once."""
        return tuple(
            (name, target)
            for name in self.objectives
            for target in (self.targets if self.columns[name].known else (None,))
        )

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Whether each axis is to rise or to fall."""
        return tuple(self.columns[name].direction for name, _ in self.axes)

    @property
    def signs(self) -> tuple[float, ...]:
        """What each axis is multiplied with to be minimised."""
        return tuple(1.0 if direction == "min" else -1.0 for direction in self.directions)

    def values(self, records: Sequence[Record]) -> tuple[float, ...] | None:
        """The axes of one variant, from its records on every target; None if one is missing or not finite."""
        by_target = {record.target: record for record in records}
        first = records[0]
        found = [by_target.get(target or first.target) for _, target in self.axes]
        values = [
            record.value(name, self.metric) if record is not None else None
            for record, (name, _) in zip(found, self.axes, strict=True)
        ]
        if any(value is None or not math.isfinite(value) for value in values):
            return None
        return tuple(float(value) for value in values if value is not None)

    def broken_known(self, costs: Costs) -> list[str]:
        """Constraints that a variant breaks by its known costs alone, with the numbers."""
        return [
            f"{constraint.name} {costs[constraint.name]:.4g} breaks '{constraint.text}'"
            for constraint in self.constraints
            if constraint.known and constraint.holds(costs) is False
        ]

    def violations(self, record: Record, *, baseline: float | None) -> dict[str, float]:
        """By how much a record misses each constraint, relative to its limit; zero or less where it holds."""
        found = {}
        for constraint in self.constraints:
            value, limit = record.value(constraint.name, self.metric), constraint.limit(baseline)
            if value is not None and limit is not None:
                sign = 1.0 if constraint.op.startswith("<") else -1.0
                found[constraint.text] = sign * (value - limit) / max(abs(limit), 1e-12)
        return found

    def feasible(self, record: Record, *, baseline: float | None) -> bool:
        """Whether a record breaks none of the constraints that can be decided."""
        row = {constraint.name: record.value(constraint.name, self.metric) for constraint in self.constraints}
        return all(constraint.holds(row, baseline=baseline) is not False for constraint in self.constraints)

    def needs_baseline(self) -> bool:
        """Whether a constraint is relative to the fine-tuned base."""
        return any(constraint.relative for constraint in self.constraints)


def baseline_quality(records: Iterable[Record], fingerprint: str) -> float | None:
    """Quality of the fine-tuned base (the plan with this fingerprint) at fp32; None while it is not known."""
    for record in records:
        if record.fingerprint == fingerprint and record.precision == "fp32" and record.status == "complete":
            return record.quality
    return None
