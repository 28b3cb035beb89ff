"""The quality of a trained plan, measured on what is deployed: every precision by itself, one row at a time."""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spaces.plan import Plan
from spaces.targets import Precision
from trainers.context import Context
from trainers.deploy import deploy
from trainers.models import ModelError
from trainers.serving import feeds, open_session
from trainers.storage import StorageError
from trainers.tokens import Tokens, open_tokens

RESAMPLES = 1000
_Z95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A quality metric and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A trained plan at one precision, and what it answered."""

    precision: Precision
    quality: Quality
    predictions: tuple[int, ...]
    """Label of each row of the split, in its order."""
    train_quality: float | None = None


def evaluate_plan(
    plan: Plan, precisions: Sequence[Precision], context: Context, *, split: str = "validation"
) -> list[Variant]:
    """Deploy the trained ``plan`` at each precision and measure it on a split.

    Raises:
        ModelError: the plan has not been trained.
    """
    model = context.store.find(plan.fingerprint)
    if model is None:
        raise ModelError(f"{plan.fingerprint[:12]}…: not in {context.artifacts}; train the plan before evaluating it")
    tokens = split_tokens(context, base=plan.base, split=split)
    variants = []
    for precision in precisions:
        with tempfile.TemporaryDirectory(prefix="distune-") as folder:
            file = deploy(model, plan=plan, precision=precision, context=context, folder=Path(folder))
            predictions = predict(file, tokens, threads=context.threads)
        measured = quality(context.metric, tokens.labels, predictions)
        variants.append(Variant(precision=precision, quality=measured, predictions=tuple(predictions.tolist())))
    return variants


def split_tokens(context: Context, *, base: str, split: str) -> Tokens:
    """The tokenised rows of a split for the model with fingerprint ``base``.

    Raises:
        ModelError: there is no such split.
        StorageError: its artifact is gone.
    """
    splits = context.tokens.get(base, {})
    if split not in splits:
        raise ModelError(f"no tokenised {split!r} rows for model {base[:12]}…; there are {sorted(splits)}")
    artifact = context.store.find(splits[split])
    if artifact is None:
        # Written before the first plan and needed by all of them.
        raise StorageError(f"{context.artifacts}: the tokenised {split!r} rows are gone")
    return open_tokens(artifact)


def predict(onnx_file: Path, tokens: Tokens, *, threads: int) -> np.ndarray:
    """The label (int64) that a deployed graph gives each row, on ``threads`` threads.

    Rows go one by one, as they are served: a dynamically quantised graph takes the range of its activations from the
    whole batch, so that its answers would depend on a row's neighbours.
    """
    session = open_session(onnx_file)

    def label(row: int) -> int:
        return int(session.run(["logits"], feeds(tokens.ids(row)))[0][0].argmax())

    with ThreadPoolExecutor(threads) as pool:
        return np.fromiter(pool.map(label, range(len(tokens))), dtype=np.int64, count=len(tokens))


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
