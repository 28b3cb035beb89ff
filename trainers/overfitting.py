"""How much better a model does on the rows it was trained on than on others."""

from typing import Any

import numpy as np

from spaces.objectives import OBJECTIVES
from spaces.plan import Plan
from trainers.context import Context
from trainers.kinds import asked_tokens, kind_of
from trainers.ranks import solo


def overfit(trained: Any, plan: Plan, context: Context) -> float:
    """The metric of ``trained``, the model that ``plan`` ends in, on train minus that on validation.

    Positive: better on train (where the metric is minimised, validation minus train). It is asked as it was trained,
    before any deployment. Of train, as many rows as validation has, by the plan's seed: all plans of a search are asked
    the same ones.
    """
    train, validation = (asked_tokens(plan, context, split=split) for split in ("train", "validation"))
    rows = np.random.default_rng(plan.seed).permutation(len(train))[: len(validation)]
    return _gain(trained, train.take(np.sort(rows)), context) - _gain(trained, validation, context)


def _gain(trained: Any, tokens: Any, context: Context) -> float:
    kind = kind_of(context)
    quality = kind.quality(kind.ask(trained, tokens, context=context, ranks=solo()), tokens, context=context)
    return OBJECTIVES[context.metric].gain(quality.value)
