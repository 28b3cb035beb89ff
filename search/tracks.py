"""Curves of many plans side by side, so that all of them are read at one share of training at once.

n = plans, P = points of all their curves, g = costs that grow.
"""

from array import array
from collections.abc import Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.entries import NOWHERE, Entry, Numbers, Places


class Tracks:
    """Entries of plans that are under way no more, read as ``Places.of`` reads them one by one."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._numbers, self._starts = array("q"), array("q")
        self._fidelities, self._values = array("d"), array("d")
        self._known, self._before, self._ends = array("d"), array("d"), array("d")
        self._strategies: list[str] = []
        self._arrays: _Arrays | None = None

    @property
    def numbers(self) -> Set[int]:
        """Of the plans."""
        return self._rows.keys()

    def add(self, number: int, entry: Entry) -> None:
        """One more plan. A number that is there stays as it is."""
        if number in self._rows:
            return
        self._rows[number] = len(self._numbers)
        self._numbers.append(number)
        self._starts.append(len(self._fidelities))
        growing = entry.growing
        for index, (fidelity, quality) in enumerate(entry.curve):
            self._fidelities.append(fidelity)
            self._values.extend((quality, *(cost.curve[index][1] for cost in growing)))
        self._known.extend(entry.known)
        self._before.extend(cost.before for cost in growing)
        self._ends.append(entry.end)
        self._strategies.append(entry.strategy)
        self._arrays = None

    def remove(self, number: int) -> None:
        """A plan is under way again."""
        if (row := self._rows.pop(number, None)) is not None:
            self._numbers[row] = -1
            self._arrays = None

    def at(self, fidelity: float) -> Places:
        """The plans whose reports reach from ``fidelity`` or before to it or further, on the line between two."""
        if not self._numbers:
            return NOWHERE
        there = self._arrays = self._arrays or self._as_arrays()
        before = np.add.reduceat(there.fidelities < fidelity, there.starts, dtype=np.int64)
        after = there.starts + before
        spans = (there.numbers >= 0) & (after < there.stops)
        spans[spans] &= (before[spans] > 0) | (there.fidelities[after[spans]] == fidelity)
        rows, after = np.flatnonzero(spans), after[spans]
        values = _between(there, after, fidelity)
        values[:, 1:] += there.before[rows]
        finite = np.isfinite(values[:, 0])
        rows, values = rows[finite], values[finite]
        return Places(
            numbers=there.numbers[rows],
            qualities=values[:, 0],
            costs=np.hstack([there.known[rows], values[:, 1:]]),
            ends=there.ends[rows],
            strategies=there.strategies[rows],
        )

    def _as_arrays(self) -> "_Arrays":
        count, starts = len(self._numbers), np.array(self._starts)
        return _Arrays(
            numbers=np.array(self._numbers),
            starts=starts,
            stops=np.append(starts[1:], len(self._fidelities)),
            fidelities=np.array(self._fidelities),
            values=np.array(self._values).reshape(len(self._fidelities), -1),
            known=np.array(self._known).reshape(count, -1),
            before=np.array(self._before).reshape(count, -1),
            ends=np.array(self._ends),
            strategies=np.array(self._strategies, dtype=object),
        )


@dataclass(frozen=True, kw_only=True)
class _Arrays:
    numbers: NDArray[np.int64]
    """-1 for one that was removed."""
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    """n each: first and one past the last of a plan's points."""
    fidelities: Numbers
    values: Numbers
    """P × (1 + g): quality and growing costs."""
    known: Numbers
    before: Numbers
    """n × g."""
    ends: Numbers
    strategies: NDArray[np.object_]


def _between(there: _Arrays, after: NDArray[np.int64], fidelity: float) -> Numbers:
    """Values at ``fidelity`` of curves of which ``after`` are the first points that are there or past it."""
    exact = there.fidelities[after] == fidelity
    left = np.where(exact, after, after - 1)
    width = np.where(exact, 1.0, there.fidelities[after] - there.fidelities[left])
    share = (fidelity - there.fidelities[left]) / width
    start, end = there.values[left], there.values[after]
    return np.asarray(start + (end - start) * share[:, None])
