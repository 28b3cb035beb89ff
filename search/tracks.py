"""Curves of many plans side by side, so that all of them are read at one share of training at once.

n = plans, P = points of all their curves, g = costs that grow.
"""

from collections.abc import Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.entries import NOWHERE, Entry, Numbers, Places

_ROOM = 8
"""Points that a new curve has room for; twice what it has when that is full."""


class Tracks:
    """Entries, read as ``Places.of`` reads them one by one."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._num_rows = self._num_points = 0
        self._of_rows: dict[str, NDArray[Any]] = {}
        self._of_points: dict[str, NDArray[Any]] = {}

    @property
    def numbers(self) -> Set[int]:
        """Of the plans."""
        return self._rows.keys()

    def put(self, number: int, entry: Entry) -> None:
        """Take in a plan, in the place of what is there under its number."""
        self.remove(number)
        self._add(number, entry, room=len(entry.curve))

    def extend(self, number: int, entry: Entry) -> None:
        """Take in a plan under way: mostly what is there under its number, and further points."""
        row = self._rows.get(number)
        if row is not None and self._goes_on(row, entry):
            self._write(row, entry, since=int(self._of_rows["lengths"][row]))
            return
        self.remove(number)
        self._add(number, entry, room=max(_ROOM, 2 * len(entry.curve)))

    def _goes_on(self, row: int, entry: Entry) -> bool:
        """Whether an entry begins as the one that is there, and has room."""
        length = int(self._of_rows["lengths"][row])
        if not length <= len(entry.curve) <= self._of_rows["rooms"][row]:
            return False
        last = int(self._of_rows["starts"][row]) + length - 1
        there = self._of_points["fidelities"][last], self._of_points["values"][last, 0]
        return there == entry.curve[length - 1]

    def remove(self, number: int) -> None:
        """Leave a plan out from now on."""
        if (row := self._rows.pop(number, None)) is not None:
            self._of_rows["numbers"][row] = -1

    def at(self, fidelity: float) -> Places:
        """The plans whose reports reach from ``fidelity`` or before to it or further, on the line between two."""
        if not self._rows:
            return NOWHERE
        rows = {name: found[: self._num_rows] for name, found in self._of_rows.items()}
        fidelities, values = (found[: self._num_points] for found in self._of_points.values())
        before = np.add.reduceat(fidelities < fidelity, rows["starts"], dtype=np.int64)
        spans = (rows["numbers"] >= 0) & (before < rows["lengths"])
        after = rows["starts"] + before
        spans[spans] &= (before[spans] > 0) | (fidelities[after[spans]] == fidelity)
        there = np.flatnonzero(spans)
        told = _between(fidelities, values, after[there], fidelity)
        told[:, 1:] += rows["before"][there]
        finite = np.isfinite(told[:, 0])
        there, told = there[finite], told[finite]
        return Places(
            numbers=rows["numbers"][there],
            qualities=told[:, 0],
            costs=np.hstack([rows["known"][there], told[:, 1:]]),
            ends=rows["ends"][there],
            strategies=rows["strategies"][there],
        )

    def _add(self, number: int, entry: Entry, *, room: int) -> int:
        row = self._rows[number] = self._num_rows
        self._make_room(entry, points=room)
        self._of_rows["numbers"][row] = number
        self._of_rows["starts"][row] = self._num_points
        self._of_rows["rooms"][row] = room
        # Where nothing is written yet, no fidelity is below the one that is asked for.
        self._of_points["fidelities"][self._num_points : self._num_points + room] = np.inf
        self._num_rows, self._num_points = row + 1, self._num_points + room
        self._write(row, entry, since=0)
        return row

    def _write(self, row: int, entry: Entry, *, since: int) -> None:
        start, growing = int(self._of_rows["starts"][row]), entry.growing
        for index in range(since, len(entry.curve)):
            fidelity, quality = entry.curve[index]
            self._of_points["fidelities"][start + index] = fidelity
            self._of_points["values"][start + index] = (quality, *(cost.curve[index][1] for cost in growing))
        self._of_rows["lengths"][row] = len(entry.curve)
        self._of_rows["known"][row] = entry.known
        self._of_rows["before"][row] = [cost.before for cost in growing]
        self._of_rows["ends"][row] = entry.end
        self._of_rows["strategies"][row] = entry.strategy

    def _make_room(self, entry: Entry, *, points: int) -> None:
        if not self._of_rows:
            num_growing = len(entry.growing)
            whole = dict.fromkeys(("numbers", "starts", "lengths", "rooms"), np.empty(0, dtype=np.int64))
            self._of_rows = whole | {
                "known": np.empty((0, len(entry.known))),
                "before": np.empty((0, num_growing)),
                "ends": np.empty(0),
                "strategies": np.empty(0, dtype=object),
            }
            self._of_points = {"fidelities": np.empty(0), "values": np.zeros((0, 1 + num_growing))}
        self._of_rows = {name: _with_room(found, self._num_rows + 1) for name, found in self._of_rows.items()}
        self._of_points = {
            name: _with_room(found, self._num_points + points) for name, found in self._of_points.items()
        }


def _with_room(found: NDArray[Any], size: int) -> NDArray[Any]:
    """``found``, or where it is smaller than ``size`` a copy of at least twice its length."""
    if size <= len(found):
        return found
    larger = np.zeros((max(size, 2 * len(found)), *found.shape[1:]), dtype=found.dtype)
    larger[: len(found)] = found
    return larger


def _between(fidelities: Numbers, values: Numbers, after: NDArray[np.int64], fidelity: float) -> Numbers:
    """Values at ``fidelity`` of curves of which ``after`` are the first points that are there or past it."""
    exact = fidelities[after] == fidelity
    left = np.where(exact, after, after - 1)
    width = np.where(exact, 1.0, fidelities[after] - fidelities[left])
    share = (fidelity - fidelities[left]) / width
    start, end = values[left], values[after]
    return np.asarray(start + (end - start) * share[:, None])
