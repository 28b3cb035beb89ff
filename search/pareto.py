"""Who beats whom, and by how much in all. Every objective is minimised; negate what is to be large.

n = points, m = objectives.
"""

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def non_dominated(points: Points) -> NDArray[np.bool_]:
    """Which of the n × m ``points`` no other one dominates: at most equal everywhere and smaller somewhere.

    Equal points do not dominate each other, so duplicates on the front all stay. Infinities compare as numbers do. A
    row with NaN is never on the front and dominates nothing.
    """
    points = _matrix(points)
    front = np.zeros(len(points), dtype=bool)
    usable = ~np.isnan(points).any(axis=1)
    front[usable] = _front_of(points[usable])
    return front


def domination_ranks(points: Points) -> NDArray[np.int64]:
    """How many fronts lie before each point's own: 0 for the front, 1 for the front of the rest, and so on.

    Rows with NaN share the largest rank, behind all others.
    """
    points = _matrix(points)
    ranks = np.zeros(len(points), dtype=np.int64)
    left = np.flatnonzero(~np.isnan(points).any(axis=1))
    rank = 0
    while len(left):
        front = _front_of(points[left])
        ranks[left[front]] = rank
        left = left[~front]
        rank += 1
    ranks[np.isnan(points).any(axis=1)] = rank
    return ranks


def hypervolume(points: Points, reference: Points) -> float:
    """Volume that the n × m ``points`` dominate below ``reference`` (m values), exactly.

    Points that are not below the reference everywhere, and rows with NaN, add nothing. A point at -inf, or a reference
    at inf with a point below it, makes it inf. Sorted sweep for two objectives, exclusive volumes above [While2012].
    """
    points, reference = _matrix(points), np.asarray(reference, dtype=float)
    if reference.shape != points.shape[1:]:
        raise ValueError(f"reference has shape {reference.shape}, but the points have {points.shape[1]} objectives")
    below = points[(points < reference).all(axis=1)]
    if not np.isfinite(below).all() or (len(below) and not np.isfinite(reference).all()):
        return float("inf")
    return _volume(_sorted_front(below), reference)


def _matrix(points: Points) -> Points:
    points = np.asarray(points, dtype=float)
    if points.ndim != 2:
        raise ValueError(f"points must be a matrix, points × objectives, but got shape {points.shape}")
    return points


def _front_of(points: Points) -> NDArray[np.bool_]:
    # One row against all at a time: n × n × m booleans would be 75 MB for 5,000 points of 3 objectives.
    front = np.ones(len(points), dtype=bool)
    for index, point in enumerate(points):
        if front[index]:
            front &= ~((point <= points).all(axis=1) & (point < points).any(axis=1))
    return front


def _sorted_front(points: Points) -> Points:
    points = np.unique(points, axis=0)
    return points[_front_of(points)]


def _volume(front: Points, reference: Points) -> float:
    """``front``: sorted by its first column, without duplicates, non-dominated, below the reference."""
    if len(front) == 0:
        return 0.0
    if front.shape[1] == 1:
        return float(reference[0] - front[0, 0])
    if front.shape[1] == 2:
        # Sorted by x, a front falls in y: each point adds a rectangle up to its predecessor's y.
        ceilings = np.append(reference[1], front[:-1, 1])
        return float(np.sum((reference[0] - front[:, 0]) * (ceilings - front[:, 1])))
    return sum(_exclusive(front[index:], reference) for index in range(len(front)))


def _exclusive(front: Points, reference: Points) -> float:
    """What the first point dominates and none of the others does."""
    first, others = front[0], front[1:]
    box = float(np.prod(reference - first))
    # Cut to the box of the first point, the others cover what they share with it.
    limited = _sorted_front(np.maximum(first, others))
    return box - _volume(limited, reference)
