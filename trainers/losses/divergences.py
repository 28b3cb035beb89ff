"""Divergences between a teacher's and a student's distributions, p and q, given as logits.

A teacher's log-probabilities at temperature 1 serve as well as its logits: softmax ignores a shift.
"""

import math

import torch
from torch import Tensor

from trainers.losses.reduction import NEVER, kl, log_softmax, mean


def forward_kl(
    student_PC: Tensor, teacher_PC: Tensor, mask_P: Tensor, *, temperature: float = 1.0, count: float | None = None
) -> Tensor:
    """KL(p ‖ q) of the distributions at ``temperature``. [Hinton2015] § 2, without its factor T²."""
    student = log_softmax(student_PC, temperature=temperature)
    teacher = log_softmax(teacher_PC, temperature=temperature)
    return mean(kl(teacher, student), mask_P, count)


def reverse_kl(
    student_PC: Tensor, teacher_PC: Tensor, mask_P: Tensor, *, temperature: float = 1.0, count: float | None = None
) -> Tensor:
    """KL(q ‖ p) of the distributions at ``temperature``. [Agarwal2024].

    Where the teacher excludes a class with a logit of -inf, and the student does not, it is infinite; here such a class
    costs 1e5 nats, so that the student gives it up.
    """
    student, teacher = _bounded(student_PC, teacher_PC, temperature)
    return mean(kl(student, teacher), mask_P, count)


def generalized_jsd(
    student_PC: Tensor,
    teacher_PC: Tensor,
    mask_P: Tensor,
    *,
    beta: float,
    temperature: float = 1.0,
    count: float | None = None,
) -> Tensor:
    """β KL(p ‖ m) + (1 - β) KL(q ‖ m), where m = β p + (1 - β) q. [Agarwal2024].

    β = 0 is the forward and β = 1 the reverse KL, exactly: the formula itself goes to 0 at both ends, and divided by
    β or by 1 - β to those two.

    Raises:
        ValueError: ``beta`` is outside 0 … 1.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be 0 (forward KL) to 1 (reverse KL), but got {beta}")
    if beta == 0:
        return forward_kl(student_PC, teacher_PC, mask_P, temperature=temperature, count=count)
    if beta == 1:
        return reverse_kl(student_PC, teacher_PC, mask_P, temperature=temperature, count=count)
    student, teacher = _bounded(student_PC, teacher_PC, temperature)
    mixture = _mixture(teacher, student, share=beta)
    return mean(beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture), mask_P, count)


def skewed_kl(
    student_PC: Tensor,
    teacher_PC: Tensor,
    mask_P: Tensor,
    *,
    alpha: float,
    reverse: bool = False,
    temperature: float = 1.0,
    count: float | None = None,
) -> Tensor:
    """KL(p ‖ α p + (1 - α) q), or with ``reverse`` KL(q ‖ (1 - α) p + α q). [Ko2024].

    ``alpha`` is the share of the first distribution in the second: 0 is the plain forward or reverse KL, exactly, and
    above 0 the divergence is never more than -log α.

    Raises:
        ValueError: ``alpha`` is below 0, above 1, or 1, where a distribution would be compared with itself.
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must be 0 (not skewed) to below 1 (where nothing is left to learn), but got {alpha}")
    if alpha == 0:
        plain = reverse_kl if reverse else forward_kl
        return plain(student_PC, teacher_PC, mask_P, temperature=temperature, count=count)
    student, teacher = _bounded(student_PC, teacher_PC, temperature)
    first, second = (student, teacher) if reverse else (teacher, student)
    return mean(kl(first, _mixture(first, second, share=alpha)), mask_P, count)


def _bounded(student_PC: Tensor, teacher_PC: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    student = log_softmax(student_PC, temperature=temperature).clamp(min=NEVER)
    return student, log_softmax(teacher_PC, temperature=temperature).clamp(min=NEVER)


def _mixture(log_a_PC: Tensor, log_b_PC: Tensor, *, share: float) -> Tensor:
    """The logarithm of share · a + (1 - share) · b."""
    return torch.logaddexp(log_a_PC + math.log(share), log_b_PC + math.log1p(-share))
