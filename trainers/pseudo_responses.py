"""Responses that a teacher writes to prompts without one, and how sure it is of each: written once, and kept."""

import json
import time
from typing import Any

import numpy as np

from spaces.canonical import fingerprint
from spaces.plan import Plan
from trainers.batches import sorted_batches
from trainers.context import Context, Heartbeat
from trainers.generation_tokens import ResponseTokens
from trainers.kinds import split_tokens
from trainers.kinds.kind import PseudoLabels
from trainers.ranks import Ranks, solo
from trainers.responses import ASKED_ROWS, row_scores, written_ids
from trainers.trained import shared, trained_teacher

_FILE = "responses.json"
_VERSION = 1


def written_responses(teacher: Plan, context: Context, *, ranks: Ranks, heartbeat: Heartbeat) -> PseudoLabels:
    """What ``teacher`` writes to the prompts of unlabeled, greedily; found again by every student of it.

    Its confidence is exp of the mean log-probability of the tokens of what it wrote, the end included: the geometric
    mean of their probabilities, so that a long response is not unsure for being long. Of a response that is empty, or
    that had not ended after ``max_new_tokens``, there is none.

    Raises:
        ModelError: the teacher has not been trained, or another worker's store is not this one's.
    """
    identity = {"kind": "pseudo_responses", "teacher": teacher.fingerprint, "version": _VERSION}
    name = fingerprint(identity | {"tokens": context.tokens[teacher.reader]["unlabeled"]})
    ranks.on_first(lambda: _ensure(name, teacher, context=context, heartbeat=heartbeat))
    artifact = shared(name, context, what="the teacher's responses")
    texts, confidences = json.loads((artifact.folder / _FILE).read_text())
    return PseudoLabels(texts, np.array(confidences, dtype=np.float64), artifact.about["seconds"])


def _ensure(name: str, teacher: Plan, *, context: Context, heartbeat: Heartbeat) -> None:
    if context.store.has(name):
        return
    tokens = split_tokens(context, base=teacher.reader, split="unlabeled")
    assert isinstance(tokens, ResponseTokens)
    started = time.perf_counter()
    model = trained_teacher(teacher, context)
    texts = _write(model, tokens, heartbeat)
    confidences = _confidences(model, tokens, texts)
    about = {"kind": "pseudo_responses", "rows": len(texts), "seconds": time.perf_counter() - started}
    with context.store.publish(name, about) as folder:
        (folder / _FILE).write_text(json.dumps([texts, confidences]))


def _write(model: Any, tokens: ResponseTokens, heartbeat: Heartbeat) -> list[str]:
    """A response to each prompt; empty where it is of no use."""
    found = [""] * len(tokens)
    for rows in sorted_batches(tokens.prompt_lengths, batch_size=ASKED_ROWS):
        heartbeat()
        ids = written_ids(model, tokens, rows)
        for row, text, written in zip(rows.tolist(), tokens.texts(ids), ids, strict=True):
            # With its end it would be longer than a response may be, so it has not come to it.
            found[row] = text if len(written) < tokens.max_new_tokens else ""
    # Read again it may be cut into more tokens than it was written in.
    fits = tokens.num_tokens(found) <= tokens.max_new_tokens
    return [text if fit else "" for text, fit in zip(found, fits.tolist(), strict=True)]


def _confidences(model: Any, tokens: ResponseTokens, texts: list[str]) -> list[float | None]:
    """How sure the model is of each text; None of one that is of no use."""
    found: list[float | None] = [None] * len(texts)
    rows = np.flatnonzero([text != "" for text in texts])
    if len(rows):
        answered = tokens.answered(rows, [texts[row] for row in rows.tolist()])
        scores = row_scores(model, answered, metric="perplexity", ranks=solo())
        for row, mean in zip(rows.tolist(), scores.totals_N / scores.counts_N, strict=True):
            found[row] = float(np.exp(-mean))
    return found
