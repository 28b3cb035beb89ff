"""Training a student on a teacher's distribution."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from spaces.methods.distill import Distill
from spaces.methods.distill_in_context import DistillInContext
from spaces.methods.distill_reverse_kl import DistillDivergence
from spaces.methods.experts import DistillExperts
from spaces.methods.quantized_distill import QuantizedDistill
from spaces.plan import Plan
from trainers.alignment import Alignment, alignment
from trainers.batches import Batch
from trainers.loop import Fitted, Job, Loss, fit
from trainers.losses import IGNORED, Targets, cross_entropy, generalized_jsd, skewed_kl, soft_label_loss
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


def distill_divergence(model: Any, job: Job) -> tuple[Any, Fitted]:
    """Carry out a ``DistillDivergence`` stage on the student ``model``; time as in ``distill``."""
    return fit_taught(model, job, taught=outputs_of_teacher(job), loss=partial(divergence_loss, job.stage))


def soft_loss(
    stage: Distill | DistillExperts, student_PC: Tensor, teacher: Targets, batch: Batch, share: float
) -> Tensor:
    """Forward KL and gold labels, their weight moving with ``share``."""
    alpha = stage.alpha + (stage.alpha_end - stage.alpha) * share
    return soft_label_loss(
        student_PC, teacher, batch.labels_P, temperature=stage.temperature, alpha=alpha, count=batch.count
    )


def divergence_loss(
    stage: DistillDivergence, student_PC: Tensor, teacher_PC: Tensor, batch: Batch, _share: float
) -> Tensor:
    """The stage's divergence, times T² as in soft labels, and gold labels."""
    valid = batch.labels_P != IGNORED
    divergence: Callable[..., Tensor] = (
        partial(generalized_jsd, beta=stage.mix)
        if stage.divergence == "jsd"
        else partial(skewed_kl, alpha=stage.mix, reverse=stage.divergence == "skewed_reverse_kl")
    )
    soft = divergence(student_PC, teacher_PC, valid, temperature=stage.temperature, count=batch.count)
    hard = cross_entropy(student_PC, batch.labels_P, count=batch.count)
    return stage.alpha * stage.temperature**2 * soft + (1 - stage.alpha) * hard


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
