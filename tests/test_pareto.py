"""Fronts, ranks and hypervolume against slow references that follow the definitions word by word."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from search.pareto import domination_ranks, hypervolume, non_dominated

# Few distinct values, so that ties and duplicates are common.
_VALUES = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 3.5, -1.0])
_WITH_SPECIAL = st.one_of(_VALUES, st.sampled_from([math.nan, math.inf, -math.inf]))


def _points(values=_VALUES, *, most=9, objectives=(1, 2, 3, 4)):
    shape = st.tuples(st.integers(0, most), st.sampled_from(objectives))
    return shape.flatmap(lambda s: arrays(float, s, elements=values))


def _dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def _reference_front(points):
    rows = [tuple(row) for row in points]
    return [not any(math.isnan(x) for x in row) and not any(_dominates(other, row) for other in rows) for row in rows]


def _inclusion_exclusion(points, reference):
    boxes = [row for row in points.tolist() if all(x < r for x, r in zip(row, reference, strict=True))]
    total = 0.0
    for size in range(1, len(boxes) + 1):
        for group in itertools.combinations(boxes, size):
            corner = [max(values) for values in zip(*group, strict=True)]
            total -= (-1) ** size * math.prod(r - c for r, c in zip(reference, corner, strict=True))
    return total


@given(_points(_WITH_SPECIAL))
def test_front_is_what_no_other_point_dominates(points):
    assert non_dominated(points).tolist() == _reference_front(points)


@given(_points(_WITH_SPECIAL))
def test_ranks_peel_one_front_after_another(points):
    ranks = domination_ranks(points)
    left = np.flatnonzero(~np.isnan(points).any(axis=1))
    for rank in itertools.count():
        front = non_dominated(points[left])
        assert sorted(np.flatnonzero(ranks[left] == rank)) == sorted(np.flatnonzero(front))
        left = left[~front]
        if not len(left):
            break
    with_nan = np.isnan(points).any(axis=1)
    if with_nan.any() and not with_nan.all():
        assert ranks[with_nan].min() > ranks[~with_nan].max()


def test_equal_points_stay_together():
    assert non_dominated(np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 2.0]])).tolist() == [True, True, False]


@given(_points(most=7))
def test_hypervolume_equals_inclusion_exclusion(points):
    reference = np.full(points.shape[1], 2.5)
    assert hypervolume(points, reference) == pytest.approx(_inclusion_exclusion(points, reference), abs=1e-9)


@settings(max_examples=30)
@given(_points(objectives=(2, 3)), st.randoms(use_true_random=False))
def test_hypervolume_grows_with_points_and_ignores_order(points, random):
    reference = np.full(points.shape[1], 4.0)
    whole = hypervolume(points, reference)
    order = list(range(len(points)))
    random.shuffle(order)
    assert hypervolume(points[order], reference) == pytest.approx(whole)
    assert hypervolume(points[:-1], reference) <= whole + 1e-12
    assert hypervolume(points[non_dominated(points)], reference) == pytest.approx(whole)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_hypervolume_agrees_with_sampling(objectives):
    rng = np.random.default_rng(objectives)
    points, samples = rng.random((40, objectives)), rng.random((100_000, objectives))
    covered = np.zeros(len(samples), dtype=bool)
    for point in points:
        covered |= (point <= samples).all(axis=1)
    assert hypervolume(points, np.ones(objectives)) == pytest.approx(covered.mean(), abs=0.006)


def test_hypervolume_of_what_is_not_finite_or_not_below():
    reference = np.array([1.0, 1.0])
    assert hypervolume(np.array([[math.nan, 0.0], [2.0, 0.0], [1.0, 0.0], [math.inf, 0.0]]), reference) == 0.0
    assert hypervolume(np.array([[-math.inf, 0.0], [0.5, 0.5]]), reference) == math.inf
    assert hypervolume(np.array([[0.0, 0.0]]), np.array([math.inf, 1.0])) == math.inf
    assert hypervolume(np.empty((0, 2)), reference) == 0.0


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        non_dominated(np.zeros(2))
    with pytest.raises(ValueError, match="2 objectives"):
        hypervolume(np.zeros((1, 2)), np.zeros(3))
