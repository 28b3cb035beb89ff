"""Measuring the best of each group side by side, as they are served."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from search.ablation import Ablation, AblationError, Batch, write_ablation
from search.export import trained_model
from search.records import Record
from search.run import Run
from search.run_folder import context_of
from spaces.plan import Plan
from trainers.context import Context
from trainers.kinds import kind_of

Say = Callable[[str], None]


def measure(run: Run, picked: Ablation, *, batch_sizes: Sequence[int], say: Say) -> Ablation:
    """Time the members of ``picked``, the result of ``best_of_groups``, at each batch size: all in turn, call by call,
    so that what slows the machine slows them alike. Kept in the run, in place of an earlier one by the same.

    Rows have the length at which the cost table was measured. All members' models are in memory together. ``say``
    hears what is done.

    Raises:
        AblationError: the run has no cost table.
        ExportError: a trained model is gone.
    """
    context, length = context_of(run.storage), _typical_length(run)
    timed: dict[int, np.ndarray] = {}
    with tempfile.TemporaryDirectory(prefix="distune-") as folder:
        say(f"deploying {len(picked.members)} variants")
        deployed = [
            _deploy(member.record, context, Path(folder) / str(number)) for number, member in enumerate(picked.members)
        ]
        times = kind_of(context).time_batches(
            deployed,
            [member.shape for member in picked.members],
            batch_sizes=batch_sizes,
            sequence_length=length,
            context=context,
        )
        for batch_size in batch_sizes:
            say(f"timing batches of {batch_size}")
            timed[batch_size] = next(times)
    members = tuple(
        replace(member, batches=tuple(_batch(batch_size, timed[batch_size][number]) for batch_size in batch_sizes))
        for number, member in enumerate(picked.members)
    )
    num_calls = min(times.shape[1] for times in timed.values())
    about = {"sequence_length": length, "output_tokens": context.output_tokens, "num_calls": num_calls}
    found = replace(picked, members=members, **about)
    write_ablation(run, found)
    return found


def _typical_length(run: Run) -> int:
    if run.cost_table is None or not run.cost_table.num_rows:
        raise AblationError(
            f"{run.storage.shown} has no cost_table.parquet, which holds the length of a typical row; "
            "`distune search` measures it before the first trial: run the search again"
        )
    # Shapes that are asked behind demonstrations have longer ones.
    return int(min(run.cost_table["sequence_length"].to_pylist()))


def _deploy(record: Record, context: Context, folder: Path) -> Path:
    precision: Any = record.precision
    plan, model = Plan.model_validate_json(record.plan), trained_model(record, context)
    return kind_of(context).deploy(model, plan=plan, precision=precision, context=context, folder=folder)


def _batch(batch_size: int, times: np.ndarray) -> Batch:
    p95 = float(np.quantile(times, 0.95))
    return Batch(batch_size=batch_size, latency_ms=float(np.median(times)), latency_p95_ms=p95)
