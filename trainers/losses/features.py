"""What a student takes over from inside a teacher: hidden states, attention, relations between tokens.

The position of every one of them is a token, and its value the mean over whatever lies behind it (width, heads, keys),
so that one mask and one ``count`` serve them all. A mask is B × L, 1 where a token is; where not every token may be
seen by every other, B × L × L, query before key: a causal model's, or packed rows'.

Shapes: B = batch, L = tokens, H = width, A = heads.
"""

import math

import torch
from torch import Tensor

from trainers.losses.reduction import kl, mean, widen


def hidden_mse(
    student_PH: Tensor, teacher_PH: Tensor, mask_P: Tensor | None = None, *, count: float | None = None
) -> Tensor:
    """Mean squared difference of hidden states over valid positions and width. [Jiao2020].

    Raises:
        ValueError: the widths differ; a student's states are projected to the teacher's width first.
    """
    if student_PH.shape != teacher_PH.shape:
        raise ValueError(
            f"hidden states must have one shape, but the student's have {tuple(student_PH.shape)} and the teacher's "
            f"{tuple(teacher_PH.shape)}; project the student's to the teacher's width"
        )
    valid = _all_of(student_PH[..., 0]) if mask_P is None else mask_P
    return mean((widen(student_PH) - widen(teacher_PH)).square().mean(dim=-1), valid, count)


def attention_mse(
    student_BALL: Tensor, teacher_BALL: Tensor, mask: Tensor | None = None, *, count: float | None = None
) -> Tensor:
    """Mean squared difference of attention over heads, valid queries and the keys they see. [Jiao2020].

    Takes scores before the softmax, as the paper does, or probabilities. What a score is where a query must not see a
    key, -inf mostly, does not matter if ``mask`` says so. Differs from the paper's code: padding does not count.

    Raises:
        ValueError: the numbers of heads or tokens differ.
    """
    if student_BALL.shape != teacher_BALL.shape:
        raise ValueError(
            f"attention must have one shape, but the student's has {tuple(student_BALL.shape)} and the teacher's "
            f"{tuple(teacher_BALL.shape)} (batch, heads, queries, keys); for other heads or widths take relation_kl"
        )
    seen_BLL = _seen(student_BALL[:, 0, :, 0], mask)
    difference = (widen(student_BALL) - widen(teacher_BALL)).masked_fill(~seen_BLL[:, None], 0.0)
    num_seen_BL = seen_BLL.sum(dim=-1)
    values_BL = difference.square().mean(dim=1).sum(dim=-1) / num_seen_BL.clamp(min=1)
    return mean(values_BL, num_seen_BL > 0, count)


def relation_kl(
    student_BLH: Tensor,
    teacher_BLH: Tensor,
    mask: Tensor | None = None,
    *,
    num_relation_heads: int,
    count: float | None = None,
) -> Tensor:
    """KL(teacher ‖ student) of how tokens relate: softmax(R Rᵀ / √d), over valid tokens and relation heads, in nats.

    R is the queries, keys or values of a layer, all heads side by side, split anew into ``num_relation_heads`` of width
    d. So neither widths nor head counts have to be the same. [Wang2021].

    Raises:
        ValueError: a width is no multiple of ``num_relation_heads``.
    """
    seen_BLL = _seen(student_BLH[..., 0], mask)
    # Under autocast the product would be taken in bfloat16.
    with torch.autocast(student_BLH.device.type, enabled=False):
        student, teacher = (
            _relations(states, seen_BLL, num_relation_heads=num_relation_heads) for states in (student_BLH, teacher_BLH)
        )
    return mean(kl(teacher, student).mean(dim=1), seen_BLL.any(dim=-1), count)


def _relations(states_BLH: Tensor, seen_BLL: Tensor, *, num_relation_heads: int) -> Tensor:
    """The logarithm of how much each token's heads relate to each token seen, batch × heads × tokens × tokens."""
    width = states_BLH.shape[-1]
    if width % num_relation_heads:
        raise ValueError(f"width {width} must be a multiple of num_relation_heads, but got {num_relation_heads}")
    heads = widen(states_BLH).unflatten(-1, (num_relation_heads, -1)).transpose(1, 2)
    scores = heads @ heads.transpose(2, 3) / math.sqrt(heads.shape[-1])
    # Not -inf: a query that sees nothing would have a softmax of NaN.
    return scores.masked_fill(~seen_BLL[:, None], torch.finfo(scores.dtype).min).log_softmax(dim=-1)


def _seen(like_BL: Tensor, mask: Tensor | None) -> Tensor:
    """Which queries see which keys, batch × queries × keys."""
    valid = _all_of(like_BL) if mask is None else mask.bool()
    return valid if valid.ndim == 3 else valid[:, :, None] & valid[:, None, :]


def _all_of(like: Tensor) -> Tensor:
    return torch.ones_like(like, dtype=torch.bool)
