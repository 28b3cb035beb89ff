"""Settings as vectors, whatever conditions they stand under.

n = settings, p = parameters, d = columns.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from spaces.choosers import Value

Matrix = NDArray[np.float64]
Settings = Mapping[str, Value]

_ABSENT = 0.5
"""Where a number stands that the strategy does not ask for: in the middle, so that the strategy tells it apart."""


@dataclass(frozen=True)
class Encoder:
    """Numbers on [0, 1], by their logarithm where the range says so; categories as corners that are 1 apart.

    A category whose options are all numbers keeps their order. Of a parameter that is not active, a number stands in
    the middle and a category at the origin. Options that the space has no longer stand there too, or between their
    neighbours.
    """

    distributions: Mapping[str, BaseDistribution]

    @property
    def groups(self) -> NDArray[np.int64]:
        """The parameter, from 0, that each of the d columns belongs to."""
        widths = [_width(distribution) for distribution in self.distributions.values()]
        return np.repeat(np.arange(len(widths)), widths)

    def __call__(self, settings: Sequence[Settings]) -> Matrix:
        """n × d."""
        columns = [
            _column(distribution, [one.get(name) for one in settings])
            for name, distribution in self.distributions.items()
        ]
        return np.hstack(columns) if columns else np.zeros((len(settings), 0))


def _width(distribution: BaseDistribution) -> int:
    if isinstance(distribution, CategoricalDistribution) and not _is_ordered(distribution):
        return len(distribution.choices)
    return 1


def _is_ordered(distribution: CategoricalDistribution) -> bool:
    return all(isinstance(option, int | float) and not isinstance(option, bool) for option in distribution.choices)


def _column(distribution: BaseDistribution, values: Sequence[Value | None]) -> Matrix:
    if isinstance(distribution, CategoricalDistribution):
        return _places(distribution, values) if _is_ordered(distribution) else _corners(distribution, values)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = _scaled(distribution, distribution.low), _scaled(distribution, distribution.high)
    span = high - low or 1.0
    found = [_ABSENT if value is None else (_scaled(distribution, float(value)) - low) / span for value in values]
    return np.array(found, dtype=float).reshape(-1, 1)


def _scaled(distribution: FloatDistribution | IntDistribution, value: float) -> float:
    return math.log(value) if distribution.log else value


def _places(distribution: CategoricalDistribution, values: Sequence[Value | None]) -> Matrix:
    """Options in their order, evenly apart."""
    options = sorted(float(option) for option in distribution.choices)  # type: ignore[arg-type]
    places = np.linspace(0.0, 1.0, len(options)) if len(options) > 1 else np.zeros(1)
    found = [_ABSENT if value is None else np.interp(float(value), options, places) for value in values]
    return np.array(found, dtype=float).reshape(-1, 1)


def _corners(distribution: CategoricalDistribution, values: Sequence[Value | None]) -> Matrix:
    """1 apart, and 0.7 from what is absent."""
    place = {option: index for index, option in enumerate(distribution.choices)}
    found = np.zeros((len(values), len(place)))
    for row, value in enumerate(values):
        if value in place:
            found[row, place[value]] = math.sqrt(0.5)
    return found
