"""What each part of a model's width matters, by the magnitude of activations on training rows."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from spaces.canonical import fingerprint
from trainers.batches import collate, sorted_batches
from trainers.compute import pad_id, pick_device
from trainers.context import Context
from trainers.experts.tensors import NamedTensors
from trainers.families import FAMILIES
from trainers.kinds import kind_of, split_tokens
from trainers.models import ModelInfo
from trainers.tokens import Tokens
from trainers.width import Sizes, norms_hidden

_VERSION = 1
_ROWS = 512
_BATCH_ROWS = 32


def score_width(model: ModelInfo, context: Context) -> str:
    """Fingerprint of the scores of ``model``, by up to 512 of the training rows; measured once and kept."""
    rows = context.tokens[model.fingerprint]["train"]
    name = fingerprint(
        {"kind": "width", "model": model.fingerprint, "tokens": rows, "rows": _ROWS, "version": _VERSION}
    )
    if not context.store.has(name):
        tokens = split_tokens(context, base=model.fingerprint, split="train")
        some = np.sort(np.random.default_rng(0).permutation(len(tokens))[:_ROWS])
        loaded = kind_of(context).load(model.folder, context).to(pick_device())
        found = scores_of(loaded, tokens.take(some))
        with context.store.publish(name, {"kind": "width"}) as folder:
            NamedTensors(found).save(folder)
    return name


@torch.no_grad()
def scores_of(model: Any, tokens: Tokens) -> dict[str, Tensor]:
    """How much each part of ``model`` matters to the rows of ``tokens``: means over their tokens, float32.

    Of a channel: the magnitude behind norms, summed over them; of a key-value head: the length of what its queries'
    heads give, summed over these; of a neuron: the magnitude that the feed-forward block's last map is given.
    Differs from the paper: neurons are measured behind the activation, and all means are plain.
    """
    scorer = _Scorer(model)
    device = next(model.parameters()).device
    try:
        for rows in sorted_batches(tokens.lengths, batch_size=_BATCH_ROWS):
            batch = collate(tokens, rows, pad_id=pad_id(model)).to(device)
            scorer.mask = batch.attention_mask_BL.flatten().bool()
            model.base_model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL)
    finally:
        scorer.close()
    return {name: (total / int(tokens.lengths.sum())).cpu() for name, total in scorer.totals.items()}


class _Scorer:
    """Adds up magnitudes of the tokens under ``mask`` while a model computes."""

    def __init__(self, model: Any) -> None:
        family = FAMILIES[model.config.model_type]
        layers = model.base_model.get_submodule(family.layers)
        self.mask = torch.empty(0)
        device = next(model.parameters()).device
        self._sizes = sizes = Sizes.of(model.config)
        self.totals = {
            "channels": torch.zeros(sizes.hidden, device=device),
            "heads": torch.zeros(len(layers), sizes.groups, device=device),
            "neurons": torch.zeros(len(layers), sizes.neurons, device=device),
        }
        self._handles = [
            module.register_forward_hook(self._channels)
            for module in model.base_model.modules()
            if norms_hidden(module, sizes.hidden)
        ]
        for index, layer in enumerate(layers):
            for name, add in ((family.attention_output, self._heads), (family.ffn_output, self._neurons)):
                self._handles.append(layer.get_submodule(name).register_forward_pre_hook(add(index)))

    def close(self) -> None:
        """Let the model be as it was."""
        for handle in self._handles:
            handle.remove()

    def _seen(self, values: Tensor) -> Tensor:
        """Rows of the tokens that count."""
        return values.reshape(len(self.mask), -1)[self.mask].float()

    def _channels(self, _module: Any, _inputs: Any, output: Tensor) -> None:
        self.totals["channels"] += self._seen(output).abs().sum(dim=0)

    def _heads(self, layer: int) -> Any:
        def add(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            heads = self._seen(inputs[0]).unflatten(-1, (self._sizes.groups, -1, self._sizes.head_size))
            self.totals["heads"][layer] += heads.norm(dim=-1).sum(dim=(0, 2))

        return add

    def _neurons(self, layer: int) -> Any:
        def add(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            self.totals["neurons"][layer] += self._seen(inputs[0]).abs().sum(dim=0)

        return add
