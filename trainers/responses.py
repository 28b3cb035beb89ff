"""How good a model's responses are, row by row: what it writes, or how likely it finds what is right."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from trainers.batches import collate, sorted_batches
from trainers.compute import pad_id
from trainers.generate import Pick, likeliest, written
from trainers.generation_metrics import RowScores, exact_match, perplexity, rouge_l
from trainers.generation_tokens import ResponseTokens
from trainers.ranks import Ranks

ASKED_ROWS = 32
"""Rows of a batch. Always the same, so that the rounding of a row's neighbours is."""
_OF_TEXTS: Mapping[str, Callable[[list[str], list[str]], RowScores]] = {"exact_match": exact_match, "rouge_l": rouge_l}


def row_scores(model: Any, tokens: ResponseTokens, *, metric: str, ranks: Ranks) -> RowScores:
    """What ``metric`` is made of, for each row of ``tokens``; workers share the rows. ``model`` is then as it was."""
    training = model.training
    model.eval()
    lengths = tokens.lengths if metric == "perplexity" else tokens.prompt_lengths
    totals_counts = torch.zeros(2, len(tokens), dtype=torch.float64)
    for rows in sorted_batches(lengths, batch_size=ASKED_ROWS)[ranks.rank :: ranks.size]:
        scored = _likelihood(model, tokens, rows) if metric == "perplexity" else _written(model, tokens, rows, metric)
        totals_counts[:, torch.from_numpy(rows)] = torch.from_numpy(np.stack([scored.totals_N, scored.counts_N]))
    model.train(training)
    totals_N, counts_N = ranks.all_reduce(totals_counts).numpy()
    return RowScores(metric, totals_N, counts_N)


def written_ids(model: Any, tokens: ResponseTokens, rows: np.ndarray, *, pick: Pick = likeliest) -> list[np.ndarray]:
    """What ``model`` writes to the prompts of ``rows``, each token as ``pick`` has it: ids without the end, int64."""
    return written(
        model,
        [tokens.prompt(row) for row in rows.tolist()],
        max_new_tokens=tokens.max_new_tokens,
        end_ids={tokens.tokenizer.eos_token_id},
        pad_id=pad_id(model),
        pick=pick,
    )


def _written(model: Any, tokens: ResponseTokens, rows: np.ndarray, metric: str) -> RowScores:
    answers = tokens.answers(written_ids(model, tokens, rows))
    return _OF_TEXTS[metric](answers, [tokens.responses[row] for row in rows.tolist()])


@torch.inference_mode()
def _likelihood(model: Any, tokens: ResponseTokens, rows: np.ndarray) -> RowScores:
    batch = collate(tokens, rows, pad_id=pad_id(model)).to(next(model.parameters()).device)
    found = model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL).logits
    nll_P = functional.cross_entropy(batch.at_positions(found).float(), batch.labels_P, reduction="none").double().cpu()
    counts_N = tokens.response_lengths[rows]
    totals = torch.zeros(len(rows), dtype=torch.float64)
    return perplexity(
        totals.index_add(0, torch.arange(len(rows)).repeat_interleave(torch.from_numpy(counts_N)), nll_P).numpy(),
        counts_N,
    )
