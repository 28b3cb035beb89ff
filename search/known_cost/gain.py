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


class Learned(Protocol):
    """The distribution of one objective at the candidates."""

    def shortfall(self, thresholds: Vector) -> Matrix:
        """E max(threshold - value, 0): candidates × thresholds."""


def expected_gain(boxes: tuple[Matrix, Matrix], *, known: Matrix, learned: Mapping[int, Learned]) -> Vector:
    """Expected gain in hypervolume of each of c candidates.

    Args:
        boxes: lower and upper corners of what the front leaves free, each b × m, as ``free_boxes`` gives them.
        known: c × m, NaN for the objectives in ``learned``. A candidate with infinity anywhere gains nothing.
        learned: by column, the objectives that are not known.
    """
    lower, upper = boxes
    gain = np.ones((len(known), len(lower)))
    for axis in range(known.shape[1]):
        if axis in learned:
            gain *= _expected_edges(learned[axis], lower[:, axis], upper[:, axis])
        else:
            gain *= np.maximum(upper[:, axis] - np.maximum(lower[:, axis], known[:, axis, None]), 0.0)
    return np.where(np.isinf(known).any(axis=1), 0.0, gain.sum(axis=1))


def _expected_edges(learned: Learned, lower: Vector, upper: Vector) -> Matrix:
    """E of the part of each box's edge that lies above the candidate's value: c × b."""
    thresholds = np.unique(np.concatenate([upper, lower[np.isfinite(lower)]]))
    below = learned.shortfall(thresholds)
    edges = below[:, np.searchsorted(thresholds, upper)]
    finite = np.isfinite(lower)
    edges[:, finite] -= below[:, np.searchsorted(thresholds, lower[finite])]
    return np.maximum(edges, 0.0)
