"""What training minimises. Pure functions of logits.

Every loss is computed in float32 (float64 stays), summed over the valid positions and divided by their number, in nats.
``count`` is that number where the positions at hand are only a part: a rank's share, or one of several accumulated
batches. Adding up the parts then gives the loss of the whole, and so do their gradients.

Shapes: P = positions (any leading dimensions), C = classes.
"""

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
"""A label that takes its position out of a loss."""


def forward_kl(
    student_PC: Tensor, teacher_PC: Tensor, mask_P: Tensor, *, temperature: float = 1.0, count: float | None = None
) -> Tensor:
    """KL(teacher ‖ student) of the distributions at ``temperature``. [Hinton2015] § 2, without its factor T².

    Takes logits. A teacher's log-probabilities at temperature 1 serve as well: softmax ignores a shift.
    """
    student = functional.log_softmax(_wide(student_PC) / temperature, dim=-1)
    teacher = functional.log_softmax(_wide(teacher_PC) / temperature, dim=-1)
    share = teacher.exp()
    # 0 · log 0 is 0, also where a teacher excludes a class with a logit of -inf.
    terms = torch.where(share > 0, share * (teacher - student), 0.0)
    # Rounding may take a divergence of almost nothing below nothing.
    return _mean(terms.sum(dim=-1).clamp(min=0.0), mask_P, count)


def cross_entropy(logits_PC: Tensor, labels_P: Tensor, *, count: float | None = None) -> Tensor:
    """-log q(label), over the positions whose label is not ``IGNORED``."""
    valid = labels_P != IGNORED
    log_q = functional.log_softmax(_wide(logits_PC), dim=-1)
    chosen = log_q.gather(-1, labels_P.where(valid, 0).unsqueeze(-1)).squeeze(-1)
    return _mean(-chosen, valid, count)


def soft_label_loss(
    student_PC: Tensor,
    teacher_PC: Tensor,
    labels_P: Tensor,
    *,
    temperature: float,
    alpha: float,
    count: float | None = None,
) -> Tensor:
    """alpha T² KL(teacher ‖ student) + (1 - alpha) CE, over the positions whose label is not ``IGNORED``.

    T² keeps the soft part's gradient of one size whatever the temperature. [Hinton2015] § 2.
    """
    valid = labels_P != IGNORED
    soft = forward_kl(student_PC, teacher_PC, valid, temperature=temperature, count=count)
    hard = cross_entropy(student_PC, labels_P, count=count)
    return alpha * temperature**2 * soft + (1 - alpha) * hard


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _mean(values_P: Tensor, mask_P: Tensor, count: float | None) -> Tensor:
    total = values_P.masked_fill(~mask_P.bool(), 0.0).sum()
    return total / (mask_P.sum().clamp(min=1) if count is None else count)
