"""What a model has lost of what its base could do, on general rows that have nothing to do with the task."""

from typing import Any

from spaces.canonical import fingerprint
from spaces.plan import Plan
from trainers.compute import pick_device
from trainers.context import Context
from trainers.kinds import kind_of, split_tokens

_VERSION = 1


def forgetting(trained: Any, plan: Plan, context: Context) -> float | None:
    """By how much the kind's ``retained_loss`` of ``trained``, the model that ``plan`` ends in, is above that of its
    base; positive: something is lost.

    The base is asked once a run, whole, whatever is left of its layers and vocabulary in ``trained``. None where the
    task has no `retain` rows.
    """
    if "retain" not in context.tokens.get(plan.base, {}):
        return None
    return _retained_loss(trained, plan.reader, context) - _reference(plan.base, context)


def _retained_loss(model: Any, reader: str, context: Context) -> float:
    tokens = split_tokens(context, base=reader, split="retain")
    return kind_of(context).retained_loss(model, tokens, context=context)


def _reference(base: str, context: Context) -> float:
    identity = {"kind": "retained", "base": base, "tokens": context.tokens[base]["retain"], "version": _VERSION}
    name = fingerprint(identity)
    if not context.store.has(name):
        model = kind_of(context).load(context.base_folder(base), context).to(pick_device())
        with context.store.publish(name, {"kind": "retained", "loss": _retained_loss(model, base, context)}):
            pass
    about = context.store.about(name)
    assert about is not None, "published a moment ago, or by another worker"
    return float(about["loss"])
