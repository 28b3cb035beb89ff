"""Carrying out a plan: whatever of its chain is not there yet is trained and published, teachers first."""

import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from spaces.plan import Plan
from spaces.stages import Stage, Training
from trainers.artifacts import Artifact, ArtifactStore
from trainers.checkpoints import Checkpoint
from trainers.context import Context, Heartbeat, Report, Stopped, Suspended, unhurried
from trainers.experts.tensors import NamedTensors
from trainers.kinds import kind_of
from trainers.loop import Fitted, Job, TrainingError
from trainers.memory import peak_bytes, restart_peak
from trainers.models import ModelError, save_model
from trainers.ranks import Ranks


def run_plan(
    plan: Plan, context: Context, *, ranks: Ranks, report: Report, heartbeat: Heartbeat = unhurried
) -> Artifact:
    """The trained model that ``plan`` ends in. Trains and publishes every part of its chain that is missing.

    With several workers all of them call it, on one shared store; worker 0 alone reports and publishes.

    Raises:
        TrainingError: a stage diverged.
        ModelError: a model or tokenised rows are missing.
        Stopped: ``report`` or ``heartbeat`` raised it; parts that are finished stay.
    """
    torch.set_num_threads(context.threads)
    missing = ranks.on_first(lambda: missing_prefixes(plan, context.store))
    for index, prefix in enumerate(missing):
        job = Job(
            plan=prefix,
            context=context,
            ranks=ranks,
            report=report,
            heartbeat=heartbeat,
            index=index,
            num_stages=len(missing),
            final=prefix.fingerprint == plan.fingerprint,
        )
        _carry_out(job)
    return _find(plan, context)


def missing_prefixes(plan: Plan, store: ArtifactStore) -> list[Plan]:
    """What has to be trained before ``plan``'s model is there, and it itself, each after what it needs.

    Raises:
        ValueError: the plan does not end in a stage that trains.
    """
    if not plan.stages or not isinstance(plan.stages[-1], Training):
        raise ValueError(f"a plan must end in a stage that trains, but got {[stage.kind for stage in plan.stages]}")
    found: dict[str, Plan] = {}
    _collect(plan, store, found)
    return list(found.values())


def plan_notes(plan: Plan, store: ArtifactStore) -> dict[str, float]:
    """What the stages of ``plan`` had to say of themselves, teachers' included; a later stage's word is the last."""
    about = [store.about(prefix.fingerprint) or {} for prefix in plan.trained_prefixes()]
    return {name: value for one in about for name, value in one.get("notes", {}).items()}


def plan_seconds(plan: Plan, store: ArtifactStore) -> float:
    """Training seconds of everything in ``plan``'s chain, teachers included, each once: as if it were alone.

    Raises:
        TrainingError: a part of it is not in ``store``.
    """
    return sum(float(about["seconds"]) for about in _trained_parts(plan, store))


def plan_memory_mb(plan: Plan, store: ArtifactStore) -> float:
    """The largest peak of memory, 10⁶ bytes, among the stages that ``plan_seconds`` adds up.

    Raises:
        TrainingError: a part of it is not in ``store``.
    """
    return max(float(about["peak_memory_mb"]) for about in _trained_parts(plan, store))


def _trained_parts(plan: Plan, store: ArtifactStore) -> list[Mapping[str, Any]]:
    """What was written down of each trained part of ``plan``'s chain, teachers included, each once."""
    found: dict[str, Mapping[str, Any]] = {}
    for prefix in plan.trained_prefixes():
        if prefix.fingerprint not in found:
            about = store.about(prefix.fingerprint)
            if about is None:
                raise TrainingError(
                    f"{prefix.fingerprint[:12]}…, a part of the plan, is not in the store; run the plan"
                )
            found[prefix.fingerprint] = about
    return list(found.values())


def _collect(plan: Plan, store: ArtifactStore, found: dict[str, Plan]) -> None:
    if plan.fingerprint in found or store.has(plan.fingerprint):
        return
    if (start := _trained_start(plan)) is not None:
        _collect(start, store, found)
    for teacher in plan.stages[-1].teachers:
        _collect(plan.on_same_data(teacher), store, found)
    found[plan.fingerprint] = plan


def _trained_start(plan: Plan) -> Plan | None:
    """The part of ``plan`` before its last stage that ends in training; None where that begins at the base."""
    for length in range(len(plan.stages) - 1, 0, -1):
        if isinstance(plan.stages[length - 1], Training):
            return plan.prefix(length)
    return None


def _carry_out(job: Job) -> None:
    _restart_peak_memory()
    try:
        model, fitted = _function(job.stage)(_start_model(job), job)
    except Suspended:
        raise
    except (Stopped, TrainingError):
        # It would end there again; what another error left can still be gone on from.
        if job.ranks.first:
            Checkpoint(job.context, job.plan.fingerprint).remove()
        raise
    job.ranks.on_first(lambda: _publish(model, fitted, job))


def _start_model(job: Job) -> Any:
    """The model that the job's stage begins with: what was trained before it, cut as the plan says."""
    plan, context = job.plan, job.context
    start = _trained_start(plan)
    folder = _find(start, context).folder if start else context.base_folder(plan.start)
    dropout = job.optimisation.dropout
    model = kind_of(context).load(folder, context, dropout=dropout, seed=plan.seed)
    for stage in plan.stages[len(start.stages) if start else 0 : -1]:
        model = _function(stage)(model, stage, context=context)
    return model


def _function(stage: Stage) -> Callable[..., Any]:
    """What carries out the stage. A method's module is imported where it is used: some bring heavy libraries."""
    module, _, name = stage.carried_out_by.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _publish(model: Any, fitted: Fitted, job: Job) -> None:
    about = {
        "kind": "model",
        "plan": json.loads(job.plan.to_json()),
        "seconds": fitted.seconds,
        "history": list(fitted.history),
        "peak_memory_mb": _peak_memory_mb(),
        "notes": dict(fitted.notes),
    }
    with job.context.store.publish(job.plan.fingerprint, about) as folder:
        if isinstance(model, NamedTensors):
            model.save(folder)
        else:
            save_model(model, folder)
    Checkpoint(job.context, job.plan.fingerprint).remove()


def _find(plan: Plan, context: Context) -> Artifact:
    artifact = context.store.find(plan.fingerprint)
    if artifact is None:
        raise ModelError(f"{plan.fingerprint[:12]}…: not in {context.artifacts}; workers must share the artifact store")
    return artifact


def _restart_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        restart_peak()


def _peak_memory_mb() -> float:
    """Peak memory of the stage on worker 0, 10⁶ bytes: the GPU's, or all that the process holds, libraries included."""
    return (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes()) / 1e6
