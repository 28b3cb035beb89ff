"""A prefix in a model of any family that can have one: keys and values that attention reads before a text's own.

Attention takes them as it takes those of tokens that were read before, from a cache. They belong to no position: a text
keeps its own, all of them, and a sliding window never leaves them behind.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.model_files import ModelError

if TYPE_CHECKING:
    from trainers.families import Family

_NAME = "prefix"
"""Of a prefix, as a child of its attention: ``….attention.self.prefix.key``."""
_HEAD_SIZES = ("head_dim", "attention_head_size", "head_size")
"""How the handled families call it in their attention."""


class Prefix(nn.Module):
    """The keys and values of one layer, 1 × heads × prefix tokens × head size each; zero at first."""

    key: Tensor
    value: Tensor

    def __init__(self, num_heads: int, head_size: int, *, num_tokens: int) -> None:
        super().__init__()
        self.keep(torch.zeros(2, 1, num_heads, num_tokens, head_size))

    def keep(self, pair: Tensor) -> None:
        """Hold copies of a pair of keys and values as weights."""
        self.key, self.value = (nn.Parameter(part.detach().clone()) for part in pair)

    def follow(self, pair: Tensor) -> None:
        """Use a pair of keys and values that are computed elsewhere, with their gradients."""
        for name, part in zip(("key", "value"), pair, strict=True):
            self._parameters.pop(name, None)
            setattr(self, name, part)


class _Before:
    """A cache, or none, with a prefix before what it holds."""

    def __init__(self, prefix: Prefix, cache: Any) -> None:
        self.prefix, self.cache = prefix, cache

    def update(self, keys: Tensor, values: Tensor, *place: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of new tokens, after all before them."""
        if self.cache is not None:
            keys, values = self.cache.update(keys, values, *place)
        return _after(self.prefix.key, keys), _after(self.prefix.value, values)


def insert(model: Any, num_tokens: int, family: "Family") -> None:
    """Put new prefixes into every layer of ``model``.

    Raises:
        ModelError: the model has a prefix already, or its attention takes none.
    """
    if family.attention is None:
        raise ModelError(f"{model.config.model_type}: its attention takes no keys and values from before; no prefix")
    for layer in model.base_model.get_submodule(family.layers):
        attention = layer.get_submodule(family.attention)
        if hasattr(attention, _NAME):
            raise ModelError("the model has a prefix already; fine-tune it in full, or begin at its own base")
        device, heads = next(attention.parameters()).device, _key_heads(attention, model.config)
        attention.add_module(_NAME, Prefix(*heads, num_tokens=num_tokens).to(device))
        attention.register_forward_pre_hook(_prepend, with_kwargs=True)


def prefixes(model: nn.Module) -> Iterator[Prefix]:
    """The prefix of each layer, in the model's order."""
    return (module for module in model.modules() if isinstance(module, Prefix))


def _key_heads(attention: Any, config: Any) -> tuple[int, int]:
    """How many heads keys and values have, and how large each is: by the module, as a config may say what its family
    does not read.
    """
    (head_size,) = {getattr(attention, name) for name in _HEAD_SIZES if hasattr(attention, name)}
    return config.num_attention_heads // getattr(attention, "num_key_value_groups", 1), head_size


def _prepend(attention: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # GPT-NeoX calls it layer_past.
    cache = "layer_past" if "layer_past" in named else "past_key_values"
    states_BLH = named["hidden_states"] if "hidden_states" in named else inputs[0]
    mask = _mask(named["attention_mask"], states_BLH, attention)
    return inputs, {**named, "attention_mask": mask, cache: _Before(attention.prefix, named.get(cache))}


def _mask(mask_BHLK: Tensor | None, states_BLH: Tensor, attention: Any) -> Tensor | None:
    """The mask of an attention's call, with the prefix open to every token; None where nothing is masked."""
    length = states_BLH.shape[1]
    if mask_BHLK is None and getattr(attention, "is_causal", False) and length > 1:
        # torch's kernel would mask the future by itself, but as if the prefix were a part of the text.
        mask_BHLK = torch.ones(1, 1, length, length, dtype=torch.bool, device=states_BLH.device).tril()
    if mask_BHLK is None:
        return None
    num_tokens = attention.prefix.key.shape[2]
    return functional.pad(mask_BHLK, (num_tokens, 0), value=True if mask_BHLK.dtype == torch.bool else 0.0)


def _after(prefix: Tensor, own: Tensor) -> Tensor:
    return torch.cat([prefix.to(own.dtype).expand(own.shape[0], -1, -1, -1), own], dim=2)
