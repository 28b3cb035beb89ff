"""Training a student on its teacher's features."""

from typing import Any

from spaces.methods.distill_feature import DistillFeature
from trainers.alignment import alignment
from trainers.loop import Fitted, Job, fit


def distill_feature(model: Any, job: Job) -> tuple[Any, Fitted]:
    """Carry out a ``DistillFeature`` stage on the student ``model``; a projection is forgotten at its end."""
    stage: DistillFeature = job.stage
    with alignment(model, stage.feature, job.plan.on_same_data(stage.teacher), job) as loss:
        return model, fit(model, loss, job, outputs=loss.outputs)
