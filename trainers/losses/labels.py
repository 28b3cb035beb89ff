"""Losses against the labels of the data, alone and beside a teacher's distributions."""

from torch import Tensor

from trainers.losses.reduction import log_softmax, mean
from trainers.losses.sparse import Targets, kept_forward_kl

IGNORED = -100
"""A label that takes its position out of a loss."""


def cross_entropy(logits_PC: Tensor, labels_P: Tensor, *, count: float | None = None) -> Tensor:
    """-log q(label), over the positions whose label is not ``IGNORED``."""
    valid = labels_P != IGNORED
    log_q = log_softmax(logits_PC)
    chosen = log_q.gather(-1, labels_P.where(valid, 0).unsqueeze(-1)).squeeze(-1)
    return mean(-chosen, valid, count)


def soft_label_loss(
    student_PC: Tensor,
    teacher: Targets,
    labels_P: Tensor,
    *,
    temperature: float,
    alpha: float,
    count: float | None = None,
) -> Tensor:
    """alpha T² KL(teacher ‖ student) + (1 - alpha) CE, over the positions whose label is not ``IGNORED``.

    T² keeps the soft part's gradient of one size whatever the temperature. [Hinton2015] § 2. ``teacher`` may be a part
    of its distributions.
    """
    valid = labels_P != IGNORED
    soft = kept_forward_kl(student_PC, teacher, valid, temperature=temperature, count=count)
    hard = cross_entropy(student_PC, labels_P, count=count)
    return alpha * temperature**2 * soft + (1 - alpha) * hard
