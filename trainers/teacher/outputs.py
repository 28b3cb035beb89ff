"""What a teacher answers to the training rows: computed once, kept in a form, memory-mapped by every student."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor

from spaces.canonical import fingerprint
from spaces.plan import Plan
from trainers.batches import Batch
from trainers.compute import each_logits, logits, num_classes
from trainers.context import Context
from trainers.kinds import split_tokens
from trainers.losses import Targets
from trainers.model_files import ModelError
from trainers.ranks import Ranks, solo
from trainers.teacher.forms import Form, Full, form_note
from trainers.teacher.store import Block, Outputs, open_outputs, write_outputs
from trainers.tokens import Tokens
from trainers.trained import shared, trained_teacher

_VERSION = 1


@dataclass(frozen=True)
class TeacherOutputs:
    """What a teacher answered to the training rows, and the seconds that it took."""

    kept: Outputs
    seconds: float

    @property
    def log_probs(self) -> np.ndarray:
        """Of outputs kept in full: log-probabilities at temperature 1, positions × classes, float32."""
        # All positions were written as one block.
        (block,) = self.kept.blocks
        return block[0]

    def at(self, batch: Batch) -> Targets:
        """What a loss takes for the positions of ``batch``, on its device."""
        if isinstance(self.kept.form, Full):
            return torch.from_numpy(self.log_probs[batch.positions_P]).to(batch.labels_P.device)
        return self.kept.read(batch.rows).to(batch.labels_P.device)


def outputs_fingerprint(teacher: Plan, context: Context, *, form: Form | None = None) -> str:
    """The name of the outputs of ``teacher`` on the training rows, kept in ``form``, or in full."""
    tokens = context.tokens.get(teacher.reader, {}).get("train")
    identity = {"kind": "teacher_outputs", "teacher": teacher.fingerprint, "tokens": tokens, "version": _VERSION}
    return fingerprint(identity | form_note(form or Full()))


def teacher_outputs(
    teacher: Plan, context: Context, *, form: Form | None = None, ranks: Ranks | None = None
) -> TeacherOutputs:
    """The outputs of the trained plan ``teacher`` on the training split, kept in ``form``, or in full.

    Raises:
        ModelError: the teacher has not been trained, its rows are gone, or its outputs do not fit in memory.
    """
    name = outputs_fingerprint(teacher, context, form=form)
    tokens = split_tokens(context, base=teacher.reader, split="train")
    return outputs_on(tokens, teacher, context, name=name, form=form or Full(), ranks=ranks or solo())


def outputs_on(
    tokens: Tokens, teacher: Plan, context: Context, *, name: str, form: Form, ranks: Ranks
) -> TeacherOutputs:
    """The outputs of the trained plan ``teacher`` on ``tokens``, kept under ``name``. Raises as ``teacher_outputs``."""
    if isinstance(form, Full):
        return kept_outputs(name, context, lambda: _answers(teacher, tokens, context, ranks), ranks=ranks)

    def in_parts() -> list[Block]:
        return _parts(teacher, tokens, context, form, ranks)

    return _found_or_written(name, context, in_parts, form=form, ranks=ranks)


def kept_outputs(name: str, context: Context, answer: Callable[[], Tensor], *, ranks: Ranks) -> TeacherOutputs:
    """The outputs called ``name``, in full; what all workers' ``answer`` gives (positions × classes), where there are
    none yet.

    Raises:
        ModelError: worker 0 published them, and this one does not see them.
    """

    def whole() -> list[Block]:
        given = answer()
        return [Block.of(Full(), range(len(given)), given)] if ranks.first else []

    return _found_or_written(name, context, whole, form=Full(), ranks=ranks)


def _found_or_written(
    name: str, context: Context, make: Callable[[], list[Block]], *, form: Form, ranks: Ranks
) -> TeacherOutputs:
    """The outputs called ``name``; where there are none yet, all workers ``make`` them, and worker 0 writes its own."""
    if not ranks.on_first(lambda: context.store.has(name)):
        started = time.perf_counter()
        blocks = make()
        ranks.on_first(lambda: _publish(name, blocks, form, context, seconds=time.perf_counter() - started))
    found = shared(name, context, what="the teacher's outputs")
    kept = open_outputs(found.folder, temperature=form.fixed_temperature or 1.0)
    return TeacherOutputs(kept, found.about["seconds"])


def _answers(teacher: Plan, tokens: Tokens, context: Context, ranks: Ranks) -> Tensor:
    model = trained_teacher(teacher, context)
    ranks.on_first(lambda: _check_room(tokens.num_positions(), num_classes(model)))
    return logits(model, tokens, context=context, ranks=ranks)


def _parts(teacher: Plan, tokens: Tokens, context: Context, form: Form, ranks: Ranks) -> list[Block]:
    """All workers' blocks, of their batches: a batch is put into ``form`` before the next one is asked."""
    own: list[Block] = []

    def take(batch: Batch, logits_PC: Tensor) -> None:
        lengths = np.array([tokens.num_positions(batch.rows[index : index + 1]) for index in range(len(batch.rows))])
        own.append(Block.of(form, batch.rows, logits_PC.float(), lengths=lengths))

    each_logits(trained_teacher(teacher, context), tokens, take, context=context, ranks=ranks)
    return [block for blocks in ranks.gather(own) for block in blocks]


def _check_room(num_positions: int, num_classes: int) -> None:
    """Raises ``ModelError`` where the whole of a teacher's outputs would not fit in half of the free memory."""
    needed, free = 4 * num_positions * num_classes, psutil.virtual_memory().available
    if needed > free / 2:
        raise ModelError(
            f"a teacher's outputs at {num_positions:,} positions × {num_classes:,} classes take "
            f"{needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free; expected at most half of that: lower "
            "task.limit or task.max_new_tokens, take a base with a smaller vocabulary, or do not distil"
        )


def _publish(name: str, blocks: Sequence[Block], form: Form, context: Context, *, seconds: float) -> None:
    about = {"kind": "teacher_outputs", "rows": sum(len(block.rows) for block in blocks), "seconds": seconds}
    with context.store.publish(name, about) as folder, write_outputs(folder, form) as outputs:
        for block in blocks:
            outputs.write(block)
