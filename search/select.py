"""What to ship: one variant out of many, and why.

Feasible variants, then the front, then only those that are measurably better than every cheaper one that is left,
then the user's wish. The same records give the same choice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.compare import Comparison, compare_by_interval, compare_by_rows
from search.pareto import non_dominated
from search.question import Question, Wish
from search.reasons import nothing_fits, reasons, why_dropped, why_lost
from search.records import Record
from spaces.objectives import OBJECTIVES, QUALITY_METRICS, Constraint, nearest

WISHES = ("knee", "quality", "cost")
Predictions = Callable[[str], Sequence[int]]


class NoChoice(Exception):
    """Nothing fits. Says which constraint rules out how many, and what comes nearest."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The variant to ship on one target."""

    record: Record
    rivals: tuple[tuple[Record, str], ...]
    """The rest of the front, cheapest first, each with why it was not taken."""
    reasons: tuple[str, ...]
    """Whole sentences."""
    metric: str
    objectives: tuple[str, ...]
    wish: Wish
    baseline: float | None


def choose(
    records: Sequence[Record],
    *,
    metric: str,
    objectives: Sequence[str],
    constraints: Sequence[Constraint],
    target: str,
    wish: Wish = "knee",
    predictions: Predictions,
    labels: NDArray[np.int64] | None,
    baseline: float | None,
) -> Choice:
    """The variant to ship on ``target``.

    ``predictions`` gives a record's label index for each validation row, ``labels`` what is right there; without them
    qualities are compared by their intervals. ``baseline`` is the quality that relative constraints refer to.

    Raises:
        NoChoice: no complete variant satisfies the constraints.
        ValueError: ``wish`` is unknown.
    """
    _check_wish(wish, objectives)
    question = Question(
        metric=metric,
        objectives=tuple(objectives),
        constraints=tuple(constraints),
        target=target,
        wish=wish,
        baseline=baseline,
    )
    complete = [record for record in records if record.status == "complete" and record.target == target]
    front = _front(feasible_variants(complete, question), question)
    kept, dropped = _worth_their_cost(front, question, _comparer(predictions, labels, metric))
    scores = _scores(kept, question)
    best = kept[max(range(len(kept)), key=lambda index: scores[index])]
    lost = {record.record_id: why_lost(record, best, question) for record in kept if record is not best} | dropped
    return Choice(
        record=best,
        rivals=tuple((record, lost[record.record_id]) for record in front if record is not best),
        reasons=tuple(reasons(complete, front, kept, question=question, paired=labels is not None)),
        metric=metric,
        objectives=tuple(objectives),
        wish=wish,
        baseline=baseline,
    )


def choice_to_json(choice: Choice) -> dict[str, Any]:
    """The choice, its rivals and every reason, as plain JSON."""
    return {
        "record": record_to_json(choice.record, metric=choice.metric),
        "rivals": [
            {**record_to_json(record, metric=choice.metric), "reason": reason} for record, reason in choice.rivals
        ],
        "reasons": list(choice.reasons),
        "wish": dict(choice.wish) if isinstance(choice.wish, Mapping) else choice.wish,
        "baseline": choice.baseline,
    }


def _check_wish(wish: Wish, objectives: Sequence[str]) -> None:
    if isinstance(wish, str):
        if wish not in WISHES:
            raise ValueError(f"wish {wish!r} is unknown{nearest(wish, WISHES)}")
        return
    for name, weight in wish.items():
        if name not in objectives:
            raise ValueError(f"weight for {name!r}, which is no objective of this search{nearest(name, [*objectives])}")
        if not weight >= 0:
            raise ValueError(f"weight {weight} for {name!r} must not be negative")


# Constraints ----------------------------------------------------------------------------------------------------


def feasible_variants(complete: Sequence[Record], question: Question) -> list[Record]:
    """Those of the ``complete`` variants on the question's target that break no constraint, at least one.

    Raises:
        NoChoice: there is none.
    """
    if not complete:
        raise NoChoice(f"no variant on target {question.target!r} was trained to its end; let the search go on")
    feasible = [record for record in complete if not question.broken(record)]
    if not feasible:
        raise NoChoice(nothing_fits(complete, question))
    return feasible


