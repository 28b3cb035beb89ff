"""Whether one variant's quality is measurably better than another's on the same validation rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.records import Record
from spaces.objectives import OBJECTIVES

RESAMPLES = 2000
_LEVEL = 0.05
_Z95, _Z90 = 1.959964, 1.644854
Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Quality of the first minus quality of the second, with the 90 % interval of that difference.

    By ``Objective.score``: positive where the first is better; of what is minimised, a difference of logarithms.
    """

    difference: float
    low: float
    high: float

    @property
    def better(self) -> bool:
        """Whether the first is better at the one-sided 5 % level."""
        return self.low > 0


def compare_by_rows(labels: Labels, first: Labels, second: Labels, *, metric: str, seed: int = 0) -> Comparison:
    """Paired percentile bootstrap [Efron1993] over the rows: label indices, all of one length n > 0."""
    # Rows that agree in label and both predictions are one and the same to either metric, so resampling the counts of
    # such groups is resampling the rows, at a small part of the memory.
    groups, counts = np.unique(np.stack([labels, first, second]), axis=1, return_counts=True)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(labels), counts / len(labels), size=RESAMPLES)
    differences = _difference(groups, weights, metric)
    low, high = np.quantile(differences, [_LEVEL, 1 - _LEVEL])
    found = _difference(groups, counts[None], metric)[0]
    return Comparison(difference=float(found), low=float(low), high=float(high))


def compare_by_interval(first: Record, second: Record, *, metric: str) -> Comparison:
    """Normal approximation from the two 95 % intervals, as if the rows were different ones: cautious."""
    difference = _score(first.quality, metric) - _score(second.quality, metric)
    spread = _Z90 * float(np.hypot(_standard_error(first, metric), _standard_error(second, metric)))
    return Comparison(difference=difference, low=difference - spread, high=difference + spread)


def _score(quality: float | None, metric: str) -> float:
    return 0.0 if quality is None else OBJECTIVES[metric].score(quality)


def _standard_error(record: Record, metric: str) -> float:
    if record.quality_low is None or record.quality_high is None:
        return 0.0
    return abs(_score(record.quality_high, metric) - _score(record.quality_low, metric)) / (2 * _Z95)


def _difference(groups: Labels, weights: Labels, metric: str) -> NDArray[np.float64]:
    """For each row of ``weights`` (resamples × groups): metric of the first predictions minus that of the second."""
    score = _macro_f1 if metric == "macro_f1" else _accuracy
    labels, first, second = groups
    return score(labels, first, weights) - score(labels, second, weights)


def _accuracy(labels: Labels, predictions: Labels, weights: Labels) -> NDArray[np.float64]:
    return weights @ (labels == predictions) / weights.sum(axis=1)


def _macro_f1(labels: Labels, predictions: Labels, weights: Labels) -> NDArray[np.float64]:
    """Mean over the classes of 2 TP / (2 TP + FP + FN); 0 for a class that a resample does not hold."""
    classes = np.unique(labels)
    of_class, called = labels[:, None] == classes, predictions[:, None] == classes
    right = weights @ (of_class & called)
    either = weights @ of_class + weights @ called
    return np.mean(2 * right / np.maximum(either, 1), axis=1)
