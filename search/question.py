"""The question behind a choice: objectives, constraints, target and wish, and how a record answers to them."""

from collections.abc import Mapping
from dataclasses import dataclass

from search.records import Record
from spaces.objectives import OBJECTIVES, Constraint

Wish = str | Mapping[str, float]
"""``knee``, ``quality``, ``cost``, or a weight for each objective."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be chosen by, on one target."""

    metric: str
    objectives: tuple[str, ...]
    constraints: tuple[Constraint, ...]
    target: str
    wish: Wish
    baseline: float | None
    """Quality that relative constraints refer to; None while it is not known."""

    @property
    def costs(self) -> tuple[str, ...]:
        """The objectives beside quality."""
        return tuple(name for name in self.objectives if name != self.metric)

    @property
    def undecided(self) -> tuple[Constraint, ...]:
        """Constraints that need a baseline that is not known."""
        return tuple(c for c in self.constraints if c.limit(self.baseline) is None)

    def value(self, record: Record, name: str) -> float:
        """A record's number, NaN where it was not measured."""
        found = record.value(name, self.metric)
        return float("nan") if found is None else found

    def gain(self, record: Record) -> float:
        """A record's quality so that more is better, NaN where it was not measured."""
        return OBJECTIVES[self.metric].gain(self.value(record, self.metric))

    def cost_values(self, record: Record) -> tuple[float, ...]:
        """A record's costs, in the order of ``costs``."""
        return tuple(self.value(record, name) for name in self.costs)

    def broken(self, record: Record) -> list[Constraint]:
        """Constraints that a record breaks. A number that was not measured breaks one; an unknown baseline does not."""
        return [constraint for constraint in self.constraints if self.breaks(record, constraint)]

    def breaks(self, record: Record, constraint: Constraint) -> bool:
        """Whether a record breaks one constraint."""
        row = {constraint.name: record.value(constraint.name, self.metric)}
        known = constraint.limit(self.baseline) is not None
        return known and not constraint.holds(row, baseline=self.baseline)

    def miss(self, record: Record) -> float:
        """Sum over the broken constraints of the distance to the limit, relative to the limit."""
        total = 0.0
        for constraint in self.broken(record):
            value, limit = record.value(constraint.name, self.metric), constraint.limit(self.baseline)
            far = float("inf") if value is None or limit is None else abs(value - limit) / max(abs(limit), 1e-12)
            total += far
        return total
