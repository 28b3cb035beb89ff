"""How the plans of a search stand at one moment: what a scheduler decides from.

Qualities are scores, on a scale where more is better and equal steps matter alike (``Objective.score``). Of costs less
is better.
"""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from search.records import Curve


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a plan's training would yield at one precision, on one target."""

    target: str
    costs: tuple[float, ...]
    """Those that are known before training."""


@dataclass(frozen=True, kw_only=True)
class Growing:
    """A cost that rises as a plan is trained, as far as it has come."""

    before: float = 0.0
    """Of the stages before the last one."""
    curve: Curve
    """(fidelity, cost) of the last stage."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A complete variant that breaks no constraint."""

    target: str
    quality: float
    """One standard error below what was measured: what a rival must be thought to miss before it is given up."""
    costs: tuple[float, ...]
    """The known ones and the learned ones."""


@dataclass(frozen=True, kw_only=True)
class Race:
    """All plans that have reported, and what came of those that are complete."""

    curves: Mapping[int, Curve]
    """By proposal number, finished or not."""
    variants: Mapping[int, Sequence[Variant]]
    """Of each plan with a curve."""
    strategies: Mapping[int, str] = field(default_factory=dict)
    """Their names, of each plan with a curve. Left out: all are of one."""
    learned: Mapping[int, Sequence[Growing | None]] = field(default_factory=dict)
    """Learned costs of each plan with a curve; None for one that shows at the end alone. Left out: there are none."""
    ends: Mapping[int, float] = field(default_factory=dict)
    """Quality of each complete plan, at its best precision."""
    points: Sequence[Point] = ()
    """Variants of all complete plans."""
    floor: float = -math.inf
    """Quality below which the constraints forbid a plan."""

    def places(self, fidelity: float) -> dict[int, tuple[float, ...]]:
        """The place of each plan that has been at ``fidelity``, but for qualities that are no number."""
        return {
            number: self.place(number, fidelity)
            for number, curve in self.curves.items()
            if (quality := value_at(curve, fidelity)) is not None and math.isfinite(quality)
        }

    def place(self, number: int, fidelity: float) -> tuple[float, ...]:
        """A plan as it was at ``fidelity``: quality, known costs on each target, learned costs so far.

        Known costs are those of its first variant there; precisions rank plans alike.
        """
        quality = value_at(self.curves[number], fidelity)
        assert quality is not None, "it has been there"
        return (quality, *self._known(number), *self._so_far(number, fidelity))

    def is_reached(self, target: str, *, quality: float, costs: Sequence[float]) -> bool:
        """Whether a complete variant on the target is as good as ``quality`` at no higher cost."""
        if target not in self._points:
            return False
        found = self._points[target]
        return bool(((found[:, 0] >= quality) & (found[:, 1:] <= costs).all(axis=1)).any())

    def least_learned(self, index: int) -> float:
        """The least that a learned cost has come to in any complete variant; -inf where there is none."""
        num_learned = len(next(iter(self.learned.values())))
        return min((point.costs[index - num_learned] for point in self.points), default=-math.inf)

    @cached_property
    def _points(self) -> dict[str, NDArray[np.float64]]:
        rows = defaultdict(list)
        for point in self.points:
            rows[point.target].append((point.quality, *point.costs))
        return {target: np.array(found) for target, found in rows.items()}

    def _known(self, number: int) -> list[float]:
        variants = self.variants[number]
        first = {variant.target: variant.costs for variant in reversed(variants)}
        nowhere = (math.inf,) * len(variants[0].costs)
        return [cost for target in self._targets for cost in first.get(target, nowhere)]

    @cached_property
    def _targets(self) -> list[str]:
        return sorted({variant.target for variants in self.variants.values() for variant in variants})

    def _so_far(self, number: int, fidelity: float) -> list[float]:
        growing = [cost for cost in self.learned.get(number, ()) if cost is not None]
        return [cost.before + (value_at(cost.curve, fidelity) or 0.0) for cost in growing]


def value_at(curve: Curve, fidelity: float) -> float | None:
    """The value at ``fidelity``, between reports on the line through them; None before the first, after the last."""
    if not curve or not curve[0][0] <= fidelity <= curve[-1][0]:
        return None
    index = bisect_left(curve, fidelity, key=itemgetter(0))
    after, value = curve[index]
    if after == fidelity:
        return value
    before, start = curve[index - 1]
    return start + (value - start) * (fidelity - before) / (after - before)
