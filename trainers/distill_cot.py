"""Training on rationales: as a second task, or as what is written before each response."""

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spaces.methods.distill_cot import EXPLAIN, PREDICT, DistillCot
from trainers.batches import Batch
from trainers.finetune import gold_loss
from trainers.generation_tokens import ResponseTokens
from trainers.kinds import split_tokens
from trainers.loop import Fitted, Job, Loss, TrainingError, fit
from trainers.losses import IGNORED, cross_entropy
from trainers.rationales import Rationales, data_rationales, written_rationales


def distill_cot(model: Any, job: Job) -> tuple[Any, Fitted]:
    """Carry out a ``DistillCot`` stage on ``model``. The time that the teacher took to write counts as its own.

    Raises:
        TrainingError: there is no rationale to learn from, or the task's metric cannot tell what ``generate`` is worth.
    """
    stage: DistillCot = job.stage
    if stage.reasons and job.context.metric == "perplexity":
        raise TrainingError(
            "distill_cot: the perplexity of a response says nothing of a model that writes a rationale first; "
            "set search.space.cot_mode: multitask, or measure exact_match"
        )
    rows = split_tokens(job.context, base=job.plan.reader, split="train")
    assert isinstance(rows, ResponseTokens)
    found = written_rationales(stage.written, job) if stage.written else data_rationales(rows)
    started = time.perf_counter()
    learnt = found.that_fit(rows)
    tokens = two_tasks(rows, learnt) if stage.mode == "multitask" else reasoned_rows(rows, learnt)
    seconds = time.perf_counter() - started + found.seconds
    fitted = fit(model, _loss(stage, rows, tokens), job, tokens=tokens)
    served = tokens.take(np.arange(len(rows))) if stage.mode == "multitask" else tokens
    notes = {
        **found.notes,
        "rationales": float(len(learnt.texts)),
        "rows_explained": len(np.unique(learnt.rows)) / len(rows),
        "output_tokens": float(np.median(served.response_lengths)),
    }
    return model, Fitted(fitted.seconds + seconds, fitted.history, notes)


def reasoned_rows(rows: ResponseTokens, found: Rationales) -> ResponseTokens:
    """Each rationale with the response behind it; of a row without one, the response alone."""
    bare = np.setdiff1d(np.arange(len(rows)), found.rows)
    targets = [*found.targets(rows), *(rows.responses[row] for row in bare)]
    return rows.retold(np.concatenate([found.rows, bare]), targets, max_new_tokens=rows.max_reasoned_tokens)


def two_tasks(rows: ResponseTokens, found: Rationales) -> ResponseTokens:
    """The response of every row, and then every rationale, each behind the prefix of its task."""
    every = np.arange(len(rows))
    responses = rows.retold(every, rows.responses, prefix=PREDICT, max_new_tokens=rows.max_new_tokens)
    return responses.joined(
        rows.retold(found.rows, found.texts, prefix=EXPLAIN, max_new_tokens=rows.max_reasoned_tokens)
    )


def _loss(stage: DistillCot, rows: ResponseTokens, tokens: ResponseTokens) -> Loss:
    if stage.alpha is None:
        return gold_loss
    num_responses = tokens.num_positions(np.arange(len(rows)))
    return partial(
        multitask_loss,
        alpha=stage.alpha,
        num_rows=len(tokens),
        num_responses=num_responses,
        num_rationales=tokens.num_positions() - num_responses,
    )


def multitask_loss(
    outputs: Any, batch: Batch, _share: float, *, alpha: float, num_rows: int, num_responses: int, num_rationales: int
) -> Tensor:
    """alpha L_response + (1 - alpha) L_rationale, each the mean over its positions in all rows.

    Batches are drawn from the rows of both tasks together, so that one may hold few of a task, or none. What it holds
    is scaled by its share of all rows, not of its own positions: the mean over an epoch is then the loss above.
    ``num_responses`` positions of responses come first on the rows' flat axis, ``num_rationales`` follow.
    """
    is_response_P = torch.from_numpy(batch.positions_P < num_responses).to(batch.labels_P.device)
    logits_PC, share = batch.at_positions(outputs.logits), batch.num_rows / num_rows
    responses, rationales = (batch.labels_P.where(chosen, IGNORED) for chosen in (is_response_P, ~is_response_P))
    response_loss = cross_entropy(logits_PC, responses, count=num_responses * share)
    return alpha * response_loss + (1 - alpha) * cross_entropy(logits_PC, rationales, count=num_rationales * share)
