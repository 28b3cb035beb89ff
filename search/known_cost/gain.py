"""How much hypervolume a candidate is expected to add to the front, where some of its objectives are known.

c = candidates, b = boxes, m = objectives, all minimised. The region that a front leaves free, below the reference, is
a union of b disjoint boxes. What a point adds is the volume of what it dominates there, so the expectation is a sum
over boxes of products over objectives: E Πⱼ max(0, uⱼ - max(lⱼ, yⱼ)), exact where the objectives are independent
[Emmerich2008, Yang2019].
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from search.known_cost.features import Matrix
from search.known_cost.gaussian_process import Vector
from search.pareto import free_boxes


class Learned(Protocol):
    """The distribution of one objective at the candidates."""

    def shortfall(self, queries: Matrix, thresholds: Vector) -> Matrix:
        """E max(threshold - value, 0): candidates × thresholds."""


def expected_gain(
    front: Matrix, reference: Vector, *, known: Matrix, queries: Matrix, learned: Mapping[int, Learned]
) -> Vector:
    """Expected gain in hypervolume of each of c candidates.

    Args:
        front: points × m.
        known: c × m; the columns in ``learned`` are not looked at. A candidate with infinity gains nothing.
        queries: c × d, what ``learned`` is asked with.
        learned: by column, the objectives that are not known.
    """
    lower, upper = free_boxes(front, reference)
    gain = np.ones((len(known), len(lower)))
    for axis in range(len(reference)):
        if axis in learned:
            gain *= _expected_edges(learned[axis], queries, lower[:, axis], upper[:, axis])
        else:
            gain *= np.maximum(upper[:, axis] - np.maximum(lower[:, axis], known[:, axis, None]), 0.0)
    return gain.sum(axis=1)


def _expected_edges(learned: Learned, queries: Matrix, lower: Vector, upper: Vector) -> Matrix:
    """E of the part of each box's edge that lies above the candidate's value: c × b."""
    thresholds = np.unique(np.concatenate([upper, lower[np.isfinite(lower)]]))
    below = learned.shortfall(queries, thresholds)
    edges = below[:, np.searchsorted(thresholds, upper)]
    finite = np.isfinite(lower)
    edges[:, finite] -= below[:, np.searchsorted(thresholds, lower[finite])]
    return np.maximum(edges, 0.0)
