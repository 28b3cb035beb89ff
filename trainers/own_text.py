"""Batches whose responses the model in training writes itself, as it is at that moment. [Agarwal2024] Algorithm 1."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from trainers.batches import Batch, collate
from trainers.compute import pad_id
from trainers.generate import drawn_by_prompt
from trainers.generation_tokens import ResponseTokens
from trainers.loop import Job, Turn
from trainers.responses import written_ids

TEMPERATURE = 0.9
"""At which a student draws its text; the loss knows nothing of it. As in TRL's ``GKDTrainer``."""


class OwnText:
    """Rewrites a share of the batches of a stage: to the same prompts, responses that the model draws.

    Which ones depends on the plan and the step alone, so that all workers agree; the luck of a response on plan, step
    and row, so that the number of workers changes it by rounding alone. No gradient goes through the drawing.
    """

    def __init__(self, tokens: ResponseTokens, job: Job, *, share: float) -> None:
        self._tokens, self._job, self._share = tokens, job, share

    def __call__(self, model: Any, turn: Turn) -> Batch:
        """The batch of ``turn``, or the one that ``model`` writes in its place."""
        return self._rewritten(model, turn) if self.is_own(turn.step) else turn.batch

    def is_own(self, step: int) -> bool:
        """Whether the model writes the batch of this step, from 0."""
        return bool(np.random.default_rng(self._job.seed("own batch", step)).random() < self._share)

    def responses(self, model: Any, rows: np.ndarray, *, step: int) -> list[np.ndarray]:
        """What ``model`` writes to the prompts of ``rows``: token ids with the end, where it comes to one."""
        tokens, seed, training = self._tokens, self._job.seed("own text", step), model.training
        end, luck = tokens.tokenizer.eos_token_id, [np.random.default_rng([seed, row]) for row in rows.tolist()]
        model.eval()
        pick = partial(drawn_by_prompt, temperature=TEMPERATURE, luck=luck)
        found = written_ids(model, tokens, rows, pick=pick)
        model.train(training)
        return [np.append(ids, end) if len(ids) < tokens.max_new_tokens else ids for ids in found]

    def _rewritten(self, model: Any, turn: Turn) -> Batch:
        rows, device = turn.batch.rows, turn.batch.labels_P.device
        own = self._tokens.continued(rows, self.responses(model, rows, step=turn.step))
        batch = collate(own, np.arange(len(own)), pad_id=pad_id(model))
        # A worker without a row of its own has written for one that counts for nothing.
        sums = torch.tensor([batch.count, batch.num_tokens], device=device) * int(turn.weight)
        count, num_tokens = self._job.ranks.all_reduce(sums).tolist()
        whole = {"count": count, "num_tokens": num_tokens, "num_rows": turn.batch.num_rows}
        return replace(batch, rows=rows, own=True, **whole).to(device)
