"""A teacher that is trained beside its student, by the student's loss on rows that the student does not learn from."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from spaces.methods.meta import MetaDistill
from trainers.batches import Batch, collate, epoch_batches, worker_batch
from trainers.compute import autocast, pad_id
from trainers.context import Context
from trainers.embeddings import train_used_rows, used_ids
from trainers.kinds import split_tokens
from trainers.loop import Fitted, Job, TrainingError, Turn, fit, new_optimizer
from trainers.losses import cross_entropy, soft_label_loss
from trainers.ranks import Ranks
from trainers.tokens import Tokens
from trainers.trained import trained_teacher

Taught = Callable[[Tensor, Tensor, Batch], Tensor]
"""From the logits of student and teacher at a batch's positions, P × C each, and the batch: the student's loss."""


def meta_distill(model: Any, job: Job) -> tuple[Any, Fitted]:
    """Carry out a ``MetaDistill`` stage on the student ``model``; the teacher's progress is forgotten with the stage.

    Raises:
        TrainingError: there are too few rows for a quiz.
        ModelError: the teacher has not been trained.
    """
    stage: MetaDistill = job.stage
    teacher = job.plan.on_same_data(stage.teacher)
    student_tokens, teacher_tokens = (
        split_tokens(job.context, base=base, split="train") for base in (job.plan.reader, teacher.reader)
    )
    lessons, quiz = quiz_split(len(student_tokens), stage.quiz_share, seed=job.plan.seed)
    begun = trained_teacher(teacher, job.context).train()
    used = used_ids(teacher_tokens, vocab_size=begun.config.vocab_size, pad_id=pad_id(begun))
    with train_used_rows(begun, used):
        beside = MetaTeacher(begun, job, lessons=teacher_tokens.take(lessons), quiz=student_tokens.take(quiz))
        fitted = fit(model, beside.loss, job, tokens=student_tokens.take(lessons), companion=beside)
    return model, fitted


def quiz_split(num_rows: int, share: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the rows that the student learns from and of those in the quiz, rising; by ``seed`` alone.

    Raises:
        TrainingError: one of the two has no rows.
    """
    num_quiz = max(1, round(share * num_rows))
    if num_quiz >= num_rows:
        raise TrainingError(f"{num_rows} training rows leave none beside a quiz of {num_quiz}; add rows")
    order = np.random.default_rng([seed, num_rows]).permutation(num_rows)
    return np.sort(order[num_quiz:]), np.sort(order[:num_quiz])


