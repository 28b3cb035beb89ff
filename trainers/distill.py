"""Training a student on a teacher's distribution."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from spaces.methods.distill import Distill
from spaces.methods.experts import DistillExperts
from trainers.batches import Batch
from trainers.loop import Fitted, Job, Loss, fit
from trainers.losses import soft_label_loss
from trainers.teacher import teacher_outputs


def distill(model: Any, job: Job) -> tuple[Any, Fitted]:
    """Carry out a ``Distill`` stage on the student ``model``. The time the teacher took to answer counts as its own."""
    stage: Distill = job.stage
    taught = teacher_outputs(job.plan.on_same_data(stage.teacher), job.context, ranks=job.ranks)
    fitted = fit(model, taught_loss(stage, taught.log_probs), job)
    return model, Fitted(fitted.seconds + taught.seconds, fitted.history)


def taught_loss(stage: Distill | DistillExperts, log_probs: np.ndarray) -> Loss:
    """The stage's loss against a teacher's log-probabilities at every position of the training rows."""

    def loss(outputs: Any, batch: Batch, share: float) -> Tensor:
        logits = batch.at_positions(outputs.logits)
        teacher = torch.from_numpy(log_probs[batch.positions_P]).to(logits.device)
        alpha = stage.alpha + (stage.alpha_end - stage.alpha) * share
        return soft_label_loss(
            logits, teacher, batch.labels_P, temperature=stage.temperature, alpha=alpha, count=batch.count
        )

    return loss
