"""What all losses share: the arithmetic, the divergence of a position, the mean over positions."""

import torch
from torch import Tensor
from torch.nn import functional

NEVER = -1e5
"""Stands for the logarithm of no probability where -inf would make a loss infinite or its gradient NaN.
Log-probabilities of logits within ±1e4 stay above it at every temperature from 0.2 up."""


def widen(values: Tensor) -> Tensor:
    """``values`` in float32, or in float64 where they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def log_softmax(logits_PC: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-probabilities at ``temperature``."""
    # Dividing by 1 would change no bit, but copy what is the largest tensor of all where C is a vocabulary.
    wide = widen(logits_PC)
    return functional.log_softmax(wide if temperature == 1 else wide / temperature, dim=-1)


def kl(log_a_PC: Tensor, log_b_PC: Tensor) -> Tensor:
    """KL(a ‖ b) of each position, from log-probabilities."""
    share = log_a_PC.exp()
    # 0 · log 0 is 0, also where a excludes a class with a logit of -inf.
    terms = torch.where(share > 0, share * (log_a_PC - log_b_PC), 0.0)
    # Rounding may take a divergence of almost nothing below nothing.
    return terms.sum(dim=-1).clamp(min=0.0)


def mean(values_P: Tensor, mask_P: Tensor, count: float | None) -> Tensor:
    """Sum of the values where the mask is set, divided by ``count`` or by how many those are; of none: 0."""
    total = values_P.masked_fill(~mask_P.bool(), 0.0).sum()
    return total / (mask_P.sum().clamp(min=1) if count is None else count)
