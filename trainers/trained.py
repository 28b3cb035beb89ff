"""The parts of a plan that other parts of it need: found in the store, or an error that says which is missing."""

from typing import Any

from spaces.plan import Plan
from trainers.artifacts import Artifact
from trainers.compute import pick_device
from trainers.context import Context
from trainers.kinds import kind_of
from trainers.model_files import ModelError


def trained_part(plan: Plan, context: Context, *, what: str = "teacher") -> Artifact:
    """What ``plan``, which serves another one as ``what``, has left.

    Raises:
        ModelError: it has not been trained.
    """
    artifact = context.store.find(plan.fingerprint)
    if artifact is None:
        raise ModelError(f"{what} {plan.fingerprint[:12]}…: not in {context.artifacts}; train it first")
    return artifact


def trained_teacher(plan: Plan, context: Context) -> Any:
    """The model that ``plan`` ends in, on the device, in evaluation mode. Raises as ``trained_part`` does."""
    return kind_of(context).load(trained_part(plan, context).folder, context).to(pick_device())


def shared(name: str, context: Context, *, what: str) -> Artifact:
    """The artifact called ``name``, which holds ``what`` and which worker 0 has published.

    Raises:
        ModelError: this worker does not see it.
    """
    artifact = context.store.find(name)
    if artifact is None:
        raise ModelError(f"{name[:12]}…: {what} are not in {context.artifacts}; workers must share it")
    return artifact
