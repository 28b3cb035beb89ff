"""Computing in float as ONNX Runtime's dynamic int8 will compute: what is trained is what is deployed.

``quantize_dynamic`` keeps the weight of a linear or convolution layer as int8, symmetric, one scale a tensor; an
embedding table as uint8, one scale and zero point a table; and quantises what goes into such a layer to uint8 while it
runs, one scale and zero point a request. Everything else stays float. Rounding passes gradients as if it
were not there. [Bengio2013]
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_LEVELS = 255
_LARGEST = 127


@contextlib.contextmanager
def fake_int8(model: nn.Module) -> Iterator[None]:
    """Inside the block ``model`` answers as its int8 deployment does, request by request, and trains through it.

    Embeddings are not trained: their scale depends on rows that no data uses.
    """
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv1d)]
    with contextlib.ExitStack() as stack:
        for table in tables:
            stack.enter_context(_frozen(table))
        mask = _Mask()
        stack.callback(model.register_forward_pre_hook(mask.keep, with_kwargs=True).remove)
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(mask.quantise_input).remove)
            parametrize.register_parametrization(layer, "weight", _Weight())
            stack.callback(parametrize.remove_parametrizations, layer, "weight", leave_parametrized=False)
        yield


def int8_weight(weight: Tensor) -> Tensor:
    """``weight`` at the nearest of its 255 levels, symmetric about 0."""
    scale = weight.abs().max() / _LARGEST
    return (weight / scale).round().clamp(-_LARGEST, _LARGEST) * scale if scale > 0 else weight


def uint8_values(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``values`` at the nearest of 256 levels from ``low`` (at most 0) to ``high`` (at least 0)."""
    scale = ((high - low) / _LEVELS).clamp(min=torch.finfo(values.dtype).tiny)
    zero = (-low / scale).round()
    return ((values / scale).round().add(zero).clamp(0, _LEVELS) - zero) * scale


class _Weight(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return straight_through(weight, int8_weight(weight.detach()))


class _Mask:
    """Knows which tokens of the batch are padding: alone, as it is served, a request has none."""

    def __init__(self) -> None:
        self._mask_BL: Tensor | None = None

    def keep(self, _model: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._mask_BL = kwargs.get("attention_mask")

    def quantise_input(self, _layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values, *rest = args
        known = values.detach().float()
        counted = known
        if self._mask_BL is not None and known.shape[:2] == self._mask_BL.shape and known.dim() > 2:
            counted = known * self._mask_BL[:, :, None]
        dims = tuple(range(1, counted.dim()))
        low, high = counted.amin(dims, keepdim=True).clamp(max=0.0), counted.amax(dims, keepdim=True).clamp(min=0.0)
        return (straight_through(values, uint8_values(known, low, high).to(values.dtype)), *rest)


@contextlib.contextmanager
def _frozen(table: nn.Embedding) -> Iterator[None]:
    """Inside the block what is looked up is rounded. A table that is used in another way is not, here as there."""
    low, high = table.weight.detach().amin().clamp(max=0.0), table.weight.detach().amax().clamp(min=0.0)
    trained = table.weight.requires_grad
    table.weight.requires_grad_(False)
    hook = table.register_forward_hook(lambda _table, _ids, found: uint8_values(found, low, high))
    try:
        yield
    finally:
        hook.remove()
        table.weight.requires_grad_(trained)


def straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    return values + (rounded - values).detach()
