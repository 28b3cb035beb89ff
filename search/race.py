"""How the plans of a search stand at one moment: what a scheduler decides from."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from search.entries import Entry, Numbers, Places
from search.tracks import Tracks


@dataclass(frozen=True, kw_only=True)
class Point:
    """A complete variant that breaks no constraint."""

    target: str
    quality: float
    """One standard error below what was measured: what a rival must be thought to miss before it is given up."""
    costs: tuple[float, ...]
    """The known ones and the learned ones."""

    def beats(self, other: "Point") -> bool:
        """Whether it is as good at no higher cost."""
        as_good = self.target == other.target and self.quality >= other.quality
        return as_good and all(mine <= its for mine, its in zip(self.costs, other.costs, strict=True))


@dataclass(frozen=True, kw_only=True)
class Race:
    """All plans that have reported, and the best of what came of them."""

    entries: Mapping[int, Entry]
    """By number of the proposal, finished or not."""
    points: Sequence[Point] = ()
    """Complete variants, all of them or those that no other one beats."""
    floor: float = -math.inf
    """Quality below which the constraints forbid a plan."""
    tracks: Tracks | None = None
    """The same entries, where they are read faster."""

    def places(self, fidelity: float) -> Places:
        """The plans that have been at ``fidelity``, but for those whose quality is no number there."""
        return Places.of(self.entries, fidelity) if self.tracks is None else self.tracks.at(fidelity)

    def lead(self, target: str, *, quality: float, costs: Sequence[float]) -> float:
        """By how much ``quality`` is better than every complete variant on the target at no higher cost; inf: there is
        none.
        """
        if target not in self._points:
            return math.inf
        found = self._points[target]
        return quality - float(np.max(found[:, 0], where=(found[:, 1:] <= costs).all(axis=1), initial=-math.inf))

    def least(self, cost: int) -> float:
        """The least that a cost has come to in any complete variant, by its index; -inf where there is none."""
        return min((point.costs[cost] for point in self.points), default=-math.inf)

    @cached_property
    def _points(self) -> dict[str, Numbers]:
        rows = defaultdict(list)
        for point in self.points:
            rows[point.target].append((point.quality, *point.costs))
        return {target: np.array(found) for target, found in rows.items()}
