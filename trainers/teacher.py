"""What a teacher answers to the training rows: computed once, kept as an Arrow file, memory-mapped by every student."""

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from spaces.canonical import fingerprint
from spaces.plan import Plan
from trainers.artifacts import Artifact
from trainers.compute import logits, pick_device
from trainers.context import Context
from trainers.kinds import kind_of, split_tokens
from trainers.model_files import ModelError
from trainers.ranks import Ranks, solo

FILE = "teacher.arrow"
_VERSION = 1


@dataclass(frozen=True)
class TeacherOutputs:
    """A teacher's log-probabilities at temperature 1, rows × labels, float32, and the seconds they took."""

    log_probs: np.ndarray
    seconds: float


def outputs_fingerprint(teacher: Plan, context: Context) -> str:
    """The name of the outputs of ``teacher`` on the training rows."""
    tokens = context.tokens.get(teacher.base, {}).get("train")
    identity = {"kind": "teacher_outputs", "teacher": teacher.fingerprint, "tokens": tokens, "version": _VERSION}
    return fingerprint(identity)


def teacher_outputs(teacher: Plan, context: Context, *, ranks: Ranks | None = None) -> TeacherOutputs:
    """The outputs of the trained plan ``teacher`` on the training split, in its order.

    Raises:
        ModelError: the teacher has not been trained, or its rows are gone.
    """
    ranks = ranks or solo()
    name = outputs_fingerprint(teacher, context)
    if not ranks.on_first(lambda: context.store.has(name)):
        started = time.perf_counter()
        answers = _log_probs(teacher, context, ranks)
        ranks.on_first(lambda: _publish(name, answers, context, seconds=time.perf_counter() - started))
    found = context.store.find(name)
    if found is None:
        raise ModelError(f"{name[:12]}…: the teacher's outputs are not in {context.artifacts}; workers must share it")
    return TeacherOutputs(_open(found), found.about["seconds"])


def _log_probs(teacher: Plan, context: Context, ranks: Ranks) -> Tensor:
    trained = context.store.find(teacher.fingerprint)
    if trained is None:
        raise ModelError(f"teacher {teacher.fingerprint[:12]}…: not in {context.artifacts}; train it first")
    model = kind_of(context).load(trained.folder, context).to(pick_device())
    tokens = split_tokens(context, base=teacher.base, split="train")
    return torch.log_softmax(logits(model, tokens, context=context, ranks=ranks), dim=-1)


def _publish(name: str, log_probs: Tensor, context: Context, *, seconds: float) -> None:
    about = {"kind": "teacher_outputs", "rows": len(log_probs), "seconds": seconds}
    values = pa.array(log_probs.flatten().numpy())
    column = pa.FixedSizeListArray.from_arrays(values, log_probs.shape[1])
    batch = pa.record_batch({"log_probs": column})
    with (
        context.store.publish(name, about) as folder,
        pa.OSFile(str(folder / FILE), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def _open(artifact: Artifact) -> np.ndarray:
    with pa.memory_map(str(artifact.folder / FILE)) as source:
        column = pa.ipc.open_file(source).get_batch(0).column("log_probs")
    # Not `flatten()`, which would copy.
    return column.values.to_numpy(zero_copy_only=True).reshape(len(column), -1)
