"""Which rows make a batch. Batches hold rows of like length, so that little is padded, and come in random order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainers.tokens import Tokens

_POOL_BATCHES = 50
"""Rows are sorted by length within so many batches: enough to pad little, few enough to stay random."""


@dataclass(frozen=True)
class Batch:
    """Rows of one worker, padded to the longest of them. B = rows, L = tokens."""

    rows: np.ndarray
    """Which rows of the split, int64."""
    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    labels_B: Tensor
    count: int
    """Rows of the whole batch, over all workers."""

    def to(self, device: torch.device) -> "Batch":
        """The batch on ``device``."""
        tensors = (self.input_ids_BL, self.attention_mask_BL, self.labels_B)
        ids, mask, labels = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return Batch(self.rows, ids, mask, labels, self.count)


def epoch_batches(lengths: np.ndarray, *, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Every row once, in batches of ``batch_size`` (one of them may be smaller), by ``seed`` and ``epoch`` alone."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    # What is left over is drawn before sorting, or the longest rows would always be the ones in a small batch.
    whole = len(order) - len(order) % batch_size
    batches = []
    for start in range(0, whole, _POOL_BATCHES * batch_size):
        pool = order[start : min(start + _POOL_BATCHES * batch_size, whole)]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += np.split(pool, len(pool) // batch_size)
    if whole < len(order):
        batches.append(order[whole:])
    return [batches[index] for index in rng.permutation(len(batches))]


def sorted_batches(lengths: np.ndarray, *, batch_size: int) -> list[np.ndarray]:
    """Every row once, by length, for asking a model: the least padding there can be."""
    order = np.argsort(lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def collate(tokens: Tokens, rows: Sequence[int] | np.ndarray, *, pad_id: int, count: int | None = None) -> Batch:
    """The rows as one batch; ``count`` where they are only a worker's share of it."""
    ids = [tokens.ids(int(row)) for row in rows]
    padded = np.full((len(ids), max(map(len, ids))), pad_id, dtype=np.int64)
    mask = np.zeros_like(padded)
    for index, row in enumerate(ids):
        padded[index, : len(row)] = row
        mask[index, : len(row)] = 1
    labels = tokens.labels[np.asarray(rows)]
    return Batch(
        rows=np.asarray(rows),
        input_ids_BL=torch.from_numpy(padded),
        attention_mask_BL=torch.from_numpy(mask),
        labels_B=torch.from_numpy(labels),
        count=len(ids) if count is None else count,
    )
