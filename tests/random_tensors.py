"""Logits and masks made from a seed."""

import torch
from torch import Tensor


def random_logits(shape: tuple[int, ...], *, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def some_mask(shape: tuple[int, ...], *, seed: int) -> Tensor:
    mask = torch.rand(shape[:-1], generator=torch.Generator().manual_seed(seed)) < 0.7
    mask.view(-1)[0] = True
    return mask
