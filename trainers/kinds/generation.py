"""Prompts in, text out: a causal language model, served by torch with packed weights."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spaces.canonical import fingerprint
from spaces.methods.vocabulary import KeepVocabulary
from spaces.needs import Lacking
from spaces.plan import Plan
from spaces.shape import Shape
from spaces.targets import Precision
from spaces.task import Task
from trainers import generation_cost, generation_metrics
from trainers.artifacts import Artifact
from trainers.causal_models import check_same_tokens, inspect_causal, load_causal
from trainers.context import Context, Heartbeat
from trainers.cost import CostRow
from trainers.demonstrations import Demonstrations, asked_behind
from trainers.episodes import why_no_labels
from trainers.fake_packed import fake_packed_int8
from trainers.generation_metrics import RowScores
from trainers.generation_rows import GenerationRows, GenerationTaskRows, load_generation
from trainers.generation_tokens import ResponseTokens, tokenise_exchanges
from trainers.kinds import split_tokens
from trainers.kinds.kind import PseudoLabels, Request
from trainers.metrics import Quality
from trainers.model_files import ModelError
from trainers.models import ModelInfo
from trainers.packed import check_precision, open_packed, write_packed
from trainers.pseudo_responses import written_responses
from trainers.ranks import Ranks, solo
from trainers.responses import row_scores

_ASKED_ROWS = 200
"""Most rows that a model in training is asked: writing takes long, and a report only steers."""

_NUM_DRAWS = 50
"""[Anshumann2025]"""
_SMALL_VOCABULARY = 512
"""Up to here all of a teacher's answer is kept, as draws of it would save nothing that counts. Soft and gold loss at
512 positions, forward and back on one thread, in full and from 50 draws: 1.2 and 1.4 ms of 256 tokens, 2.5 and 1.9 of
512, 4.7 and 2.9 of 1,000, 366 and 146 of 32,000; on disk 4 bytes a token of the vocabulary against 56 in all."""


class Generation:
    """Answers are scored as they are given: what is kept of a text is how good it was."""

    def load_rows(self, task: Task, *, seed: int, folder: Path) -> GenerationTaskRows:
        return load_generation(task, seed=seed, folder=folder)

    def data_fingerprint(self, rows: GenerationTaskRows, task: Task) -> str:
        return fingerprint([rows.fingerprint, task.max_tokens, task.max_new_tokens])

    def inspect(self, reference: str) -> ModelInfo:
        return inspect_causal(reference)

    def check(
        self,
        task: Task,
        *,
        base: ModelInfo,
        teacher: ModelInfo | None,
        students: Sequence[ModelInfo],
        precisions: Sequence[Precision],
    ) -> None:
        for precision in precisions:
            check_precision(precision)
        for student in (base, *students):
            out = "leave model.teacher out: the base, fine-tuned, then teaches"
            if student is not base:
                out = f"leave {student.reference} out of model.students"
            check_same_tokens(student, teacher or base, max_tokens=task.max_tokens, way_out=out)

    def lacking(
        self,
        context: Context,
        *,
        base: ModelInfo,
        teacher: ModelInfo | None,  # noqa: ARG002
        students: Sequence[ModelInfo],  # noqa: ARG002
    ) -> Lacking:
        """Labels alone: ``check`` refuses a teacher that does not read the student's tokens."""
        problem = why_no_labels(Demonstrations(_train_tokens(base.fingerprint, context)).labels)
        return {} if problem is None else {"labels": problem}

    def num_draws(self, base: ModelInfo) -> int | None:
        return _NUM_DRAWS if base.vocab_size > _SMALL_VOCABULARY else None

    def keep_vocabulary(self, _rows: GenerationTaskRows, base: ModelInfo, _context: Context) -> KeepVocabulary:
        raise ModelError(f"{base.reference} writes with its vocabulary; only a classifier's can be cut")

    def load(self, folder: Path, _context: Context, *, dropout: float = 0.0, seed: int = 0) -> Any:  # noqa: ARG002
        return load_causal(folder, dropout=dropout)

    def tokenise(self, rows: GenerationRows, model: ModelInfo, context: Context, *, max_tokens: int) -> Artifact:
        return tokenise_exchanges(
            rows, model, context.store, max_tokens=max_tokens, max_new_tokens=context.max_new_tokens
        )

    def open_tokens(self, artifact: Artifact) -> ResponseTokens:
        return ResponseTokens.of(artifact)

    def as_asked(self, tokens: ResponseTokens, plan: Plan, context: Context) -> ResponseTokens:
        stage = plan.last_training
        if stage is None or not (stage.prefix or stage.reasons or stage.num_shots):
            return tokens
        train = _train_tokens(plan.reader, context)
        if stage.num_shots:
            return asked_behind(tokens, train, num_shots=stage.num_shots, seed=plan.seed)
        room = train.max_reasoned_tokens if stage.reasons else tokens.max_new_tokens
        return tokens.asked(prefix=stage.prefix, max_new_tokens=room, reasons=stage.reasons)

    def opening(self, plan: Plan, context: Context) -> str:
        stage = plan.last_training
        if stage is None or not stage.num_shots:
            return f"{stage.prefix} " if stage and stage.prefix else ""
        demonstrations = Demonstrations(_train_tokens(plan.reader, context))
        return demonstrations.opening(demonstrations.served(stage.num_shots, seed=plan.seed))

    def typical_request(self, tokens: ResponseTokens) -> Request:
        return Request(int(np.median(tokens.prompt_lengths)), int(np.median(tokens.response_lengths)))

    def ask(self, model: Any, tokens: ResponseTokens, *, context: Context, ranks: Ranks) -> RowScores:
        asked = tokens.take(np.arange(_ASKED_ROWS)) if len(tokens) > _ASKED_ROWS else tokens
        return row_scores(model, asked, metric=context.metric, ranks=ranks)

    def pseudo_labels(self, teacher: Plan, context: Context, *, ranks: Ranks, heartbeat: Heartbeat) -> PseudoLabels:
        return written_responses(teacher, context, ranks=ranks, heartbeat=heartbeat)

    def quality(self, answers: RowScores, _tokens: ResponseTokens, *, context: Context) -> Quality:  # noqa: ARG002
        return generation_metrics.quality(answers)

    def retained_loss(self, model: Any, tokens: ResponseTokens, *, context: Context) -> float:  # noqa: ARG002
        """Mean cross-entropy of the responses' tokens, in nats."""
        scores = row_scores(model, tokens, metric="perplexity", ranks=solo())
        return float(scores.totals_N.sum() / scores.counts_N.sum())

    def predictions(self, _answers: RowScores) -> tuple[int, ...]:
        return ()

    def deploy(self, model: Artifact, *, plan: Plan, precision: Precision, context: Context, folder: Path) -> Path:  # noqa: ARG002
        return write_packed(load_causal(model.folder), precision=precision, folder=folder)

    def fake_int8(self, model: Any) -> AbstractContextManager[None]:
        return fake_packed_int8(model)

    def serve(self, deployed: Path, tokens: ResponseTokens, *, context: Context) -> RowScores:
        torch.set_num_threads(context.threads)
        return row_scores(open_packed(deployed), tokens, metric=context.metric, ranks=solo())

    def prepare_probe(self, shape: Shape, context: Context) -> None:
        """Nothing is kept: a shape is cut from the base when it is measured."""

    def probe(
        self, shape: Shape, precision: Precision, context: Context, *, reference: Shape, sequence_length: int
    ) -> CostRow:
        request = _served_request(shape, context, sequence_length=sequence_length)
        plain = _served_request(reference, context, sequence_length=sequence_length)
        return generation_cost.probe(shape, precision, context, reference=reference, request=request, plain=plain)

    def time_batches(
        self,
        deployed: Sequence[Path],
        shapes: Sequence[Shape],
        *,
        batch_sizes: Sequence[int],
        sequence_length: int,
        context: Context,
    ) -> Iterator[np.ndarray]:
        requests = [_served_request(shape, context, sequence_length=sequence_length) for shape in shapes]
        return generation_cost.time_batches(deployed, requests, batch_sizes=batch_sizes)


def _served_request(shape: Shape, context: Context, *, sequence_length: int) -> generation_cost.Request:
    """A typical request to a model of ``shape``, whose prompt alone has ``sequence_length`` tokens: with the
    demonstrations before it and the rationale that is written, where there are.
    """
    output_tokens = context.output_tokens
    if shape.reasons:
        output_tokens = _train_tokens(shape.base, context).usual_reasoned_tokens
    if shape.num_shots:
        train = _train_tokens(shape.base, context)
        room = train.max_prompt_tokens - sequence_length
        sequence_length += Demonstrations(train).usual_tokens(shape.num_shots, room=room)
    return generation_cost.Request(sequence_length, max(1, output_tokens))


def _train_tokens(reader: str, context: Context) -> ResponseTokens:
    tokens = split_tokens(context, base=reader, split="train")
    assert isinstance(tokens, ResponseTokens)
    return tokens
