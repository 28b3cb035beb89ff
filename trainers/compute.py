"""With which arithmetic a model is trained and asked, and its answers to many rows."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from trainers.batches import Batch, collate, sorted_batches
from trainers.context import Context
from trainers.models import quiet_transformers
from trainers.ranks import Ranks
from trainers.tokens import Tokens

_ASKED_ROWS = 64
"""Rows of a batch when nothing is trained."""
_SHORT_TOKENS = 128
"""Up to here attention as plain matrix products is 1.2 to 1.5 times as fast as torch's fused kernel, training in
bfloat16 on a processor; at 256 it is slower. In float32 the two do not differ."""


def pick_device() -> torch.device:
    """The GPU if this process sees one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is computed by the hardware, and not by detours that make it slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.get_device_capability(device) >= (8, 0))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def uses_bf16(context: Context, device: torch.device) -> bool:
    """Whether ``context.compute`` asks for bfloat16, here."""
    return context.compute == "bf16" or (context.compute == "auto" and has_bf16(device))


def autocast(context: Context, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The arithmetic that ``context.compute`` asks for; weights stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(context, device))


@contextlib.contextmanager
def fast_attention(model: Any, *, longest: int, context: Context) -> Iterator[None]:
    """Inside the block the model uses the attention that is the fastest for rows of up to ``longest`` tokens."""
    device = next(model.parameters()).device
    fused = model.config._attn_implementation == "sdpa"
    short = fused and longest <= _SHORT_TOKENS and device.type == "cpu" and uses_bf16(context, device)
    with plain_attention(model) if short else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Inside the block the model computes attention as plain matrix products, the only way in which it shows them."""
    before = model.config._attn_implementation
    with quiet_transformers():
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        with quiet_transformers():
            model.set_attn_implementation(before)


def pad_id(model: Any) -> int:
    """The id that fills a batch's shorter rows; what stands there is masked."""
    return int(model.config.pad_token_id or 0)


def num_classes(model: Any) -> int:
    """Between how many answers the model's logits choose: labels, or tokens."""
    head = model.get_output_embeddings()
    return int(model.config.num_labels if head is None else head.weight.shape[0])


def logits(model: Any, tokens: Tokens, *, context: Context, ranks: Ranks) -> Tensor:
    """The model's logits at every position, positions × classes, float32, on the processor; workers share the rows.

    The model is asked in evaluation mode and is then as it was.
    """
    answers = torch.zeros(tokens.num_positions(), num_classes(model))

    def take(batch: Batch, logits_PC: Tensor) -> None:
        answers[torch.from_numpy(batch.positions_P)] = logits_PC.float().cpu()

    each_logits(model, tokens, take, context=context, ranks=ranks)
    return ranks.all_reduce(answers)


def each_logits(
    model: Any, tokens: Tokens, take: Callable[[Batch, Tensor], None], *, context: Context, ranks: Ranks
) -> None:
    """``logits`` for as many rows as no memory holds at once: ``take`` is given this worker's, batch after batch, on
    the model's device.
    """

    def ask(batch: Batch) -> None:
        found = model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL).logits
        take(batch, batch.at_positions(found))

    _each_batch(ask, model, tokens, context=context, ranks=ranks)


def features(model: Any, tokens: Tokens, *, context: Context, ranks: Ranks) -> Tensor:
    """The mean of the encoder's last hidden states over each row's tokens, rows × hidden size; else as ``logits``."""
    answers = torch.zeros(len(tokens), model.config.hidden_size)

    def ask(batch: Batch) -> None:
        mask_BL = batch.attention_mask_BL
        states_BLH = model.base_model(input_ids=batch.input_ids_BL, attention_mask=mask_BL).last_hidden_state.float()
        means_BH = torch.einsum("blh,bl->bh", states_BLH, mask_BL.float()) / mask_BL.sum(dim=1, keepdim=True)
        answers[torch.from_numpy(batch.rows)] = means_BH.float().cpu()

    _each_batch(ask, model, tokens, context=context, ranks=ranks)
    return ranks.all_reduce(answers)


@torch.no_grad()
def _each_batch(ask: Callable[[Batch], None], model: Any, tokens: Tokens, *, context: Context, ranks: Ranks) -> None:
    """``ask`` about this worker's batches, the model in evaluation mode."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    with autocast(context, device), fast_attention(model, longest=int(tokens.lengths.max()), context=context):
        for rows in sorted_batches(tokens.lengths, batch_size=_ASKED_ROWS)[ranks.rank :: ranks.size]:
            ask(collate(tokens, rows, pad_id=pad_id(model)).to(device))
    model.train(training)