# The front, and what is worth its cost --------------------------------------------------------------------------


def _front(feasible: Sequence[Record], question: Question) -> list[Record]:
    """Non-dominated variants, cheapest first; of twins in every objective the one that trains faster comes first."""
    points = [[-question.gain(record), *question.cost_values(record)] for record in feasible]
    mask = non_dominated(np.array(points, dtype=float))
    front = [record for record, keep in zip(feasible, mask, strict=True) if keep]
    if not front:
        names = ", ".join(question.objectives)
        raise NoChoice(f"no variant on target {question.target!r} has a value for every objective ({names})")
    return sorted(front, key=lambda r: (question.cost_values(r), r.train_seconds or 0.0, r.record_id))


def _worth_their_cost(
    front: Sequence[Record], question: Question, compare: Callable[[Record, Record], Comparison]
) -> tuple[list[Record], dict[str, str]]:
    # Cheapest first, and compared only with those that stay: so A is never dropped for B and B for C where A is
    # measurably better than C.
    kept: list[Record] = []
    dropped: dict[str, str] = {}
    for record in front:
        for cheaper in kept:
            found = compare(record, cheaper) if _costs_less(cheaper, record, question) else None
            if found is not None and not found.better:
                dropped[record.record_id] = why_dropped(record, cheaper, found, question)
                break
        else:
            kept.append(record)
    return kept, dropped


def _costs_less(cheaper: Record, record: Record, question: Question) -> bool:
    pairs = list(zip(question.cost_values(cheaper), question.cost_values(record), strict=True))
    # Twins in every cost are of equal quality too, or one would dominate: the first stands for both.
    return all(a <= b for a, b in pairs)


def _comparer(
    predictions: Predictions, labels: NDArray[np.int64] | None, metric: str
) -> Callable[[Record, Record], Comparison]:
    def compare(record: Record, cheaper: Record) -> Comparison:
        if labels is not None:
            ours, theirs = (np.asarray(predictions(r.record_id), dtype=np.int64) for r in (record, cheaper))
            if len(ours) == len(theirs) == len(labels) > 0:
                return compare_by_rows(labels, ours, theirs, metric=metric)
        return compare_by_interval(record, cheaper, metric=metric)

    return compare


# The wish -------------------------------------------------------------------------------------------------------


def _scores(kept: Sequence[Record], question: Question) -> list[tuple[float, float]]:
    """What is to be largest, and quality to settle ties. Costs are within [0, 1], most of them by their logarithm."""
    quality = _scored(kept, question.metric, question)
    costs = np.array([_unit(-_scored(kept, name, question)) for name in question.costs] or [np.zeros(len(kept))]).T
    total = _wished(_unit(quality), costs, question)
    return [(round(float(score), 12), float(value)) for score, value in zip(total, quality, strict=True)]


def _scored(kept: Sequence[Record], name: str, question: Question) -> NDArray[np.float64]:
    return np.array([OBJECTIVES[name].score(question.value(record, name)) for record in kept])


def _wished(quality: NDArray[np.float64], costs: NDArray[np.float64], question: Question) -> NDArray[np.float64]:
    if isinstance(question.wish, Mapping):
        weights = np.array([question.wish.get(name, 0.0) for name in question.costs] or [0.0])
        return question.wish.get(question.metric, 0.0) * quality - costs @ weights
    if question.wish == "quality":
        return quality
    if question.wish == "cost":
        return -costs.mean(axis=1)
    return quality - costs.mean(axis=1)  # [Satopaa2011]: farthest above the line between the ends


def _unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    span = np.ptp(values)
    return (values - values.min()) / span if span > 0 else np.zeros_like(values)


def record_to_json(record: Record, *, metric: str) -> dict[str, Any]:
    """What a record is, its quality as ``metric``, and its costs, as plain JSON."""
    costs = [name for name in OBJECTIVES if name not in QUALITY_METRICS]
    return {
        "record_id": record.record_id,
        "strategy": record.strategy,
        "params": dict(record.params),
        "precision": record.precision,
        "target": record.target,
        "estimated": record.estimated,
        metric: record.quality,
        f"{metric}_low": record.quality_low,
        f"{metric}_high": record.quality_high,
        **{name: record.value(name, metric) for name in costs},
    }
