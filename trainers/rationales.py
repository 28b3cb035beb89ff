"""Rationales to learn from: the data's own, or those that a teacher writes and that lead to the right response."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from spaces.canonical import fingerprint
from spaces.methods.distill_cot import Written
from spaces.plan import Plan
from trainers.batches import sorted_batches
from trainers.generate import drawn
from trainers.generation_metrics import RATIONALE_END, behind_rationale, reasoned, same_answer
from trainers.generation_tokens import ResponseTokens
from trainers.kinds import asked_tokens
from trainers.loop import Job, TrainingError
from trainers.responses import written_ids
from trainers.trained import shared, trained_teacher

_FILE = "rationales.json"
_VERSION = 1
_ROWS = 64
"""Rows of a batch. Always the same, since what is drawn depends on it."""


@dataclass(frozen=True, eq=False)
class Rationales:
    """Rationales, and which row of train each belongs to; a row may have none or several."""

    rows: np.ndarray
    """int64, rising."""
    texts: list[str]
    notes: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    """How long a teacher wrote at them."""

    def targets(self, tokens: ResponseTokens) -> list[str]:
        """Each with the response of its row in ``tokens``."""
        pairs = zip(self.rows.tolist(), self.texts, strict=True)
        return [reasoned(text, tokens.responses[row]) for row, text in pairs]

    def that_fit(self, tokens: ResponseTokens) -> "Rationales":
        """Those that are not too long: cut, they would not come to their response.

        Raises:
            TrainingError: there is none.
        """
        kept = np.flatnonzero(tokens.num_tokens(self.targets(tokens)) <= tokens.max_reasoned_tokens)
        if not len(kept):
            why = "all are too long; raise task.max_tokens" if self.texts else "name their column in task.rationale"
            raise TrainingError(f"distill_cot: no row of train has a rationale to learn from: {why}")
        return replace(self, rows=self.rows[kept], texts=[self.texts[index] for index in kept])


def data_rationales(tokens: ResponseTokens) -> Rationales:
    """Those that came with the rows."""
    rows = [row for row, text in enumerate(tokens.rationales) if text]
    return Rationales(np.array(rows, dtype=np.int64), [text for text in tokens.rationales if text])


def written_rationales(settings: Written, job: Job) -> Rationales:
    """Those that a teacher writes to the rows of train; written once, and found again by every student of it.

    Raises:
        TrainingError: none leads to the right response.
        ModelError: the teacher has not been trained, or another worker's store is not this one's.
    """
    teacher, context = job.plan.on_same_data(settings.teacher), job.context
    identity = {"kind": "rationales", "teacher": teacher.fingerprint, "version": _VERSION}
    drawing = {"num_samples": settings.num_samples, "temperature": settings.temperature}
    name = fingerprint(identity | drawing | {"tokens": context.tokens[teacher.base]["train"]})
    job.ranks.on_first(lambda: _ensure(name, teacher, settings, job))
    artifact = shared(name, context, what="the rationales")
    rows, texts = json.loads((artifact.folder / _FILE).read_text())
    if not rows:
        raise TrainingError(
            f"distill_cot: none of the {artifact.about['written']} rationales that the teacher wrote leads to the "
            "right response; train it longer (search.teacher_recipes), or set search.space.rationales: data"
        )
    share = artifact.about["right"] / artifact.about["written"]
    notes = {"rationales_kept": share}
    return Rationales(np.array(rows, dtype=np.int64), texts, notes, artifact.about["seconds"])


def _ensure(name: str, teacher: Plan, settings: Written, job: Job) -> None:
    if job.context.store.has(name):
        return
    tokens = asked_tokens(teacher, job.context, split="train")
    assert isinstance(tokens, ResponseTokens)
    started = time.perf_counter()
    right = _right_ones(teacher, tokens, settings, job)
    kept = sorted(set(right))
    about = {"kind": "rationales", "written": settings.num_samples * len(tokens), "right": len(right)}
    with job.context.store.publish(name, {**about, "seconds": time.perf_counter() - started}) as folder:
        (folder / _FILE).write_text(json.dumps([[row for row, _ in kept], [text for _, text in kept]]))


def _right_ones(teacher: Plan, tokens: ResponseTokens, settings: Written, job: Job) -> list[tuple[int, str]]:
    """Row and rationale of each text that ends in the right response."""
    model = trained_teacher(teacher, job.context)
    generator = torch.Generator(next(model.parameters()).device).manual_seed(teacher.seed)
    pick = partial(drawn, temperature=settings.temperature, generator=generator)
    found: list[tuple[int, str]] = []
    for rows in settings.num_samples * sorted_batches(tokens.prompt_lengths, batch_size=_ROWS):
        job.heartbeat()
        texts = tokens.texts(written_ids(model, tokens, rows, pick=pick))
        found += [
            (row, rationale)
            for row, text in zip(rows.tolist(), texts, strict=True)
            if (rationale := right_rationale(text, tokens.responses[row]))
        ]
    return found


def right_rationale(text: str, response: str) -> str | None:
    """The rationale in ``text``, where it leads to the same answer as ``response`` has."""
    rationale, mark, _ = text.partition(RATIONALE_END)
    return rationale.strip() or None if mark and same_answer(behind_rationale(text), response) else None
