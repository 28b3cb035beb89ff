"""Frozen matrices in four bits, for any device that torch has: NF4 with double quantisation. [Dettmers2023]

A number is the nearest of 16 levels, quantiles of a normal distribution, times the largest of its block of 64. These
scales of blocks are kept in eight bits: less their mean, as float8 times the largest of each 256. In all a number takes
4.13 bits.
"""

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.packed import weight_matrix

LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""[Dettmers2023] Appendix E."""
_BLOCK = 64
_SCALES = 256
_FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FLOAT8).max


class Nf4(NamedTuple):
    """A matrix in four bits: what ``quantise`` makes and ``dequantise`` reads."""

    codes: Tensor
    """Two levels a byte, uint8: the first of them in the upper half."""
    scales: Tensor
    """Of each block, less ``mean``, as a share of its group's, float8."""
    groups: Tensor
    """The largest of each 256 scales without their mean, float32."""
    mean: Tensor
    """Of all scales, float32."""


def quantise(weight: Tensor) -> Nf4:
    """``weight`` in four bits, in blocks along its rows, one row after the other."""
    blocks = functional.pad(weight.detach().float().flatten(), (0, -weight.numel() % _BLOCK)).view(-1, _BLOCK)
    largest = blocks.abs().amax(dim=1)
    mean = largest.mean()
    centred = functional.pad(largest - mean, (0, -len(largest) % _SCALES)).view(-1, _SCALES)
    groups = centred.abs().amax(dim=1)
    shares = centred / groups.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    scales = (shares * _LARGEST).flatten()[: len(largest)].to(_FLOAT8)
    borders = torch.tensor([(low + high) / 2 for low, high in itertools.pairwise(LEVELS)])
    relative = blocks / largest.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(relative, borders.to(weight.device)).flatten().to(torch.uint8)
    return Nf4((codes[::2] << 4) | codes[1::2], scales, groups, mean)


def dequantise(kept: Nf4, *, shape: tuple[int, int]) -> Tensor:
    """The matrix that ``kept`` stands for, float32."""
    levels = torch.tensor(LEVELS, device=kept.codes.device)
    codes = torch.stack([kept.codes >> 4, kept.codes & 15], dim=-1).int()
    groups = kept.groups.repeat_interleave(_SCALES)[: len(kept.scales)]
    scales = kept.scales.float() / _LARGEST * groups + kept.mean
    blocks = levels[codes].view(-1, _BLOCK) * scales[:, None]
    return blocks.flatten()[: math.prod(shape)].view(shape)


class Nf4Linear(nn.Linear):
    """The linear ``layer`` with its weight frozen in four bits. What reads ``weight`` is given the dequantised one."""

    codes: Tensor
    scales: Tensor
    groups: Tensor
    mean: Tensor

    def __init__(self, layer: Any) -> None:
        nn.Module.__init__(self)
        matrix = weight_matrix(layer)
        assert matrix is not None, layer
        self.out_features, self.in_features = matrix.shape
        for name, tensor in quantise(matrix)._asdict().items():
            self.register_buffer(name, tensor)
        self.bias = layer.bias
        layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)
        # In a tuple it is no child.
        self._was = (layer,)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """What the four bits stand for, outputs × inputs, float32; made anew each time."""
        shape = (self.out_features, self.in_features)
        return dequantise(Nf4(self.codes, self.scales, self.groups, self.mean), shape=shape)

    def forward(self, values: Tensor) -> Tensor:
        """Values × weightᵀ + bias. For the gradient the weight is dequantised once more, not kept."""
        found: Tensor = _Product.apply(values, self)
        return found if self.bias is None else found + self.bias.to(found.dtype)

    def restored(self, update: Tensor | None) -> Any:
        """The layer as it was, its weight the dequantised one plus ``update`` (outputs × inputs)."""
        (layer,) = self._was
        matrix = self.weight if update is None else self.weight + update
        layer.weight = nn.Parameter(matrix if isinstance(layer, nn.Linear) else matrix.T.contiguous())
        return layer


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, layer: Nf4Linear) -> Tensor:
        ctx.layer, ctx.dtype = layer, values.dtype
        return functional.linear(values, layer.weight.to(values.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient @ ctx.layer.weight.to(gradient.dtype)).to(ctx.dtype), None