class MetaTeacher:
    """The teacher: takes a step before each of the student's, and teaches it."""

    def __init__(self, teacher: Any, job: Job, *, lessons: Tokens, quiz: Tokens) -> None:
        self.teacher, self.job, self.lessons, self.tokens = teacher, job, lessons, quiz
        self.device = next(teacher.parameters()).device
        self.parameters: Mapping[str, Tensor] = trained_parameters(teacher)
        self.optimizer: torch.optim.Optimizer = new_optimizer(teacher, job.optimisation)

    def before_step(self, student: Any, turn: Turn) -> None:
        """One step of the teacher along the gradient of the pilot's loss on a quiz batch."""
        settings, ranks = self.job.optimisation, self.job.ranks
        pilot_rate = turn.rate_share * settings.learning_rate
        told_PC = self._teach(turn.batch)
        quiz = self._quiz(student, turn.step)
        gradient_PC = meta_gradient(
            student, told_PC.detach(), turn, quiz, taught=self._taught, rate=pilot_rate, job=self.job
        )
        self.optimizer.zero_grad(set_to_none=True)
        # Without the factor of the pilot's rate: AdamW would divide it out, were it not as small as AdamW's epsilon.
        told_PC.backward(gradient_PC / pilot_rate)
        ranks.all_reduce_each([p.grad for p in self.parameters.values() if p.grad is not None])
        nn.utils.clip_grad_norm_(self.parameters.values(), settings.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.job.stage.teacher_learning_rate * turn.rate_share
        self.optimizer.step()

    def loss(self, outputs: Any, batch: Batch, _share: float) -> Tensor:
        """The student's loss against the teacher as it is now."""
        with torch.no_grad():
            told_PC = self._teach(batch)
        return self._taught(batch.at_positions(outputs.logits), told_PC, batch)

    def _taught(self, student_PC: Tensor, teacher_PC: Tensor, batch: Batch) -> Tensor:
        stage: MetaDistill = self.job.stage
        return soft_label_loss(
            student_PC,
            teacher_PC,
            batch.labels_P,
            temperature=stage.temperature,
            alpha=stage.alpha,
            count=batch.count,
        )

    def _teach(self, batch: Batch) -> Tensor:
        """The teacher's logits at the positions of a batch of the student's, from its own tokens of the same rows."""
        own = collate(self.lessons, batch.rows, pad_id=pad_id(self.teacher)).to(self.device)
        return positions_logits(self.teacher, self.parameters, own, self.job.context)

    def _quiz(self, student: Any, step: int) -> tuple[Batch, float]:
        """This worker's share of the quiz batch of a step, and what it counts: all batches in turn, again and again."""
        batch_size = self.job.optimisation.batch_size
        epoch, index = divmod(step, math.ceil(len(self.tokens) / batch_size))
        lengths, seed = self.tokens.lengths, self.job.seed("quiz")
        rows = epoch_batches(lengths, batch_size=batch_size, seed=seed, epoch=epoch)[index]
        batch, weight = worker_batch(self.tokens, rows, ranks=self.job.ranks, pad_id=pad_id(student))
        return batch.to(self.device), weight


def meta_gradient(
    student: Any, told_PC: Tensor, turn: Turn, quiz: tuple[Batch, float], *, taught: Taught, rate: float, job: Job
) -> Tensor:
    """Gradient of the pilot's cross-entropy on the quiz by the teacher's logits ``told_PC``, P × C.

    The pilot is θ' = θ - rate ∇L(z(θ), told), one step of gradient descent by all workers. With v = ∇quiz(θ') and J the
    student's Jacobian at θ, the chain rule gives -rate ∂/∂told (J v) · ∂L/∂z: exact and of second order, without a
    graph of the student's own gradient. J v comes by forward differentiation.
    """
    parameters = trained_parameters(student)
    logits_PC = positions_logits(student, parameters, turn.batch, job.context)
    steepest = _gradient(turn.weight * taught(logits_PC, told_PC, turn.batch), parameters, job.ranks)
    pilot = {name: (p.detach() - rate * steepest[name]).requires_grad_() for name, p in parameters.items()}
    batch, weight = quiz
    answers_PC = positions_logits(student, pilot, batch, job.context)
    loss = weight * cross_entropy(answers_PC, batch.labels_P, count=batch.count)
    tangent = _gradient(loss, pilot, job.ranks)

    def ask(moved: Mapping[str, Tensor]) -> Tensor:
        return positions_logits(student, moved, turn.batch, job.context)

    # The kernels of fused attention have no forward derivative.
    with sdpa_kernel(SDPBackend.MATH):
        change_PC = jvp(ask, ({name: p.detach() for name, p in parameters.items()},), (tangent,))[1]
    told_PC, logits_PC = told_PC.requires_grad_(), logits_PC.detach().requires_grad_()
    (pull_PC,) = torch.autograd.grad(turn.weight * taught(logits_PC, told_PC, turn.batch), logits_PC, create_graph=True)
    (found_PC,) = torch.autograd.grad(-rate * (change_PC * pull_PC).sum(), told_PC)
    return found_PC


def positions_logits(model: Any, parameters: Mapping[str, Tensor], batch: Batch, context: Context) -> Tensor:
    """The logits of ``model`` at the positions of a batch, P × C, with ``parameters`` in the place of its own."""
    inputs = {"input_ids": batch.input_ids_BL, "attention_mask": batch.attention_mask_BL}
    # Entered for each call: autocast keeps casts of weights, by their address, while it lasts.
    with autocast(context, batch.input_ids_BL.device):
        found = functional_call(model, dict(parameters), (), inputs).logits
    return batch.at_positions(found)


def trained_parameters(model: Any) -> dict[str, Tensor]:
    """What in ``model`` requires a gradient, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _gradient(loss: Tensor, parameters: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Of the loss over all workers, by each parameter; zero by one that is not used."""
    found = torch.autograd.grad(loss, tuple(parameters.values()), materialize_grads=True)
    ranks.all_reduce_each(list(found))
    return dict(zip(parameters, found, strict=True))
