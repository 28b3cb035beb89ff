"""Training a student by a divergence of the reverse family, on gold responses or on what it writes itself."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spaces.methods.distill_reverse_kl import DistillDivergence
from trainers.batches import Batch
from trainers.compute import autocast, fast_attention
from trainers.context import Context
from trainers.distill import against, fit_taught, outputs_of_teacher
from trainers.generation_tokens import ResponseTokens
from trainers.kinds import split_tokens
from trainers.loop import Fitted, Job, fit
from trainers.losses import IGNORED, cross_entropy, generalized_jsd, skewed_kl
from trainers.own_text import OwnText
from trainers.trained import trained_teacher


def distill_divergence(model: Any, job: Job) -> tuple[Any, Fitted]:
    """Carry out a ``DistillDivergence`` stage on the student ``model``. The time the teacher took to answer counts.

    Raises:
        ModelError: the teacher has not been trained, or its outputs are to be kept and do not fit in memory.
    """
    stage: DistillDivergence = job.stage
    loss = partial(divergence_loss, stage)
    if not stage.lmbda:
        return fit_taught(model, job, taught=outputs_of_teacher(job), loss=loss)
    tokens = split_tokens(job.context, base=job.plan.reader, split="train")
    assert isinstance(tokens, ResponseTokens)
    teacher = trained_teacher(job.plan.on_same_data(stage.teacher), job.context)
    with fast_attention(teacher, longest=int(tokens.lengths.max()), context=job.context):
        own = OwnText(tokens, job, share=stage.lmbda)
        return model, fit(model, against(online(teacher, job.context), loss), job, rewrite=own)


def online(teacher: Any, context: Context) -> Callable[[Batch], Tensor]:
    """The logits of ``teacher`` at the positions of a batch whose tokens it reads, P × C."""

    @torch.no_grad()
    def ask(batch: Batch) -> Tensor:
        with autocast(context, batch.input_ids_BL.device):
            found = teacher(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL).logits
        return batch.at_positions(found)

    return ask


def divergence_loss(
    stage: DistillDivergence, student_PC: Tensor, teacher_PC: Tensor, batch: Batch, _share: float
) -> Tensor:
    """The stage's divergence, times T² as in soft labels, and gold labels; the divergence alone on the student's own
    text, which has none.
    """
    valid = batch.labels_P != IGNORED
    divergence: Callable[..., Tensor] = (
        partial(generalized_jsd, beta=stage.mix)
        if stage.divergence == "jsd"
        else partial(skewed_kl, alpha=stage.mix, reverse=stage.divergence == "skewed_reverse_kl")
    )
    soft = divergence(student_PC, teacher_PC, valid, temperature=stage.temperature, count=batch.count)
    if batch.own:
        return stage.temperature**2 * soft
    hard = cross_entropy(student_PC, batch.labels_P, count=batch.count)
    return stage.alpha * stage.temperature**2 * soft + (1 - stage.alpha) * hard
