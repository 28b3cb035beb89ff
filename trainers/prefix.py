"""Prefix tuning: keys and values before every text's own are trained, and the head, on the gold labels."""

from typing import Any

import torch
from torch import Tensor, nn

from spaces.methods.prefix import PrefixTuning
from trainers.finetune import gold_loss, new_parts
from trainers.loop import Fitted, Job, fit
from trainers.models import add_prefix
from trainers.past import prefixes

_ENCODER = "prefix_encoder"
"""What a prefix comes out of, as a child of the model while it is trained."""


def tune_prefix(model: Any, job: Job) -> tuple[Any, Fitted]:
    """Carry out a ``PrefixTuning`` stage: the model with a trained prefix; its layers are as they were.

    Raises:
        ModelError: the model has a prefix already, or its attention takes none.
    """
    stage: PrefixTuning = job.stage
    add_prefix(model, stage.num_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed("prefix"))
        encoder = new_encoder(model, projection=stage.projection)
    trained = {*encoder.parameters(), *new_parts(model)}
    unfolded = Unfolded(model, encoder)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in trained)
    fitted = fit(model, gold_loss, job)
    unfolded.fold()
    return model.requires_grad_(True), fitted


def new_encoder(model: Any, *, projection: bool) -> nn.Module:
    """PEFT's encoder for the prefixes in ``model``: a table, or a smaller one and a network of two layers behind it;
    drawn from torch's generator. From token numbers it gives rows of layers × (key, value) × heads × head size.
    """
    # Half of a worker's start would be this import, and most plans have no prefix.
    from peft import PrefixEncoder, PrefixTuningConfig

    places = list(prefixes(model))
    _, num_heads, num_tokens, head_size = places[0].key.shape
    width = num_heads * head_size
    settings = PrefixTuningConfig(
        num_virtual_tokens=num_tokens,
        token_dim=width,
        num_layers=len(places),
        encoder_hidden_size=width,
        prefix_projection=projection,
    )
    encoder: nn.Module = PrefixEncoder(settings)
    return encoder


class Unfolded:
    """The prefixes in a model while an encoder, which then is a part of the model, gives their keys and values."""

    def __init__(self, model: Any, encoder: nn.Module) -> None:
        self.model, self.encoder = model, encoder
        model.add_module(_ENCODER, encoder)
        self._handle = model.base_model.register_forward_pre_hook(self._encode)

    def fold(self) -> None:
        """Keep what the encoder gives as the prefixes' own weights, and forget it."""
        self._handle.remove()
        delattr(self.model, _ENCODER)
        for prefix, pair in zip(prefixes(self.model), self._pairs(), strict=True):
            prefix.keep(pair)

    def _encode(self, *_: Any) -> None:
        for prefix, pair in zip(prefixes(self.model), self._pairs(), strict=True):
            prefix.follow(pair)

    def _pairs(self) -> Tensor:
        """Keys and values, layers × 2 × 1 × heads × tokens × head size."""
        _, num_heads, num_tokens, head_size = next(prefixes(self.model)).key.shape
        rows: Tensor = self.encoder(torch.arange(num_tokens, device=next(self.encoder.parameters()).device))
        return rows.view(num_tokens, -1, 2, 1, num_heads, head_size).permute(1, 2, 3, 4, 0, 5)
