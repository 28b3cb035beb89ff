"""Training a student in the arithmetic in which it will be served."""

from functools import partial
from typing import Any

from torch import Tensor

from spaces.methods.quantized_distill import QuantizedDistill
from trainers.batches import Batch
from trainers.distill import fit_taught, kept_form, outputs_of_teacher
from trainers.kinds import kind_of
from trainers.loop import Fitted, Job
from trainers.losses import IGNORED, Targets, kept_forward_kl


def quantized_distill(model: Any, job: Job) -> tuple[Any, Fitted]:
    """Carry out a ``QuantizedDistill`` stage on the student ``model``. Its weights stay float32, to be quantised when
    they are deployed; the quality that the stage reports is that in int8.
    """
    taught = outputs_of_teacher(job, form=kept_form(job.stage, job.plan))
    with kind_of(job.context).fake_int8(model):
        return fit_taught(model, job, taught=taught, loss=partial(_soft, job.stage))


def _soft(stage: QuantizedDistill, student_PC: Tensor, teacher: Targets, batch: Batch, _share: float) -> Tensor:
    valid = batch.labels_P != IGNORED
    divergence = kept_forward_kl(student_PC, teacher, valid, temperature=stage.temperature, count=batch.count)
    return stage.temperature**2 * divergence
