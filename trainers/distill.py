"""Training a student on a teacher's distribution."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spaces.methods.distill import Distill
from spaces.methods.experts import DistillExperts
from trainers.alignment import Alignment, alignment
from trainers.batches import Batch
from trainers.loop import Fitted, Job, Loss, fit
from trainers.losses import soft_label_loss
from trainers.teacher import teacher_outputs


def distill(model: Any, job: Job) -> tuple[Any, Fitted]:
    """Carry out a ``Distill`` stage on the student ``model``. The time the teacher took to answer counts as its own."""
    stage: Distill = job.stage
    teacher = job.plan.on_same_data(stage.teacher)
    taught = teacher_outputs(teacher, job.context, ranks=job.ranks)
    loss = taught_loss(stage, taught.log_probs)
    if stage.feature is None:
        fitted = fit(model, loss, job)
    else:
        with alignment(model, stage.feature, teacher, job) as inside:
            fitted = fit(model, _WithFeatures(loss, inside, stage.gamma), job, outputs=inside.outputs)
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


class _WithFeatures(nn.Module):
    """A loss of the answers, plus gamma times one of features."""

    def __init__(self, answers: Loss, inside: Alignment, gamma: float) -> None:
        super().__init__()
        self._answers, self.inside, self._gamma = answers, inside, gamma

    def forward(self, outputs: Any, batch: Batch, share: float) -> Tensor:
        return self._answers(outputs, batch, share) + self._gamma * self.inside(outputs, batch, share)
