"""Queries, keys and values of a layer, as they come out of its linear layers: what no model of transformers returns.

They are what attention begins with: rotary or relative positions are not in them yet.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from trainers.families import FAMILIES
from trainers.models import ModelError

Triple = tuple[Tensor, Tensor, Tensor]

_APART = (
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_proj", "k_proj", "v_proj"),
    ("q", "k", "v"),
)
"""How the handled families call the three linear layers of an attention that has three."""


class Tap:
    """What the last forward pass through a layer gave; ``take`` hands it over once."""

    def __init__(self, layer: nn.Module) -> None:
        self._outputs: dict[str, Tensor] = {}
        self._names, self._split = _projections(layer)
        self._handles = [layer.register_forward_pre_hook(lambda *_: self._outputs.clear())]
        for name in self._names:
            self._handles.append(layer.get_submodule(name).register_forward_hook(self._keeper(name)))

    def take(self) -> Triple:
        """Queries, keys and values, batch × tokens × width each, heads side by side, with their gradients."""
        outputs = [self._outputs.pop(name) for name in self._names]
        return self._split(*outputs)

    def close(self) -> None:
        """Let the layer be as it was."""
        for handle in self._handles:
            handle.remove()

    def _keeper(self, name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            # DeBERTa sends its relative positions through the same linear layers, after the tokens.
            self._outputs.setdefault(name, output)

        return keep


@contextlib.contextmanager
def last_layer_tap(model: Any) -> Iterator[Tap]:
    """Inside the block the queries, keys and values of the last layer of ``model`` are kept at every pass.

    Raises:
        ModelError: its attention is built in a way that is not known.
    """
    layers = model.base_model.get_submodule(FAMILIES[model.config.model_type].layers)
    tap = Tap(layers[-1])
    try:
        yield tap
    finally:
        tap.close()


def _projections(layer: nn.Module) -> tuple[list[str], Callable[..., Triple]]:
    """The linear layers of a transformer layer that give queries, keys and values, and how to get these from them."""
    by_last = {name.rpartition(".")[2]: name for name, _ in layer.named_modules()}
    for names in _APART:
        if all(name in by_last for name in names):
            return [by_last[name] for name in names], lambda *three: three
    for last, split in _FUSED.items():
        if last in by_last:
            owner = layer.get_submodule(by_last[last].rpartition(".")[0])
            return [by_last[last]], partial(split, owner)
    raise ModelError(f"{type(layer).__name__}: its queries, keys and values are not found; take another feature")


def _thirds(_attention: Any, fused: Tensor) -> Triple:
    queries, keys, values = fused.chunk(3, dim=-1)
    return queries, keys, values


def _thirds_of_heads(attention: Any, fused: Tensor) -> Triple:
    """Every head has its three side by side."""
    return _side_by_side(fused, attention.config.num_attention_heads)


def _with_biases(attention: Any, fused: Tensor) -> Triple:
    """DeBERTa: as ``_thirds_of_heads``; queries and values get a bias of their own afterwards."""
    queries, keys, values = _side_by_side(fused, attention.num_attention_heads)
    return queries + attention.q_bias, keys, values + attention.v_bias


def _side_by_side(fused: Tensor, num_heads: int) -> Triple:
    queries, keys, values = fused.unflatten(-1, (num_heads, 3, -1)).unbind(-2)
    return queries.flatten(-2), keys.flatten(-2), values.flatten(-2)


def _grouped(attention: Any, fused: Tensor) -> Triple:
    """All queries, then the keys and the values of fewer heads."""
    width = attention.num_key_value_heads * attention.head_dim
    queries, keys, values = fused.split([fused.shape[-1] - 2 * width, width, width], dim=-1)
    return queries, keys, values


_FUSED: dict[str, Callable[[Any, Tensor], Triple]] = {
    "Wqkv": _thirds,
    "c_attn": _thirds,
    "in_proj": _with_biases,
    "query_key_value": _thirds_of_heads,
    "qkv_proj": _grouped,
}
"""The same for an attention that has one linear layer: its name, and how its output falls apart."""
