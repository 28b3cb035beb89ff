"""Training on gold rows and on unlabeled ones, with the labels or responses that a teacher gives them."""

from typing import Any

import numpy as np

from spaces.methods.pseudo_label import PseudoLabel
from trainers.finetune import gold_loss
from trainers.kinds import kind_of, split_tokens
from trainers.loop import Fitted, Job, TrainingError, fit


def pseudo_label(model: Any, job: Job) -> tuple[Any, Fitted]:
    """Carry out a ``PseudoLabel`` stage on the student ``model``. Labelling counts as training time.

    Raises:
        TrainingError: the teacher is sure of no row.
    """
    stage: PseudoLabel = job.stage
    gold, unlabeled = (split_tokens(job.context, base=job.plan.reader, split=name) for name in ("train", "unlabeled"))
    teacher = job.plan.on_same_data(stage.teacher)
    found = kind_of(job.context).pseudo_labels(teacher, job.context, ranks=job.ranks, heartbeat=job.heartbeat)
    kept = found.confidences >= stage.confidence
    if not kept.any():
        raise TrainingError(f"pseudo_label: {_why_none(found.confidences, stage.confidence)}")
    rows = np.flatnonzero(kept)
    sure = unlabeled.answered(rows, [found.answers[row] for row in rows.tolist()])
    fitted = fit(model, gold_loss, job, tokens=gold.joined(sure))
    notes = {"pseudo_labels_kept": float(kept.mean()), "pseudo_labels": float(kept.sum())}
    return model, Fitted(fitted.seconds + found.seconds, fitted.history, notes)


def _why_none(confidences: np.ndarray, threshold: float) -> str:
    usable = confidences[~np.isnan(confidences)]
    if not len(usable):
        return (
            f"nothing that the teacher wrote to the {len(confidences)} unlabeled prompts is of use: all is empty, or "
            "had not ended when it was cut off; raise task.max_new_tokens, or train it longer (search.teacher_recipes)"
        )
    return (
        f"the teacher is sure of none of the {len(confidences)} unlabeled rows: its highest confidence is "
        f"{usable.max():.3f}, the threshold {threshold:g}; lower search.space.confidence"
    )
