"""The plans of a race, and where they were at one share of training.

Qualities are scores, on a scale where more is better and equal steps matter alike (``Objective.score``). Of costs less
is better. n = plans.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from search.records import Curve

Numbers = NDArray[np.float64]


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
    """(fidelity, cost) of the last stage, at each point of the curve of quality."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One plan that has reported."""

    curve: Curve
    strategy: str = ""
    variants: Sequence[Variant]
    known: tuple[float, ...]
    """Known costs on each target, of the first variant there; inf where there is none. Precisions rank plans alike."""
    learned: Sequence[Growing | None] = ()
    """Learned costs; None for one that shows at the end alone."""
    end: float = math.nan
    """Quality at its best precision; NaN where it is not complete."""

    @property
    def growing(self) -> list[Growing]:
        """The learned costs that show before the end."""
        return [cost for cost in self.learned if cost is not None]

    def at(self, fidelity: float) -> tuple[float, ...] | None:
        """Quality, known costs and growing ones at ``fidelity``; None where it has not been or quality is no number."""
        quality = value_at(self.curve, fidelity)
        if quality is None or not math.isfinite(quality):
            return None
        so_far = (cost.before + (value_at(cost.curve, fidelity) or 0.0) for cost in self.growing)
        return (quality, *self.known, *so_far)


@dataclass(frozen=True, kw_only=True)
class Places:
    """n plans as they were at one share of training."""

    numbers: NDArray[np.int64]
    qualities: Numbers
    """Finite, more is better."""
    costs: Numbers
    """n × costs: known ones, then growing ones as far as they had come."""
    ends: Numbers
    """Quality of the complete plan; NaN where it is not complete."""
    strategies: NDArray[np.object_]

    @classmethod
    def of(cls, entries: Mapping[int, Entry], fidelity: float) -> "Places":
        """Those of the entries that have been there, with a number for their quality."""
        found = {number: at for number, entry in entries.items() if (at := entry.at(fidelity)) is not None}
        if not found:
            return NOWHERE
        table = np.array(list(found.values()))
        return cls(
            numbers=np.array(list(found)),
            qualities=table[:, 0],
            costs=table[:, 1:],
            ends=np.array([entries[number].end for number in found]),
            strategies=np.array([entries[number].strategy for number in found], dtype=object),
        )


NOWHERE = Places(
    numbers=np.empty(0, dtype=np.int64),
    qualities=np.empty(0),
    costs=np.empty((0, 0)),
    ends=np.empty(0),
    strategies=np.empty(0, dtype=object),
)


def value_at(curve: Curve, fidelity: float) -> float | None:
    """The value at ``fidelity``, between reports on the line through them; None before the first, after the last."""
    if not curve or not curve[0][0] <= fidelity <= curve[-1][0]:
        return None
    index = bisect_left(curve, fidelity, key=itemgetter(0))
    after, value = curve[index]
    if after == fidelity:
        return value
    before, start = curve[index - 1]
    return start + (value - start) * ((fidelity - before) / (after - before))
