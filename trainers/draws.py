"""Drawing classes or tokens from distributions, by luck that is given: the same luck, the same draws.

Shapes: P = positions, C = classes or vocabulary, N = draws.
"""

import torch
from torch import Tensor

_BLOCK_VALUES = 1 << 23
"""Probabilities in memory at once, 64 MB: a vocabulary at every position of a batch would be gigabytes."""


def drawn_classes(logits_PC: Tensor, luck_PN: Tensor, *, temperature: float) -> Tensor:
    """The classes on which ``luck_PN``, uniform in 0 … 1, falls among the softmax of the logits over ``temperature``;
    P × N, int64. Luck is on the logits' device, in float64.
    """
    num_positions = max(1, _BLOCK_VALUES // logits_PC.shape[-1])
    pairs = zip(logits_PC.split(num_positions), luck_PN.split(num_positions), strict=True)
    return torch.cat([_drawn(logits, luck, temperature) for logits, luck in pairs])


def _drawn(logits_PC: Tensor, luck_PN: Tensor, temperature: float) -> Tensor:
    # In float64: the rounding errors of a float32 sum over a vocabulary are as large as its rare classes.
    wide_PC = logits_PC.double() / temperature
    below_PC = (wide_PC - wide_PC.amax(dim=-1, keepdim=True)).exp_().cumsum(dim=-1)
    found_PN = torch.searchsorted(below_PC, luck_PN * below_PC[:, -1:], right=True)
    return found_PN.clamp(max=logits_PC.shape[-1] - 1)
