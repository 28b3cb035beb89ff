"""The course of a training: what it costs, how its quality rises, and which variants come of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What came of a training at one option of the fan-out."""

    quality: float
    """NaN: this variant failed."""
    known: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Course:
    """A training to its end, recorded or foreseen."""

    steps: tuple[int, ...]
    """How far it was trained at each row of its curve; the last one is the end."""
    qualities: tuple[float, ...]
    """Of the first variant at each step; NaN where it is not known."""
    costs: tuple[float, ...]
    """Spent until each step, without ``parts``; never falls."""
    variants: Mapping[str, Variant]
    learned: Mapping[str, float]
    """Costs of the training, seen at its end: those of the first variant's row."""
    parts: Mapping[str, float]
    """Beginnings that other trainings may share, with what each costs."""
    overhead: float = 0.0
    """Time that passes beside training: no cost."""

    @property
    def curve(self) -> tuple[tuple[float, float], ...]:
        """(share of the training, quality) wherever quality is known."""
        points = zip(self.steps, self.qualities, strict=True)
        return tuple((step / self.steps[-1], quality) for step, quality in points if math.isfinite(quality))

    @property
    def curve_costs(self) -> tuple[float, ...]:
        """What was spent at each point of the curve."""
        points = zip(self.costs, self.qualities, strict=True)
        return tuple(cost for cost, quality in points if math.isfinite(quality))

    @property
    def cost(self) -> float:
        """Of the whole training, as if alone."""
        return self.costs[-1] + sum(self.parts.values())
