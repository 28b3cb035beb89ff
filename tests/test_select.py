"""The choice: constraints, the front, what is measurably better, the wish; and the comparison behind it."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import make_record
from sklearn.metrics import f1_score

from search.compare import compare_by_interval, compare_by_rows
from search.select import NoChoice, choice_to_json, choose
from spaces.objectives import parse_constraint

LABELS = np.random.default_rng(0).integers(0, 4, 800)


def _predictions(shares, *, seed=1):
    """By record id: predictions that are right in a share of the rows, the same hard rows for all."""
    hard = np.random.default_rng(seed).permutation(len(LABELS)) / len(LABELS)
    return {f"t{n:05d}-fp32-cpu": np.where(hard < share, LABELS, (LABELS + 1) % 4) for n, share in enumerate(shares)}


def _choose(points, *, wish="knee", where=(), baseline=None, labels=LABELS, target="cpu", objectives=None, **changes):
    """``points``: (quality, latency) of one record each."""
    records = [make_record(n, quality=q, latency_ms=ms, **changes) for n, (q, ms) in enumerate(points)]
    predictions = _predictions([q or 0.0 for q, _ in points])
    return choose(
        records,
        metric="accuracy",
        objectives=objectives or ("accuracy", "latency_ms"),
        constraints=[parse_constraint(text) for text in where],
        target=target,
        wish=wish,
        predictions=lambda record_id: predictions[record_id],
        labels=labels,
        baseline=baseline,
    )


CURVE = [(0.50, 1.0), (0.70, 1.6), (0.78, 2.5), (0.82, 6.0), (0.60, 3.0)]


@pytest.mark.parametrize(
    ("wish", "number"),
    [
        ("quality", 3),
        ("cost", 0),
        ("knee", 2),
        ({"accuracy": 1.0}, 3),
        ({"latency_ms": 1.0}, 0),
        ({"accuracy": 10.0, "latency_ms": 1.0}, 3),
    ],
)
def test_wish_decides_among_those_worth_their_cost(wish, number):
    assert _choose(CURVE, wish=wish).record.number == number


def test_knee_is_farthest_from_the_line_between_the_ends():
    quality, cost = np.array([q for q, _ in CURVE[:4]]), np.log([ms for _, ms in CURVE[:4]])
    ends = np.array([[cost[0], quality[0]], [cost[-1], quality[-1]]])
    along = (ends[1] - ends[0]) / np.ptp(ends, axis=0)
    unit = np.stack([(cost - cost[0]) / np.ptp(cost), (quality - quality[0]) / np.ptp(quality)], axis=1)
    distance = (along[0] * unit[:, 1] - along[1] * unit[:, 0]) / np.hypot(*along)
    assert _choose(CURVE).record.number == int(np.argmax(distance))


def test_two_ends_have_no_knee_between_them():
    choice = _choose([CURVE[0], CURVE[3]])
    assert choice.record.number == 1
    assert "a knee needs a third between them" in choice.reasons[-1]


def test_dominated_variants_are_neither_chosen_nor_rivals():
    choice = _choose(CURVE, wish="quality")
    assert {record.number for record, _ in choice.rivals} == {0, 1, 2}
    assert [record.latency_ms for record, _ in choice.rivals] == sorted(r.latency_ms for r, _ in choice.rivals)


def test_a_gain_within_uncertainty_is_not_paid_for():
    choice = _choose([(0.700, 1.0), (0.7005, 4.0)], wish="quality")
    assert choice.record.number == 0
    [(rival, reason)] = choice.rivals
    assert rival.number == 1
    assert "not measurably better than the 70.0 % of the cheaper t00000-fp32-cpu" in reason


def test_a_gain_is_compared_with_those_that_stay():
    # 1 is not measurably better than 0, nor 2 than 1, but 2 is better than 0: were 2 dropped for 1 and 1 for 0, the
    # choice would be measurably worse than one of the rivals.
    records = [(0.700, 1.0), (0.7012, 2.0), (0.7024, 4.0), (0.74, 8.0)]
    choice = _choose(records, wish="quality", labels=None)
    assert choice.record.number == 0  # intervals of 0.04 on either side hide all of it
    paired = _choose([(0.700, 1.0), (0.7012, 2.0), (0.712, 4.0)], wish="quality")
    assert paired.record.number == 2
    assert "'quality'" in {record.number: why for record, why in paired.rivals}[0]


def test_constraints_and_the_baseline():
    choice = _choose(CURVE, where=["latency_ms <= 2"], wish="quality")
    assert choice.record.number == 1
    assert choice.reasons[0] == "2 of 5 complete variants on cpu satisfy 'latency_ms <= 2'."
    assert _choose(CURVE, where=["accuracy >= 0.95 * baseline"], baseline=0.8, wish="cost").record.number == 2


def test_a_constraint_without_its_baseline_is_said_not_to_be_checked():
    choice = _choose(CURVE, where=["accuracy >= baseline"], wish="cost")
    assert choice.record.number == 0
    assert choice.reasons[-1] == "'accuracy >= baseline' could not be checked, because the baseline was not trained."


def test_nothing_fits_names_the_constraints_and_the_nearest_miss():
    with pytest.raises(NoChoice) as error:
        _choose(CURVE, where=["accuracy >= 0.8", "latency_ms <= 2.4"])
    lines = str(error.value).splitlines()
    assert lines[0].startswith("none of 5 complete variants on target 'cpu'")
    assert lines[1].strip() == "'accuracy >= 0.8' rules out 4 of 5 (best reached: 82.0 %)"
    assert lines[2].strip() == "'latency_ms <= 2.4' rules out 3 of 5 (best reached: 1 ms)"
    assert "t00002-fp32-cpu" in lines[3]
    assert "accuracy 78.0 % instead of >= 80.0 % and latency 2.5 ms instead of <= 2.4 ms" in lines[3]


def test_a_number_that_was_not_measured_breaks_its_constraint():
    with pytest.raises(NoChoice, match="it was not measured"):
        _choose(CURVE, where=["energy_j <= 1"])


def test_only_complete_variants_on_the_target_count():
    with pytest.raises(NoChoice, match="no variant on target 'cpu' was trained to its end"):
        _choose(CURVE, status="stopped")
    with pytest.raises(NoChoice, match="no variant on target 'phone' was trained to its end"):
        _choose(CURVE, target="phone")


def test_missing_objectives_are_an_answer_not_a_crash():
    with pytest.raises(NoChoice, match="accuracy, energy_j"):
        _choose(CURVE, objectives=("accuracy", "energy_j"))
    assert _choose([(None, 1.0), (0.7, 2.0)]).record.number == 1


def test_one_record_and_equal_records():
    assert _choose([(0.7, 1.0)]).rivals == ()
    choice = _choose([(0.7, 1.0), (0.7, 1.0), (0.7, 1.0)])
    assert choice.record.number == 0
    assert len(choice.rivals) == 2


def test_several_costs_and_none():
    records = [
        make_record(n, quality=q, latency_ms=ms, size_mb=mb) for n, (q, ms, mb) in enumerate([(0.6, 1, 9), (0.6, 2, 3)])
    ]
    common = {"metric": "accuracy", "constraints": (), "target": "cpu", "labels": None, "baseline": None}
    both = choose(records, objectives=("accuracy", "latency_ms", "size_mb"), predictions=lambda _: (), **common)
    assert len(both.rivals) == 1
    assert "the wish 'knee' decides" in both.rivals[0][1]
    assert _choose(CURVE, objectives=("accuracy",)).record.number == 3


@pytest.mark.parametrize(
    ("wish", "message"),
    [("kne", "did you mean 'knee'"), ({"latency": 1.0}, "did you mean 'latency_ms'"), ({"accuracy": -1.0}, "negative")],
)
def test_unknown_wishes_are_named(wish, message):
    with pytest.raises(ValueError, match=message):
        _choose(CURVE, wish=wish)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.5, 0.55, 0.6, 0.7]), st.sampled_from([1.0, 2.0, 3.0])), min_size=1, max_size=6
    ),
    st.sampled_from(["knee", "quality", "cost"]),
    st.randoms(use_true_random=False),
)
def test_the_order_of_records_does_not_matter(points, wish, random):
    records = [make_record(n, quality=q, latency_ms=ms) for n, (q, ms) in enumerate(points)]
    predictions = _predictions([q for q, _ in points])
    common = {
        "metric": "accuracy",
        "objectives": ("accuracy", "latency_ms"),
        "constraints": (),
        "target": "cpu",
        "wish": wish,
        "predictions": predictions.__getitem__,
        "labels": LABELS,
        "baseline": None,
    }
    first = choose(records, **common)
    random.shuffle(records)
    assert choose(records, **common) == first


def test_costs_that_may_be_negative_are_compared_by_their_difference():
    points = [(0.50, -0.01), (0.75, 0.01), (0.80, 0.2)]
    records = [make_record(n, quality=q, forgetting=lost) for n, (q, lost) in enumerate(points)]
    common = {"metric": "accuracy", "constraints": (), "target": "cpu", "labels": None, "baseline": None}
    choice = choose(records, objectives=("accuracy", "forgetting"), predictions=lambda _: (), **common)
    assert choice.record.number == 1
    assert choice_to_json(choice)["record"]["forgetting"] == 0.01


def test_choice_as_json_holds_the_numbers_and_every_reason():
    choice = _choose(CURVE)
    found = json.loads(json.dumps(choice_to_json(choice), allow_nan=False))
    assert found["record"]["record_id"] == "t00002-fp32-cpu"
    assert found["record"]["accuracy"] == pytest.approx(0.78)
    assert len(found["rivals"]) == 3
    assert all(rival["reason"] for rival in found["rivals"])


# The comparison -------------------------------------------------------------------------------------------------


def _score(metric, labels, predictions):
    if metric == "accuracy":
        return np.mean(labels == predictions)
    return f1_score(labels, predictions, average="macro", labels=np.unique(labels), zero_division=0)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_paired_bootstrap_agrees_with_resampling_rows(metric):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 200)
    first = np.where(rng.random(200) < 0.8, labels, rng.integers(0, 3, 200))
    second = np.where(rng.random(200) < 0.3, first, labels)
    found = compare_by_rows(labels, first, second, metric=metric)
    picks = rng.integers(0, 200, (500, 200))
    slow = [_score(metric, labels[i], first[i]) - _score(metric, labels[i], second[i]) for i in picks]
    assert found.difference == pytest.approx(_score(metric, labels, first) - _score(metric, labels, second))
    assert [found.low, found.high] == pytest.approx(np.quantile(slow, [0.05, 0.95]), abs=0.012)


def test_false_alarms_are_near_five_percent():
    rng = np.random.default_rng(4)
    better = 0
    for seed in range(300):
        labels = np.zeros(300, dtype=np.int64)
        first, second = (rng.random((2, 300)) < 0.3).astype(np.int64)
        better += compare_by_rows(labels, first, second, metric="accuracy", seed=seed).better
    assert 4 <= better <= 30


def test_equal_predictions_are_not_better():
    found = compare_by_rows(LABELS, LABELS, LABELS, metric="macro_f1")
    assert (found.difference, found.low, found.high, found.better) == (0.0, 0.0, 0.0, False)


def test_intervals_stand_in_for_rows():
    good, bad = make_record(0, quality=0.8), make_record(1, quality=0.7)
    found = compare_by_interval(good, bad, metric="accuracy")
    assert found.difference == pytest.approx(0.1)
    assert found.high - found.difference == pytest.approx(1.644854 * np.sqrt(2) * 0.04 / 1.959964)
    assert found.better
    assert not compare_by_interval(bad, good, metric="accuracy").better
