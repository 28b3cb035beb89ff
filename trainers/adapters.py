"""Adapter tuning: bottlenecks are put into the model, and they and the head are trained on the gold labels."""

from typing import Any

import torch

from spaces.methods.adapter import AdapterTuning
from trainers.bottleneck import adapter_parameters
from trainers.finetune import gold_loss, new_parts
from trainers.loop import Fitted, Job, fit
from trainers.models import add_bottlenecks


def tune_adapters(model: Any, job: Job) -> tuple[Any, Fitted]:
    """Carry out an ``AdapterTuning`` stage: the model with trained adapters; its other layers are as they were.

    Raises:
        ModelError: the model has adapters already.
    """
    stage: AdapterTuning = job.stage
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed("adapters"))
        add_bottlenecks(model, stage.adapters)
    trained = {*adapter_parameters(model), *new_parts(model)}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in trained)
    fitted = fit(model, gold_loss, job)
    return model.requires_grad_(True), fitted
