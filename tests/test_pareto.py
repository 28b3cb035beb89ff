"""Fronts, ranks and hypervolume against slow references that follow the definitions word by word."""

import itertools
import math

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from search.pareto import StreamingFront, domination_ranks, free_boxes, hypervolume, non_dominated

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


def _cells(points, reference):
    """Volume of all cells of the grid through the points' coordinates whose lower corner some point dominates."""
    points = np.array([row for row in points if (row < reference).all()]).reshape(-1, len(reference))
    if not len(points):
        return 0.0
    edges = [np.unique(np.append(points[:, axis], end)) for axis, end in enumerate(reference)]
    corners = np.stack(np.meshgrid(*(edge[:-1] for edge in edges), indexing="ij"), axis=-1)
    sizes = math.prod(np.meshgrid(*(np.diff(edge) for edge in edges), indexing="ij"))
    covered = (points <= corners[..., None, :]).all(axis=-1).any(axis=-1)
    return float(np.sum(sizes[covered]))


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


@given(_points(), st.data())
def test_a_point_that_another_one_dominates_changes_neither_front_nor_hypervolume(points, data):
    if not len(points):
        return
    beaten = np.array(data.draw(st.sampled_from(points.tolist())))
    worse = beaten + data.draw(arrays(float, len(beaten), elements=st.sampled_from([0.0, 0.5, math.inf])))
    if (worse == beaten).all():
        return
    reference, more = np.full(points.shape[1], 4.0), np.vstack([points, worse])
    assert non_dominated(more).tolist() == [*non_dominated(points).tolist(), False]
    assert hypervolume(more, reference) == pytest.approx(hypervolume(points, reference))


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


def _on_a_sphere(count, objectives, *, seed=0):
    """A front: none of the points dominates another."""
    points = np.abs(np.random.default_rng(seed).normal(size=(count, objectives)))
    return 1 - points / np.linalg.norm(points, axis=1, keepdims=True)


@pytest.mark.parametrize(("objectives", "count"), [(1, 30), (2, 200), (3, 40), (4, 14), (5, 8)])
def test_hypervolume_of_fronts_equals_the_sum_of_all_cells(objectives, count):
    points = _on_a_sphere(count, objectives)
    reference = np.linspace(0.9, 1.1, objectives)
    assert hypervolume(points, reference) == pytest.approx(_cells(points, reference), rel=1e-12)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(("objectives", "count"), [(2, 300), (3, 100), (4, 60)])
def test_hypervolume_agrees_with_optuna(objectives, count):
    points = _on_a_sphere(count, objectives, seed=1)
    study = optuna.create_study(directions=["minimize"] * objectives)
    study.add_trials([optuna.trial.create_trial(values=row) for row in points.tolist()])
    shown = optuna.visualization.plot_hypervolume_history(study, [1.1] * objectives).data[0].y[-1]
    assert hypervolume(points, np.full(objectives, 1.1)) == pytest.approx(shown, rel=1e-12)


def test_hypervolume_of_what_is_not_finite_or_not_below():
    reference = np.array([1.0, 1.0])
    assert hypervolume(np.array([[math.nan, 0.0], [2.0, 0.0], [1.0, 0.0], [math.inf, 0.0]]), reference) == 0.0
    assert hypervolume(np.array([[-math.inf, 0.0], [0.5, 0.5]]), reference) == math.inf
    assert hypervolume(np.array([[0.0, 0.0]]), np.array([math.inf, 1.0])) == math.inf
    assert hypervolume(np.empty((0, 2)), reference) == 0.0


# What is free ---------------------------------------------------------------------------------------------------------


def _box_case(values):
    """(points, reference, places) of 2 to 4 objectives."""

    def of(objectives):
        row = st.lists(values, min_size=objectives, max_size=objectives)
        several = st.lists(row, max_size=8).map(lambda rows: np.array(rows, dtype=float).reshape(-1, objectives))
        return st.tuples(several, row.filter(lambda r: not any(map(math.isnan, r))).map(np.array), several)

    return st.integers(2, 4).flatmap(of)


@given(_box_case(_WITH_SPECIAL))
def test_a_place_is_in_one_free_box_unless_a_point_dominates_it(case):
    points, reference, places = case
    lower, upper = free_boxes(points, reference)
    for place in [*places, *points]:
        inside = int(np.sum((lower <= place).all(axis=1) & (place < upper).all(axis=1)))
        taken = any((point <= place).all() for point in points)
        assert inside == (0 if taken or not (place < reference).all() else 1)


