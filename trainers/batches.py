"""Which rows make a batch. Batches hold rows of like length, so that little is padded, and come in random order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainers.ranks import Ranks
from trainers.tokens import Tokens

_POOL_BATCHES = 50
"""Rows are sorted by length within so many batches: enough to pad little, few enough to stay random."""


@dataclass(frozen=True)
class Batch:
    """Rows of one worker, padded to the longest of them. B = rows, L = tokens, P = positions that a loss is about."""

    rows: np.ndarray
    """Which rows of the split, int64."""
    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    labels_P: Tensor
    """What is right at each position: a class, or the next token."""
    positions_P: np.ndarray
    """Number of each position on the split's flat axis, int64."""
    places_P: Tensor | None
    """Where each position's answer is among B × L, flat; None: each row has one."""
    count: int
    """Positions of the whole batch, over all workers."""
    num_rows: int
    """Rows of the whole batch, over all workers."""
    num_tokens: int
    """Tokens of the whole batch, over all workers, without padding."""
    own: bool = False
    """Whether the model that is trained wrote the responses itself: then they are not what would be right."""

    def to(self, device: torch.device) -> "Batch":
        """The batch on ``device``."""
        return replace(
            self,
            input_ids_BL=self.input_ids_BL.to(device, non_blocking=True),
            attention_mask_BL=self.attention_mask_BL.to(device, non_blocking=True),
            labels_P=self.labels_P.to(device, non_blocking=True),
            places_P=None if self.places_P is None else self.places_P.to(device, non_blocking=True),
        )

    def at_positions(self, values: Tensor) -> Tensor:
        """P × C: those of a model's outputs (B × C, or B × L × C) that belong to the positions."""
        return values if self.places_P is None else values.flatten(0, 1)[self.places_P]


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


def collate(
    tokens: Tokens, rows: Sequence[int] | np.ndarray, *, pad_id: int, whole: Sequence[int] | np.ndarray | None = None
) -> Batch:
    """The rows padded; ``whole`` are those of the whole batch where ``rows`` are only a worker's share of it."""
    rows = np.asarray(rows)
    whole = rows if whole is None else np.asarray(whole)
    ids = [tokens.ids(int(row)) for row in rows]
    padded = np.full((len(ids), max(map(len, ids))), pad_id, dtype=np.int64)
    mask = np.zeros_like(padded)
    for index, row in enumerate(ids):
        padded[index, : len(row)] = row
        mask[index, : len(row)] = 1
    labels, positions, places = tokens.targets(rows, length=padded.shape[1])
    return Batch(
        rows=rows,
        input_ids_BL=torch.from_numpy(padded),
        attention_mask_BL=torch.from_numpy(mask),
        labels_P=torch.from_numpy(labels),
        positions_P=positions,
        places_P=None if places is None else torch.from_numpy(places),
        count=tokens.num_positions(whole),
        num_rows=len(whole),
        num_tokens=int(tokens.lengths[whole].sum()),
    )


def worker_batch(tokens: Tokens, rows: np.ndarray, *, ranks: Ranks, pad_id: int) -> tuple[Batch, float]:
    """This worker's share of the batch of ``rows``, and the weight of its loss.

    A worker without a row still has to know which weights get a gradient; it gets one that counts for nothing.
    """
    own = rows[ranks.rank :: ranks.size]
    batch = collate(tokens, own if len(own) else rows[:1], pad_id=pad_id, whole=rows)
    return batch, 1.0 if len(own) else 0.0
