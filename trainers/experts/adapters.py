"""Experts: adapters and a head each, on one frozen base that they share, on disk and in memory."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spaces.methods.experts import Expert
from spaces.plan import Plan
from trainers.compute import logits, pick_device
from trainers.context import Context
from trainers.experts.parts import part_rows
from trainers.experts.tensors import NamedTensors, read_tensors
from trainers.finetune import add_adapters, gold_loss
from trainers.kinds import kind_of, split_tokens
from trainers.loop import Fitted, Job, fit
from trainers.ranks import Ranks
from trainers.teacher import TeacherOutputs, kept_outputs, outputs_fingerprint
from trainers.trained import trained_part


def expert(model: Any, job: Job) -> tuple[NamedTensors, Fitted]:
    """Carry out an ``Expert`` stage on the base ``model``: what was trained beside it.

    Raises:
        TrainingError: its part has no rows.
    """
    stage: Expert = job.stage
    rows = part_rows(stage.part, model, job)
    tokens = split_tokens(job.context, base=job.plan.reader, split="train").take(rows)
    torch.manual_seed(job.seed("adapters"))
    adapted = add_adapters(model, stage.lora)
    fitted = fit(adapted, gold_loss, job, tokens=tokens)
    return NamedTensors(_trained(adapted)), fitted


def expert_outputs(experts: Sequence[Plan], context: Context, *, ranks: Ranks) -> list[TeacherOutputs]:
    """What each trained expert answers to the training rows, one after another; see ``teacher_outputs``.

    Raises:
        ModelError: an expert has not been trained.
    """
    shared: list[SharedBase] = []

    def answer(plan: Plan) -> Tensor:
        if not shared:
            shared.append(SharedBase(plan, context))
        shared[0].wear(plan)
        tokens = split_tokens(context, base=plan.reader, split="train")
        return logits(shared[0].model, tokens, context=context, ranks=ranks)

    names = [outputs_fingerprint(plan, context) for plan in experts]
    return [
        kept_outputs(name, context, partial(answer, plan), ranks=ranks)
        for name, plan in zip(names, experts, strict=True)
    ]


class SharedBase:
    """The frozen base of some experts, once in memory, on which they take turns."""

    def __init__(self, expert: Plan, context: Context) -> None:
        self._context = context
        base = kind_of(context).load(context.base_folder(expert.base), context, seed=expert.seed)
        self.model = add_adapters(base, expert.stages[-1].lora).to(pick_device()).eval()  # type: ignore[attr-defined]

    def wear(self, expert: Plan) -> None:
        """Put on the adapters and the head of ``expert``.

        Raises:
            ModelError: it has not been trained.
        """
        tensors = read_tensors(trained_part(expert, self._context, what="expert"))
        worn = _trained(self.model)
        assert tensors.keys() == worn.keys(), "experts of one mixture have adapters of one kind"
        with torch.no_grad():
            for name, tensor in tensors.items():
                worn[name].copy_(tensor)


def _trained(adapted: Any) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
