"""Several teachers as one: how much each counts, and the distribution that they make together.

K = teachers, B = rows.
"""

import torch
from torch import Tensor

from trainers.losses.reduction import log_softmax, widen


def mixture_log_probs(teachers_KPC: Tensor, log_weights_PK: Tensor, *, temperature: float = 1.0) -> Tensor:
    """log Σ_k w_k softmax(z_k / T), P × C: log-probabilities of teachers mixed at ``temperature``.

    ``log_weights_PK`` are logarithms of weights whose sum over the teachers is 1.
    """
    log_probs_KPC = log_softmax(teachers_KPC, temperature=temperature)
    return torch.logsumexp(log_probs_KPC + widen(log_weights_PK).T[..., None], dim=0)


def camkd_weights(losses_BK: Tensor) -> Tensor:
    """(1 - softmax_k(CE_k)) / (K - 1), B × K: the better a teacher knows a row's label, the more it counts there.

    Sums to 1 over the teachers; one alone has all of it. [Zhang2022] Eq. 3.
    """
    num_teachers = losses_BK.shape[-1]
    if num_teachers == 1:
        return torch.ones_like(widen(losses_BK))
    return (1 - widen(losses_BK).softmax(dim=-1)) / (num_teachers - 1)


def load_balance(weights_BK: Tensor) -> Tensor:
    """CV² of how much each teacher is used: the variance of Σ_B w_k over its squared mean; 0 where all are used alike.

    [Shazeer2017] Eq. 7.
    """
    usage_K = widen(weights_BK).sum(dim=0)
    return usage_K.var(correction=0) / usage_K.mean().square()
