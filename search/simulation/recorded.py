"""A table's rows as trainings: what each costs, how its quality rose, and which variants came of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.simulation.columns import Columns, row_of
from search.simulation.course import Course, Variant
from search.simulation.problem import Problem
from search.spec_errors import SpecError
from spaces.choosers import Value

ONLY = "only"
"""Name of the variant of a training that has one."""

_GRAIN = 1_000_000
"""Into how many steps a training is cut whose fidelities are no whole numbers."""
_SHOWN = 10
"""Trainings that an error names, of those with the same fault."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Training(Course):
    """A configuration, trained to its end once."""

    name: str
    """Its id, or the number of its row."""
    row: int
    """Where its end stands in the table, from 0."""
    params: Mapping[str, Value]
    """Those that it reads, in the order of picking."""


def trainings_of(problem: Problem, columns: Columns) -> list[Training]:
    """One training for each configuration, in the order of the table.

    Raises:
        SpecError: rows that say two things of one training, or none.
    """
    reader = _Reader(problem, columns)
    if problems := [text for rows in reader.groups for text in reader.contradictions(rows)]:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise SpecError([f"{problem.table}: {text}" for text in [*problems[:_SHOWN], *more]])
    return [reader.training(rows) for rows in reader.groups]


class _Reader:
    """Columns, looked at by configuration."""

    def __init__(self, problem: Problem, columns: Columns) -> None:
        self._problem, self._columns = problem, columns
        numbers, names, count = columns.numbers, columns.names, columns.num_rows
        self._fidelity = np.ones(count) if problem.fidelity is None else numbers[problem.fidelity]
        self._cost = None if problem.train_cost is None else numbers[problem.train_cost]
        variants = [ONLY] * count if problem.fan_out is None else names[problem.fan_out]
        self._options = [str(name) for name in dict.fromkeys(variants) if name is not None]
        # A row of no variant says how training went.
        self._rank = np.array([-1 if name is None else self._options.index(str(name)) for name in variants])
        self._ids = list(range(1, count + 1)) if problem.id is None else names[problem.id]
        self._parts = {name: self._part_costs(name, cost) for name, cost in problem.shared.items()}

    @property
    def groups(self) -> list[Rows]:
        """Rows of each configuration, by fidelity and then in the order of the variants."""
        found: dict[Value | None, list[int]] = {}
        for row, name in enumerate(self._ids):
            found.setdefault(name, []).append(row)
        return [np.array(sorted(rows, key=lambda r: (self._fidelity[r], self._rank[r]))) for rows in found.values()]

    def contradictions(self, rows: Rows) -> Iterator[str]:
        """What is wrong with one configuration."""
        name, first = self._ids[rows[0]], rows[0]
        if name is None:
            yield f"id: nothing stands in {row_of(rows)}; expected a name in every row"
        twins = (np.diff(self._fidelity[rows]) == 0) & (np.diff(self._rank[rows]) == 0)
        if twins.any():
            keys = [key for key in ("fidelity", "fan_out") if getattr(self._problem, key) is not None]
            wanted = f"expected them to differ in {' or '.join(keys)}" if keys else "expected one row for each id"
            yield f"id {name}: {row_of(rows[1:][twins])} says the same place as the row before; {wanted}"
        for axis in self._columns.axes:
            unlike = axis.active[rows] != axis.active[first]
            unlike |= axis.active[rows] & (axis.values[rows] != axis.values[first])
            if unlike.any():
                yield f"id {name}: params.{axis.name} differs in {row_of(rows[unlike])}; expected one value for each id"
        if lacking := [option for option in self._options if option not in self._variants(rows)]:
            yield f"id {name}: its end has no row for {', '.join(lacking)}; add it, without a quality if it failed"

    def training(self, rows: Rows) -> Training:
        """One configuration that has no contradictions."""
        steps, end = self._steps(rows), rows[-1]
        return Training(
            name=str(self._ids[end]),
            row=int(end),
            params={axis.name: axis.value(end) for axis in self._columns.axes if axis.active[end]},
            steps=_whole(self._fidelity[steps]),
            qualities=tuple(self._columns.numbers[self._problem.quality.column][steps].tolist()),
            costs=tuple(self._costs(steps).tolist()),
            variants={option: self._variant(row) for option, row in self._variants(rows).items()},
            learned={name: float(self._columns.numbers[name][steps[-1]]) for name in self._problem.learned_costs},
            parts={
                f"{name}={part}": costs[part]
                for name, costs in self._parts.items()
                if (part := self._columns.names[name][end]) is not None
            },
        )

    def _steps(self, rows: Rows) -> Rows:
        """The first variant's row at each fidelity."""
        fresh = np.diff(self._fidelity[rows], prepend=-np.inf) > 0
        return rows[fresh]

    def _costs(self, steps: Rows) -> NDArray[np.float64]:
        if self._cost is None:
            return self._fidelity[steps] / self._fidelity[steps[-1]]
        # What was spent stays spent, though a table that a model filled in may say otherwise.
        return np.maximum.accumulate(self._cost[steps])

    def _variants(self, rows: Rows) -> dict[str, int]:
        """The row of each variant at the end, in the table's order of variants."""
        last = (self._fidelity[rows] == self._fidelity[rows[-1]]) & (self._rank[rows] >= 0)
        return {self._options[self._rank[row]]: int(row) for row in rows[last]}

    def _variant(self, row: int) -> Variant:
        numbers, problem = self._columns.numbers, self._problem
        found = [float(numbers[name][row]) for name in (problem.quality.column, *problem.learned_costs)]
        return Variant(
            quality=found[0] if np.isfinite(found).all() else float("nan"),
            known={name: float(numbers[name][row]) for name in problem.known_costs},
        )

    def _part_costs(self, name: str, cost: str) -> Mapping[Value, float]:
        """The cost of each part in a column of names: its rows' median, because each measured it by itself."""
        found: dict[Value, list[float]] = {}
        for part, seconds in zip(self._columns.names[name], self._columns.numbers[cost], strict=True):
            if part is not None:
                found.setdefault(part, []).append(float(seconds))
        return {part: float(np.median(seconds)) for part, seconds in found.items()}


def _whole(fidelities: NDArray[np.float64]) -> tuple[int, ...]:
    """Fidelities as whole numbers in the same proportion."""
    whole = (fidelities == np.round(fidelities)).all()
    scaled = fidelities if whole else np.round(fidelities / fidelities[-1] * _GRAIN)
    return tuple(int(step) for step in scaled)
