"""What experts say to the right answers, and where they say it. K = experts, P = positions, B = rows."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trainers.losses.reduction import log_softmax
from trainers.teacher import TeacherOutputs
from trainers.tokens import Tokens


def gold_log_probs(experts: Sequence[TeacherOutputs], tokens: Tokens, *, temperature: float) -> Tensor:
    """What each expert gives the right answer at each position: log softmax(z / T)[label], P × K."""
    labels_P1 = torch.from_numpy(tokens.targets(np.arange(len(tokens)), length=int(tokens.lengths.max())).labels_P)[
        :, None
    ]
    found = [
        log_softmax(torch.tensor(expert.log_probs), temperature=temperature).gather(-1, labels_P1) for expert in experts
    ]
    return torch.cat(found, dim=-1)


def rows_of_positions(tokens: Tokens) -> Tensor:
    """The row of each position, P, int64."""
    counts = [tokens.num_positions(np.array([row])) for row in range(len(tokens))]
    return torch.from_numpy(np.repeat(np.arange(len(tokens)), counts))


def row_losses(gold_PK: Tensor, rows_P: Tensor) -> Tensor:
    """The mean cross-entropy of each expert over the positions of each row, B × K."""
    num_rows = int(rows_P[-1]) + 1
    sums_BK = torch.zeros(num_rows, gold_PK.shape[1]).index_add_(0, rows_P, -gold_PK)
    return sums_BK / rows_P.bincount(minlength=num_rows).clamp(min=1)[:, None]
