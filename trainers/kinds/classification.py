"""Texts in, one label each: an encoder with a head, served by ONNX Runtime."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from spaces.canonical import fingerprint
from spaces.methods.vocabulary import KeepVocabulary
from spaces.needs import Lacking
from spaces.plan import Plan
from spaces.shape import Shape
from spaces.targets import Precision
from spaces.task import Task
from trainers import graph_cost, metrics
from trainers.alignment import unlike_tokens
from trainers.artifacts import Artifact
from trainers.compute import features, logits
from trainers.context import Context, Heartbeat
from trainers.cost import CostRow
from trainers.datasets import Rows, TaskRows, load_task
from trainers.deploy import deploy, ensure_export
from trainers.fake_int8 import fake_int8
from trainers.families import ENCODERS, FAMILIES
from trainers.kinds import split_tokens
from trainers.kinds.kind import PseudoLabels, Request
from trainers.metrics import Quality
from trainers.models import ModelInfo, inspect_model, load_classifier
from trainers.probe import probe_accuracy
from trainers.ranks import Ranks, solo
from trainers.serving import predict
from trainers.tokens import LabelledTokens, open_tokens, tokenise
from trainers.trained import trained_teacher
from trainers.vocabulary import keep_vocabulary


class Classification:
    """Answers are indices into the context's labels."""

    def load_rows(self, task: Task, *, seed: int, folder: Path) -> TaskRows:
        return load_task(task, seed=seed, folder=folder)

    def data_fingerprint(self, rows: TaskRows, task: Task) -> str:
        return fingerprint([rows.fingerprint, task.max_tokens])

    def inspect(self, reference: str) -> ModelInfo:
        return inspect_model(reference)

    def check(
        self,
        task: Task,
        *,
        base: ModelInfo,
        teacher: ModelInfo | None,
        students: Sequence[ModelInfo],
        precisions: Sequence[Precision],
    ) -> None:
        """Any two encoders go together: each reads the texts in its own way."""

    def num_draws(self, _base: ModelInfo) -> None:
        """All of it is a few numbers."""

    def lacking(
        self, context: Context, *, base: ModelInfo, teacher: ModelInfo | None, students: Sequence[ModelInfo]
    ) -> Lacking:
        found = _no_prefix(base) if FAMILIES[base.model_type].attention is None else {}
        teaches = teacher or base
        for student in (base, *students):
            where = unlike_tokens(context, base=student.fingerprint, teacher=teaches.fingerprint)
            if where is not None:
                listed = f"leave {student.reference} out of model.students"
                reason = f"{teaches.reference} does not read the tokens of {student.reference}: {where}"
                way_out = "leave model.teacher out" if student is base else listed
                return {**found, "same_tokens": f"{reason}; name a teacher with the same tokenizer, or {way_out}"}
        return found

    def keep_vocabulary(self, rows: TaskRows, base: ModelInfo, context: Context) -> KeepVocabulary:
        learnt = [rows.train, *([rows.unlabeled] if rows.unlabeled else [])]
        return keep_vocabulary(learnt, base, context.store)

    def load(self, folder: Path, context: Context, *, dropout: float = 0.0, seed: int = 0) -> Any:
        return load_classifier(folder, labels=context.labels, dropout=dropout, seed=seed)

    def tokenise(self, rows: Rows, model: ModelInfo, context: Context, *, max_tokens: int) -> Artifact:
        return tokenise(rows, model, context.store, max_tokens=max_tokens)

    def open_tokens(self, artifact: Artifact) -> LabelledTokens:
        return open_tokens(artifact)

    def as_asked(self, tokens: LabelledTokens, _plan: Plan, _context: Context) -> LabelledTokens:
        return tokens

    def opening(self, _plan: Plan, _context: Context) -> str:
        return ""

    def typical_request(self, tokens: LabelledTokens) -> Request:
        return Request(int(np.median(tokens.lengths)))

    def ask(self, model: Any, tokens: LabelledTokens, *, context: Context, ranks: Ranks) -> np.ndarray:
        return logits(model, tokens, context=context, ranks=ranks).argmax(dim=-1).numpy()

    def pseudo_labels(self, teacher: Plan, context: Context, *, ranks: Ranks, heartbeat: Heartbeat) -> PseudoLabels:  # noqa: ARG002
        """The likeliest label of each row, and the probability that the teacher gives it."""
        started = time.perf_counter()
        tokens = split_tokens(context, base=teacher.reader, split="unlabeled")
        found = logits(trained_teacher(teacher, context), tokens, context=context, ranks=ranks)
        confidences, labels = found.softmax(dim=-1).max(dim=-1)
        return PseudoLabels(labels.tolist(), confidences.double().numpy(), time.perf_counter() - started)

    def quality(self, answers: np.ndarray, tokens: LabelledTokens, *, context: Context) -> Quality:
        return metrics.quality(context.metric, tokens.labels, answers)

    def retained_loss(self, model: Any, tokens: LabelledTokens, *, context: Context) -> float:
        """Share of wrong labels of a probe on the model's mean-pooled features."""
        return 1.0 - probe_accuracy(features(model, tokens, context=context, ranks=solo()).numpy(), tokens.labels)

    def predictions(self, answers: np.ndarray) -> tuple[int, ...]:
        return tuple(answers.tolist())

    def deploy(self, model: Artifact, *, plan: Plan, precision: Precision, context: Context, folder: Path) -> Path:
        return deploy(model, plan=plan, precision=precision, context=context, folder=folder)

    def fake_int8(self, model: Any) -> AbstractContextManager[None]:
        return fake_int8(model)

    def serve(self, deployed: Path, tokens: LabelledTokens, *, context: Context) -> np.ndarray:
        return predict(deployed, tokens, threads=context.threads)

    def prepare_probe(self, shape: Shape, context: Context) -> None:
        ensure_export(shape, context)

    def probe(
        self, shape: Shape, precision: Precision, context: Context, *, reference: Shape, sequence_length: int
    ) -> CostRow:
        return graph_cost.probe(shape, precision, context, reference=reference, sequence_length=sequence_length)

    def time_batches(
        self,
        deployed: Sequence[Path],
        _shapes: Sequence[Shape],
        *,
        batch_sizes: Sequence[int],
        sequence_length: int,
        context: Context,  # noqa: ARG002
    ) -> Iterator[np.ndarray]:
        return graph_cost.time_batches(deployed, batch_sizes=batch_sizes, sequence_length=sequence_length)


def _no_prefix(base: ModelInfo) -> Lacking:
    able = ", ".join(sorted(name for name, family in ENCODERS.items() if family.attention))
    reason = f"that of {base.reference}, of type {base.model_type}, does not"
    return {"prefix": f"{reason}; leave the strategy out, or name a base of type {able}"}
