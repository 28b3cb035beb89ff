"""Which row of a table answers a proposal: the nearest that was not taken yet.

Squared distance, over the parameters that proposal and row both read: of a number, that of its place in its range
(in the logarithm where said); of a category, 1 where it differs. What only one of them reads counts by the category
that opens it. n = rows, q = proposals, k = coordinates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.simulation.columns import Axis
from spaces.choosers import Value

_EXACTLY = 16
"""Up to so many proposals at once are compared in double precision, difference by difference."""
_AT_ONCE = 32
_TAKEN = 1e9
"""Added to the squared distance of a row that was taken; more than any distance can be."""

Points = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Coordinate:
    """How one parameter becomes a number."""

    axis: Axis

    @property
    def always(self) -> bool:
        """Whether all read it."""
        return not self.axis.param.when

    def of(self, values: Points) -> Points:
        """Place in the range, 0 to 1; of categories, their position."""
        if self.axis.param.type == "categorical":
            return values
        low, high = self.axis.bounds
        if self.axis.param.log:
            low, high, values = np.log(low), np.log(high), np.log(values)
        return (values - low) / (high - low) if high > low else np.zeros_like(values)

    def of_pick(self, params: Mapping[str, Value]) -> float:
        """A picked value as the table has it; NaN where it is not read."""
        if self.axis.name not in params:
            return np.nan
        value = params[self.axis.name]
        return float(self.axis.options.index(value) if self.axis.options else value)


class Nearest:
    """The rows of a table that are still to be had."""

    def __init__(self, axes: Sequence[Axis]) -> None:
        self._coordinates = [Coordinate(axis=axis) for axis in axes]
        # Where a parameter is not read, NaN: that is how rows and proposals tell it.
        self._rows = [
            np.where(c.axis.active, c.of(np.where(c.axis.active, c.axis.values, 1.0)), np.nan)
            for c in self._coordinates
        ]
        self.num_left = len(self._rows[0])
        self._penalties = np.zeros(self.num_left)
        self._factors = self._row_factors()

    def is_left(self, row: int) -> bool:
        """Whether the row was not taken."""
        return not self._penalties[row]

    def take(self, row: int) -> None:
        """The row, which is left, answers no more."""
        self._penalties[row] = _TAKEN
        self._factors[-1, row] += _TAKEN
        self.num_left -= 1

    def find(self, params: Sequence[Mapping[str, Value]]) -> NDArray[np.int64]:
        """The row that answers each of q proposals, each asked for by itself; the first of rows that are equally near.

        Of more than a few at once, rows whose distances differ by less than a single-precision number can tell count
        as equally near: 1,000 proposals to 10,000 rows then take milliseconds.

        Raises:
            LookupError: every row was taken.
        """
        if not self.num_left:
            raise LookupError("every row of the table was taken")
        points = np.array([[c.of_pick(picked) for c in self._coordinates] for picked in params])
        points = np.column_stack([c.of(points[:, index]) for index, c in enumerate(self._coordinates)])
        if len(points) > _EXACTLY:
            return self._among_many(self._point_factors(points))
        return np.array([np.argmin(self._distances(point)) for point in points])

    def _among_many(self, factors: NDArray[np.float32]) -> NDArray[np.int64]:
        # In parts that fit a cache, into the same memory: half the time of one product of 40 MB.
        parts = np.split(factors, range(_AT_ONCE, len(factors), _AT_ONCE))
        room = np.empty((_AT_ONCE, self._factors.shape[1]), dtype=np.float32)
        nearest = [np.matmul(part, self._factors, out=room[: len(part)]).argmin(axis=1) for part in parts]
        return np.concatenate(nearest)

    def _distances(self, point: Points) -> Points:
        """Squared, to each of the n rows."""
        squared = self._penalties.copy()
        for coordinate, places, place in zip(self._coordinates, self._rows, point, strict=True):
            if np.isnan(place):
                continue
            apart = (places != place).astype(float) if coordinate.axis.options else (places - place) ** 2
            squared += apart if coordinate.always else np.where(np.isnan(places), 0.0, apart)
        return squared

    # As one product of matrices: a·b·(x - y)² = (a x²)·b - 2 (a x)·(b y) + a·(b y²), with a and b 1 where x and y are
    # read and 0 elsewhere; of categories, a·b·[x ≠ y] = a·b - Σ over options of [x = option]·[y = option]. Where all
    # read a parameter, what proposals have by themselves does not tell rows apart, and what rows have is one number.

    def _row_factors(self) -> NDArray[np.float32]:
        """k × n; the last one is each row's own."""
        factors, own = [], np.zeros(self.num_left)
        for coordinate, places in zip(self._coordinates, self._rows, strict=True):
            read, place = _read(places)
            if coordinate.axis.options:
                factors += [-read * (place == option) for option in range(len(coordinate.axis.options))]
            else:
                factors += [-2 * read * place]
                own += read * place**2 if coordinate.always else 0.0
            if not coordinate.always:
                factors += [read] if coordinate.axis.options else [read, read * place**2]
        return np.array([*factors, own], dtype=np.float32)

    def _point_factors(self, points: Points) -> NDArray[np.float32]:
        """q × k."""
        factors = []
        for index, coordinate in enumerate(self._coordinates):
            read, place = _read(points[:, index])
            if coordinate.axis.options:
                factors += [read * (place == option) for option in range(len(coordinate.axis.options))]
            else:
                factors += [read * place]
            if not coordinate.always:
                factors += [read] if coordinate.axis.options else [read * place**2, read]
        return np.array([*factors, np.ones(len(points))], dtype=np.float32).T


def _read(column: Points) -> tuple[Points, Points]:
    """1 where a parameter is read and 0 elsewhere, and its place."""
    return (~np.isnan(column)).astype(float), np.nan_to_num(column)
