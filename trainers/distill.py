"""Training a student on a teacher's distribution."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from spaces.methods.distill import Distill
from spaces.methods.distill_in_context import DistillInContext
from spaces.methods.experts import DistillExperts
from spaces.methods.quantized_distill import QuantizedDistill
from spaces.plan import Plan
from trainers.alignment import Alignment, alignment
from trainers.batches import Batch
from trainers.loop import Fitted, Job, Loss, fit
from trainers.losses import Targets, soft_label_loss
from trainers.teacher import Form, Full, Sampled, TeacherOutputs, teacher_outputs

TaughtLoss = Callable[[Tensor, Any, Batch, float], Tensor]
"""From the student's logits (P × C), what is known of the teacher's there (``Targets``, or only log-probabilities where
a part would not do), the batch and the share of steps done."""


def distill(model: Any, job: Job) -> tuple[Any, Fitted]:
    """Carry out a ``Distill`` stage on the student ``model``. The time the teacher took to answer counts as its own."""
    stage: Distill = job.stage
    taught, loss = outputs_of_teacher(job, form=kept_form(stage, job.plan)), partial(soft_loss, stage)
    if stage.feature is None:
        return fit_taught(model, job, taught=taught, loss=loss)
    with alignment(model, stage.feature, job.plan.on_same_data(stage.teacher), job) as inside:
        return fit_taught(model, job, taught=taught, loss=loss, inside=inside, gamma=stage.gamma)


def soft_loss(
    stage: Distill | DistillExperts, student_PC: Tensor, teacher: Targets, batch: Batch, share: float
) -> Tensor:
    """Forward KL and gold labels, their weight moving with ``share``."""
    alpha = stage.alpha + (stage.alpha_end - stage.alpha) * share
    return soft_label_loss(
        student_PC, teacher, batch.labels_P, temperature=stage.temperature, alpha=alpha, count=batch.count
    )


def against(teacher: Callable[[Batch], Targets], loss: TaughtLoss) -> Loss:
    """``loss`` against what ``teacher`` says at the positions of a batch."""

    def against_teacher(outputs: Any, batch: Batch, share: float) -> Tensor:
        return loss(batch.at_positions(outputs.logits), teacher(batch), batch, share)

    return against_teacher


class _WithFeatures(nn.Module):
    """A loss of the answers, plus gamma times one of features."""

    def __init__(self, answers: Loss, inside: Alignment, gamma: float) -> None:
        super().__init__()
        self._answers, self.inside, self._gamma = answers, inside, gamma

    def forward(self, outputs: Any, batch: Batch, share: float) -> Tensor:
        return self._answers(outputs, batch, share) + self._gamma * self.inside(outputs, batch, share)


def fit_taught(
    model: Any, job: Job, *, taught: TeacherOutputs, loss: TaughtLoss, inside: Alignment | None = None, gamma: float = 0
) -> tuple[Any, Fitted]:
    """Train ``model`` by ``loss`` against kept outputs, plus ``gamma`` times a feature's. The time that the outputs
    took counts as training.
    """
    answers = against(taught.at, loss)
    if inside is None:
        fitted = fit(model, answers, job)
    else:
        fitted = fit(model, _WithFeatures(answers, inside, gamma), job, outputs=inside.outputs)
    return model, Fitted(fitted.seconds + taught.seconds, fitted.history)


def outputs_of_teacher(job: Job, *, form: Form | None = None) -> TeacherOutputs:
    """What the stage's one teacher answers to the training rows, kept in ``form``, or in full."""
    return teacher_outputs(job.plan.on_same_data(job.stage.teacher), job.context, form=form, ranks=job.ranks)


def kept_form(stage: Distill | DistillInContext | QuantizedDistill, plan: Plan) -> Form:
    """How the answers of the stage's teacher are kept."""
    if stage.num_draws is None:
        return Full()
    return Sampled(num_draws=stage.num_draws, temperature=stage.temperature, seed=plan.seed)
