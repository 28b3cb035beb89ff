"""Quality metrics of a classifier's answers, each with its 95 % interval."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
_Z95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A quality metric and its 95 % interval."""

    value: float
    low: float
    high: float


def quality(metric: str, labels: np.ndarray, predictions: np.ndarray) -> Quality:
    """The metric (``accuracy`` or ``macro_f1``) of ``predictions``, with its 95 % interval.

    Accuracy: the score interval of Wilson (1927). Macro F1: percentiles of a bootstrap over rows, seeded.

    Raises:
        ValueError: another metric, no rows, or not as many predictions as labels.
    """
    if metric not in _QUALITIES:
        raise ValueError(f"`metric` must be one of {sorted(_QUALITIES)}, but got {metric!r}")
    if not 0 < len(labels) == len(predictions):
        raise ValueError(f"each label needs one prediction, but got ({len(labels)=}, {len(predictions)=})")
    return _QUALITIES[metric](np.asarray(labels), np.asarray(predictions))


def macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean F1 over the labels that occur in either."""
    size = int(max(labels.max(), predictions.max())) + 1
    right = np.bincount(labels[labels == predictions], minlength=size)
    total = np.bincount(labels, minlength=size) + np.bincount(predictions, minlength=size)
    present = total > 0
    return float((2 * right[present] / total[present]).mean())


def wilson(successes: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion, which holds it and lies within [0, 1]."""
    share = successes / total
    spread = _Z95**2 / total
    centre = share + spread / 2
    half = _Z95 * np.sqrt(share * (1 - share) / total + spread / (4 * total))
    low, high = (centre - half) / (1 + spread), (centre + half) / (1 + spread)
    return max(0.0, min(share, float(low))), min(1.0, max(share, float(high)))


def _accuracy(labels: np.ndarray, predictions: np.ndarray) -> Quality:
    right = int((labels == predictions).sum())
    low, high = wilson(right, len(labels))
    return Quality(value=right / len(labels), low=low, high=high)


def _macro_f1(labels: np.ndarray, predictions: np.ndarray) -> Quality:
    rng = np.random.default_rng(0)
    value = macro_f1(labels, predictions)
    samples = (rng.integers(len(labels), size=len(labels)) for _ in range(RESAMPLES))
    low, high = np.percentile([macro_f1(labels[rows], predictions[rows]) for rows in samples], [2.5, 97.5])
    return Quality(value=value, low=min(float(low), value), high=max(float(high), value))


_QUALITIES: dict[str, Callable[[np.ndarray, np.ndarray], Quality]] = {"accuracy": _accuracy, "macro_f1": _macro_f1}
