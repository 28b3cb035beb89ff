"""The quality of a trained plan, measured on what is deployed: every precision by itself."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spaces.plan import Plan
from spaces.targets import Precision
from trainers.context import Context
from trainers.kinds import asked_tokens, kind_of
from trainers.metrics import Quality
from trainers.model_files import ModelError


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A trained plan at one precision, and what it answered."""

    precision: Precision
    quality: Quality
    predictions: tuple[int, ...]
    """Label of each row of the split, in its order; empty where answers are text."""


def evaluate_plan(
    plan: Plan, precisions: Sequence[Precision], context: Context, *, split: str = "validation"
) -> list[Variant]:
    """Deploy the trained ``plan`` at each precision and measure it on a split.

    Raises:
        ModelError: the plan has not been trained.
    """
    model = context.store.find(plan.fingerprint)
    if model is None:
        raise ModelError(f"{plan.fingerprint[:12]}…: not in {context.artifacts}; train the plan before evaluating it")
    kind, tokens = kind_of(context), asked_tokens(plan, context, split=split)
    variants = []
    for precision in precisions:
        with tempfile.TemporaryDirectory(prefix="distune-") as folder:
            deployed = kind.deploy(model, plan=plan, precision=precision, context=context, folder=Path(folder))
            answers = kind.serve(deployed, tokens, context=context)
        measured = kind.quality(answers, tokens, context=context)
        variants.append(Variant(precision=precision, quality=measured, predictions=kind.predictions(answers)))
    return variants
