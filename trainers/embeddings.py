"""Training only those rows of a token embedding that the training data uses.

Most of a small encoder's weights are embeddings, and most of their rows belong to tokens that the data does not hold.
AdamW without decay leaves such a row exactly as it is: its gradient, and so both moments, are zero. So a matrix of the
used rows alone, trained in the place of the table, gives the very same result for a fraction of the work.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.tokens import Tokens


class UsedRows(nn.Module):
    """Stands in for ``table``. In training mode it looks up the trained rows; in evaluation mode the whole table.

    Going to evaluation mode writes the trained rows into the table. Ids are mapped in here and nowhere else: models
    derive positions from ids.
    """

    places: Tensor

    def __init__(self, table: nn.Embedding, used: Tensor) -> None:
        super().__init__()
        self.table = table
        self.used = used
        self.weight = nn.Parameter(table.weight.detach()[used].clone())
        places = torch.full((table.num_embeddings,), -1, device=used.device)
        places[used] = torch.arange(len(used), device=used.device)
        self.register_buffer("places", places, persistent=False)
        self._padding = None if table.padding_idx is None else int(places[table.padding_idx])

    def forward(self, ids: Tensor) -> Tensor:
        """The embedding of each id; in training mode an id that was not declared as used is an ``IndexError``."""
        if not self.training:
            return self.table(ids)
        return functional.embedding(self.places[ids], self.weight, padding_idx=self._padding)

    def train(self, mode: bool = True) -> "UsedRows":
        """Set the mode; the table is brought up to date for evaluation."""
        if not mode:
            self.write_back()
        return super().train(mode)

    def write_back(self) -> None:
        """Copy the trained rows into the table."""
        with torch.no_grad():
            self.table.weight[self.used] = self.weight


def used_ids(tokens: Tokens, *, vocab_size: int, pad_id: int) -> Tensor:
    """The token ids that occur in ``tokens``, and the padding's, rising, int64."""
    seen = np.zeros(vocab_size, dtype=bool)
    seen[pad_id] = True
    for row in range(len(tokens)):
        seen[tokens.ids(row)] = True
    return torch.from_numpy(np.flatnonzero(seen))


@contextlib.contextmanager
def train_used_rows(model: Any, used: Tensor) -> Iterator[None]:
    """Inside the block the model trains only the ``used`` rows of its token embedding.

    Nothing changes where it is frozen, or is the head of a language model as well: every row then has a gradient.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not table.weight.requires_grad or (head is not None and head.weight is table.weight):
        yield
        return
    rows = UsedRows(table, used.to(table.weight.device)).train(table.training)
    table.weight.requires_grad_(False)
    model.set_input_embeddings(rows)
    try:
        yield
    finally:
        rows.write_back()
        table.weight.requires_grad_(True)
        model.set_input_embeddings(table)
