"""With which arithmetic a model is trained and asked, and its answers to many rows."""

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.batches import collate, sorted_batches
from trainers.context import Context
from trainers.ranks import Ranks
from trainers.tokens import Tokens

_ASKED_ROWS = 64
"""Rows of a batch when nothing is trained."""


def pick_device() -> torch.device:
    """The GPU if this process sees one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is computed by the hardware, and not by detours that make it slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.get_device_capability(device) >= (8, 0))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(context: Context, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The arithmetic that ``context.compute`` asks for; weights stay float32."""
    bf16 = context.compute == "bf16" or (context.compute == "auto" and has_bf16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


def pad_id(model: Any) -> int:
    """The id that fills a batch's shorter rows; what stands there is masked."""
    return int(model.config.pad_token_id or 0)


@torch.no_grad()
def logits(model: Any, tokens: Tokens, *, context: Context, ranks: Ranks) -> Tensor:
    """The model's logits for every row, rows × labels, float32, on the processor; workers share the rows.

    The model is asked in evaluation mode and is then as it was.
    """
    device, training = next(model.parameters()).device, model.training
    answers = torch.zeros(len(tokens), len(context.labels))
    model.eval()
    with autocast(context, device):
        for rows in sorted_batches(tokens.lengths, batch_size=_ASKED_ROWS)[ranks.rank :: ranks.size]:
            batch = collate(tokens, rows, pad_id=pad_id(model)).to(device)
            found = model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL).logits
            answers[torch.from_numpy(rows)] = found.float().cpu()
    model.train(training)
    return ranks.all_reduce(answers)


def predictions(model: Any, tokens: Tokens, *, context: Context, ranks: Ranks) -> np.ndarray:
    """The label (int64) that the model gives each row."""
    return logits(model, tokens, context=context, ranks=ranks).argmax(dim=-1).numpy()
