"""The mixture of experts as one teacher, kept on disk, and a student trained on it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spaces.canonical import fingerprint
from spaces.methods.experts import DistillExperts
from spaces.plan import Plan
from trainers.context import Context
from trainers.distill import fit_taught, soft_loss
from trainers.experts.adapters import expert_outputs
from trainers.experts.answers import gold_log_probs, row_losses, rows_of_positions
from trainers.experts.gate import gate_log_weights
from trainers.kinds import split_tokens
from trainers.loop import Fitted, Job
from trainers.losses import camkd_weights, mixture_log_probs
from trainers.ranks import Ranks
from trainers.teacher import TeacherOutputs, kept_outputs, outputs_fingerprint

_VERSION = 1
_BLOCK_POSITIONS = 4096


def distill_experts(model: Any, job: Job) -> tuple[Any, Fitted]:
    """Carry out a ``DistillExperts`` stage on the student ``model``. The experts' time to answer counts as its own."""
    stage: DistillExperts = job.stage
    taught = mixture_outputs(stage, job.plan, job.context, ranks=job.ranks)
    return fit_taught(model, job, taught=taught, loss=partial(soft_loss, stage))


def mixture_outputs(stage: DistillExperts, plan: Plan, context: Context, *, ranks: Ranks) -> TeacherOutputs:
    """The mixture's outputs on the training rows, such that softmax at the stage's temperature gives p̄, as it would
    give a single teacher's distribution. Mixed once and kept; the seconds include the experts'.

    Raises:
        ModelError: an expert or the gate has not been trained.
    """
    plans = [plan.on_same_data(chain) for chain in stage.experts]
    gate = plan.on_same_data(stage.gate) if stage.gate else None
    experts = expert_outputs(plans, context, ranks=ranks)
    identity = {
        "kind": "mixture_outputs",
        "experts": [outputs_fingerprint(expert, context) for expert in plans],
        "weights": stage.weights,
        "gate": gate.fingerprint if gate else None,
        "temperature": stage.temperature,
        "version": _VERSION,
    }

    def mix() -> Tensor:
        tokens = split_tokens(context, base=plans[0].reader, split="train")
        rows_P = rows_of_positions(tokens)
        log_weights_BK = gate_log_weights(gate, context) if gate else _fixed_log_weights(stage, experts, tokens, rows_P)
        return _mixed(experts, log_weights_BK[rows_P], temperature=stage.temperature)

    mixed = kept_outputs(fingerprint(identity), context, mix, ranks=ranks)
    return replace(mixed, seconds=mixed.seconds + sum(expert.seconds for expert in experts))


def _fixed_log_weights(stage: DistillExperts, experts: Sequence[TeacherOutputs], tokens: Any, rows_P: Tensor) -> Tensor:
    """Of weights that are not learned, B × K."""
    if stage.weights == "camkd":
        return camkd_weights(row_losses(gold_log_probs(experts, tokens, temperature=1.0), rows_P)).log()
    return torch.zeros(len(tokens), len(experts)).log_softmax(dim=-1)


def _mixed(experts: Sequence[TeacherOutputs], log_weights_PK: Tensor, *, temperature: float) -> Tensor:
    """Logits of the mixture, P × C: T log p̄."""
    mixed = torch.empty(experts[0].log_probs.shape)
    for start in range(0, len(mixed), _BLOCK_POSITIONS):
        block = slice(start, start + _BLOCK_POSITIONS)
        teachers_KPC = torch.stack([torch.tensor(expert.log_probs[block]) for expert in experts])
        mixed[block] = temperature * mixture_log_probs(teachers_KPC, log_weights_PK[block], temperature=temperature)
    return mixed
