"""Training on gold rows and on unlabeled ones, with the labels that a teacher gives them."""

import time
from typing import Any

import numpy as np

from spaces.methods.pseudo_label import PseudoLabel
from trainers.compute import logits
from trainers.finetune import gold_loss
from trainers.kinds import split_tokens
from trainers.loop import Fitted, Job, TrainingError, fit
from trainers.tokens import LabelledTokens
from trainers.trained import trained_teacher


def pseudo_label(model: Any, job: Job) -> tuple[Any, Fitted]:
    """Carry out a ``PseudoLabel`` stage on the student ``model``. Labelling counts as training time.

    Raises:
        TrainingError: the teacher is sure of no row.
    """
    stage: PseudoLabel = job.stage
    gold, unlabeled = (split_tokens(job.context, base=job.plan.reader, split=name) for name in ("train", "unlabeled"))
    assert isinstance(unlabeled, LabelledTokens)
    started = time.perf_counter()
    labels, confidences = _labels(job)
    kept = confidences >= stage.confidence
    seconds = time.perf_counter() - started
    if not kept.any():
        raise TrainingError(
            f"pseudo_label: the teacher is sure of none of the {len(kept)} unlabeled rows: its highest confidence is "
            f"{confidences.max():.3f}, the threshold {stage.confidence:g}; lower search.space.confidence"
        )
    rows = np.flatnonzero(kept)
    fitted = fit(model, gold_loss, job, tokens=gold.joined(unlabeled.take(rows).labelled(labels[rows])))
    notes = {"pseudo_labels_kept": float(kept.mean()), "pseudo_labels": float(kept.sum())}
    return model, Fitted(fitted.seconds + seconds, fitted.history, notes)


def _labels(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's label of each unlabeled row (int64), and the probability that it gives it."""
    teacher, context = job.plan.on_same_data(job.stage.teacher), job.context
    model = trained_teacher(teacher, context)
    tokens = split_tokens(context, base=teacher.reader, split="unlabeled")
    confidence, label = logits(model, tokens, context=context, ranks=job.ranks).softmax(dim=-1).max(dim=-1)
    return label.numpy(), confidence.numpy()