@given(_box_case(_VALUES))
def test_free_boxes_fill_what_the_hypervolume_leaves(case):
    points, reference, _ = case
    lower, upper = free_boxes(points, reference)
    floor = np.full(len(reference), -2.0)
    whole = float(np.prod(np.maximum(reference - floor, 0)))
    free = float(np.sum(np.prod(np.maximum(upper - np.maximum(lower, floor), 0), axis=1)))
    assert free == pytest.approx(whole - _cells(points, reference), abs=1e-9)


@pytest.mark.parametrize(("objectives", "most"), [(2, 101), (3, 201), (4, 1000)])
def test_free_boxes_are_few(objectives, most):
    points, reference = _on_a_sphere(100, objectives), np.full(objectives, 1.1)
    lower, upper = free_boxes(points, reference)
    assert len(lower) <= most
    free = np.sum(np.prod(upper - np.maximum(lower, -0.1), axis=1))
    assert free == pytest.approx(1.2**objectives - hypervolume(points, reference))


def test_free_boxes_by_hand():
    lower, upper = free_boxes(np.array([[1.0, 2.0], [3.0, 0.0], [3.5, 0.5], [5.0, -1.0]]), np.array([4.0, 4.0]))
    assert lower.tolist() == [[-math.inf, -math.inf], [1.0, -math.inf], [3.0, -math.inf]]
    assert upper.tolist() == [[1.0, 4.0], [3.0, 2.0], [4.0, 0.0]]


def test_without_points_all_below_the_reference_is_free():
    lower, upper = free_boxes(np.empty((0, 3)), np.array([1.0, 2.0, 3.0]))
    assert (lower.tolist(), upper.tolist()) == ([[-math.inf] * 3], [[1.0, 2.0, 3.0]])


# Point by point -------------------------------------------------------------------------------------------------------


def _stream(points, reference):
    front = StreamingFront(reference)
    return front, [front.add(point) for point in points]


@given(_points(_WITH_SPECIAL, objectives=(2,), most=20))
def test_a_streaming_front_equals_the_batch(points):
    reference = np.array([2.5, 3.0])
    front, gains = _stream(points, reference)
    below = points[(points < reference).all(axis=1)]
    assert front.points.tolist() == np.unique(below[non_dominated(below)], axis=0).tolist()
    assert front.hypervolume == pytest.approx(hypervolume(points, reference))
    for index, gain in enumerate(gains):
        before, after = (hypervolume(points[:end], reference) for end in (index, index + 1))
        if math.isfinite(after):
            assert gain == pytest.approx(after - before, abs=1e-9)
        beaten = (points[:index] <= points[index]).all(axis=1).any()
        assert (gain > 0) == ((points[index] < reference).all() and not beaten)


@given(_points(objectives=(2,), most=20), st.data())
def test_a_dominated_point_changes_nothing(points, data):
    front, _ = _stream(points, (4.0, 4.0))
    before = front.points.tolist(), front.hypervolume
    if len(points):
        beaten = data.draw(st.sampled_from(points.tolist()))
        worse = [x + data.draw(st.sampled_from([0.0, 0.5, math.inf])) for x in beaten]
        assert front.add(worse) == 0.0
        assert (front.points.tolist(), front.hypervolume) == before


def test_a_streaming_front_of_thousands_equals_the_batch():
    points = np.random.default_rng(0).random((5000, 2)) ** 2
    front, gains = _stream(points, (1.0, 1.0))
    assert front.points.tolist() == np.unique(points[non_dominated(points)], axis=0).tolist()
    assert front.hypervolume == sum(gains) == pytest.approx(hypervolume(points, np.ones(2)), rel=1e-12)


def test_a_streaming_front_reaches_to_an_infinite_reference():
    front = StreamingFront((math.inf, 1.0))
    assert front.add((0.0, 0.5)) == math.inf
    assert front.add((-1.0, 0.5)) == 0.5
    assert front.points.tolist() == [[-1.0, 0.5]]
    assert front.hypervolume == math.inf


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        non_dominated(np.zeros(2))
    with pytest.raises(ValueError, match="2 objectives"):
        hypervolume(np.zeros((1, 2)), np.zeros(3))
    with pytest.raises(ValueError, match="have one"):
        free_boxes(np.zeros((1, 1)), np.ones(1))


def test_a_reference_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="nan"):
        hypervolume(np.zeros((1, 2)), np.array([1.0, math.nan]))
    with pytest.raises(ValueError, match="nan"):
        StreamingFront((math.nan, 1.0))
