"""What a teacher answers to the training rows: computed once, kept in full, memory-mapped by every student."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil
from torch import Tensor

from spaces.canonical import fingerprint
from spaces.plan import Plan
from trainers.compute import logits, num_classes
from trainers.context import Context
from trainers.kinds import split_tokens
from trainers.model_files import ModelError
from trainers.ranks import Ranks, solo
from trainers.teacher.forms import Form, Full, form_note
from trainers.teacher.store import open_outputs, write_outputs
from trainers.tokens import Tokens
from trainers.trained import shared, trained_teacher

_VERSION = 1


@dataclass(frozen=True)
class TeacherOutputs:
    """A teacher's log-probabilities at temperature 1, rows × labels, float32, and the seconds they took."""

    log_probs: np.ndarray
    seconds: float


def outputs_fingerprint(teacher: Plan, context: Context, *, form: Form | None = None) -> str:
    """The name of the outputs of ``teacher`` on the training rows, kept in ``form``, or in full."""
    tokens = context.tokens.get(teacher.reader, {}).get("train")
    identity = {"kind": "teacher_outputs", "teacher": teacher.fingerprint, "tokens": tokens, "version": _VERSION}
    return fingerprint(identity | form_note(form or Full()))


def teacher_outputs(teacher: Plan, context: Context, *, ranks: Ranks | None = None) -> TeacherOutputs:
    """The outputs of the trained plan ``teacher`` on the training split, in its order.

    Raises:
        ModelError: the teacher has not been trained, its rows are gone, or its outputs do not fit in memory.
    """
    ranks = ranks or solo()
    name = outputs_fingerprint(teacher, context)
    tokens = split_tokens(context, base=teacher.reader, split="train")
    return kept_outputs(name, context, lambda: answers(teacher, tokens, context, ranks), ranks=ranks)


def kept_outputs(name: str, context: Context, answer: Callable[[], Tensor], *, ranks: Ranks) -> TeacherOutputs:
    """The outputs called ``name``; what all workers' ``answer`` gives (positions × classes), where there are none yet.

    Raises:
        ModelError: worker 0 published them, and this one does not see them.
    """
    if not ranks.on_first(lambda: context.store.has(name)):
        started = time.perf_counter()
        given = answer()
        ranks.on_first(lambda: _publish(name, given, context, seconds=time.perf_counter() - started))
    found = shared(name, context, what="the teacher's outputs")
    # All rows were written as one block.
    (block,) = open_outputs(found.folder, temperature=1.0).blocks
    return TeacherOutputs(block[0], found.about["seconds"])


def answers(teacher: Plan, tokens: Tokens, context: Context, ranks: Ranks) -> Tensor:
    """The logits of the trained plan ``teacher`` at every position of ``tokens``, positions × classes.

    Raises:
        ModelError: it has not been trained, or they would not fit in memory.
    """
    model = trained_teacher(teacher, context)
    ranks.on_first(lambda: _check_room(tokens.num_positions(), num_classes(model)))
    return logits(model, tokens, context=context, ranks=ranks)


def _check_room(num_positions: int, num_classes: int) -> None:
    """Raises ``ModelError`` where the whole of a teacher's outputs would not fit in half of the free memory."""
    needed, free = 4 * num_positions * num_classes, psutil.virtual_memory().available
    if needed > free / 2:
        raise ModelError(
            f"a teacher's outputs at {num_positions:,} positions × {num_classes:,} classes take "
            f"{needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free; expected at most half of that: lower "
            "task.limit or task.max_new_tokens, take a base with a smaller vocabulary, or do not distil"
        )


def _publish(name: str, answers: Tensor, context: Context, *, seconds: float) -> None:
    about = {"kind": "teacher_outputs", "rows": len(answers), "seconds": seconds}
    with context.store.publish(name, about) as folder, write_outputs(folder, Full()) as outputs:
        outputs.add(range(len(answers)), answers)
