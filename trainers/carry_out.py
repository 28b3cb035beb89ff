"""One plan from its stages to its measured variants: what a worker does with an order."""

import socket
import time
from collections.abc import Sequence

from spaces.plan import Plan
from spaces.targets import Precision
from trainers.artifacts import Artifact
from trainers.compute import pick_device
from trainers.context import Context, Heartbeat, Report, unhurried
from trainers.evaluate import evaluate_plan
from trainers.forgetting import forgetting
from trainers.kinds import kind_of
from trainers.overfitting import overfit
from trainers.ranks import Ranks
from trainers.results import Measured, Result
from trainers.run_stage import missing_prefixes, plan_memory_mb, plan_notes, plan_seconds, run_plan


def carry_out(
    plan: Plan,
    precisions: Sequence[Precision],
    context: Context,
    *,
    ranks: Ranks,
    report: Report,
    heartbeat: Heartbeat = unhurried,
) -> Result | None:
    """Train what is missing of ``plan``, deploy it at each precision, measure it on the validation split.

    Worker 0 returns the result, the others None.

    Raises:
        Stopped: ``report`` or ``heartbeat`` raised it.
        TrainingError: a stage diverged.
    """
    began = time.perf_counter()
    missing = ranks.on_first(lambda: missing_prefixes(plan, context.store))
    model = run_plan(plan, context, ranks=ranks, report=report, heartbeat=heartbeat)
    return ranks.on_first(lambda: _measure(plan, precisions, context, model=model, trained=missing, began=began))


def measure(plan: Plan, precisions: Sequence[Precision], context: Context, *, split: str) -> tuple[Measured, ...]:
    """Quality of the trained ``plan``, deployed at each precision, on a split."""
    return tuple(
        Measured(
            precision=variant.precision,
            value=variant.quality.value,
            low=variant.quality.low,
            high=variant.quality.high,
            predictions=variant.predictions,
        )
        for variant in evaluate_plan(plan, precisions, context, split=split)
    )


def _measure(
    plan: Plan,
    precisions: Sequence[Precision],
    context: Context,
    *,
    model: Artifact,
    trained: Sequence[Plan],
    began: float,
) -> Result:
    variants = measure(plan, precisions, context, split="validation")
    asked = kind_of(context).load(model.folder, context).to(pick_device())
    spent = sum(_seconds(prefix, context) for prefix in trained)
    history = model.about["history"]
    measured = [entry for entry in history if entry["quality"] is not None]
    return Result(
        variants=variants,
        curve=tuple((entry["epoch"] / len(history), entry["quality"]) for entry in measured),
        curve_seconds=tuple(entry["seconds"] for entry in measured),
        train_seconds=plan_seconds(plan, context.store),
        spent_seconds=spent,
        train_memory_mb=plan_memory_mb(plan, context.store),
        notes=plan_notes(plan, context.store),
        overfit=overfit(asked, plan, context),
        forgetting=forgetting(asked, plan, context),
        overhead_seconds=max(0.0, time.perf_counter() - began - spent),
        host=socket.gethostname(),
    )


def _seconds(plan: Plan, context: Context) -> float:
    about = context.store.about(plan.fingerprint)
    return float(about["seconds"]) if about else 0.0
