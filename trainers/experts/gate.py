"""The gate: which expert to listen to at which row."""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spaces.methods.experts import Gate
from spaces.plan import Plan
from trainers.batches import epoch_batches
from trainers.context import Context
from trainers.experts.adapters import expert_outputs
from trainers.experts.answers import gold_log_probs, rows_of_positions
from trainers.experts.parts import row_features
from trainers.experts.tensors import NamedTensors, read_tensors
from trainers.kinds import split_tokens
from trainers.loop import Fitted, Job, rate_share
from trainers.losses import load_balance
from trainers.trained import trained_part

_LOG_WEIGHTS = "log_weights"


def gate(model: Any, job: Job) -> tuple[NamedTensors, Fitted]:
    """Carry out a ``Gate`` stage on the frozen base ``model``: the linear map, and what it says to each training row.

    All workers fit the same gate: it is small, and only its features are costly.
    """
    stage: Gate = job.stage
    experts = expert_outputs([job.plan.on_same_data(chain) for chain in stage.experts], job.context, ranks=job.ranks)
    started = time.perf_counter()
    tokens = split_tokens(job.context, base=job.plan.reader, split="train")
    features_BH = standardised(row_features(model, job))
    gold_PK = gold_log_probs(experts, tokens, temperature=stage.temperature)
    linear = fit_gate(features_BH, gold_PK, rows_of_positions(tokens), job)
    with torch.no_grad():
        log_weights_BK = linear(features_BH).log_softmax(dim=-1)
    kept = NamedTensors({**linear.state_dict(), _LOG_WEIGHTS: log_weights_BK})
    return kept, Fitted(time.perf_counter() - started, ())


def fit_gate(features_BH: Tensor, gold_PK: Tensor, rows_P: Tensor, job: Job) -> nn.Linear:
    """A linear map of features whose softmax weighs the experts, trained by ``gate_loss`` on batches of positions."""
    settings, stage = job.optimisation, job.stage
    # At zero it starts from equal weights.
    linear = nn.Linear(features_BH.shape[1], gold_PK.shape[1])
    nn.init.zeros_(linear.weight), nn.init.zeros_(linear.bias)
    optimizer = torch.optim.AdamW(linear.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    total, step = settings.epochs * -(-len(gold_PK) // settings.batch_size), 0
    for epoch in range(settings.epochs):
        job.ranks.on_first(job.heartbeat)
        ones = np.ones(len(gold_PK), dtype=np.int64)
        for batch in epoch_batches(ones, batch_size=settings.batch_size, seed=job.plan.seed, epoch=epoch):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate_share(step, total=total, warmup_share=settings.warmup_share)
            optimizer.zero_grad()
            places = torch.from_numpy(batch)
            log_weights_PK = linear(features_BH[rows_P[places]]).log_softmax(dim=-1)
            gate_loss(log_weights_PK, gold_PK[places], balance=stage.balance).backward()
            nn.utils.clip_grad_norm_(linear.parameters(), settings.max_grad_norm)
            optimizer.step()
            step += 1
    return linear


def gate_loss(log_weights_PK: Tensor, gold_PK: Tensor, *, balance: float) -> Tensor:
    """Mean cross-entropy of the mixture, -log Σ_k w_k p_k(label), plus ``balance`` times the CV² of the usage."""
    mixture = -torch.logsumexp(log_weights_PK + gold_PK, dim=-1).mean()
    return mixture + balance * load_balance(log_weights_PK.exp())


def gate_log_weights(trained: Plan, context: Context) -> Tensor:
    """What a trained gate says to each training row, B × K.

    Raises:
        ModelError: it has not been trained.
    """
    return read_tensors(trained_part(trained, context, what="gate"))[_LOG_WEIGHTS]


def standardised(features_BH: Tensor) -> Tensor:
    """Each feature with mean 0 and deviation 1; 0 where it never varies."""
    centred = features_BH - features_BH.mean(dim=0)
    return centred / centred.std(dim=0, correction=0).clamp(min=1e-6)
