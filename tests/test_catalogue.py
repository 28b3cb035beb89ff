"""Every strategy of the catalogue, for every kind of task that it says it fits: trained, deployed and measured."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from generation_task import generation_context
from training_task import LABELS, task_rows, tiny_context

from spaces.catalogue import CATALOGUE, PARAMETERS
from spaces.draw import opening
from spaces.plan import Plan
from spaces.ranges import Range
from spaces.space import Space
from spaces.stages import Optimisation
from trainers.carry_out import carry_out
from trainers.context import Context
from trainers.datasets import Rows
from trainers.models import inspect_model
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.tokens import tokenise

_PAIRS = [(name, kind) for name, strategy in CATALOGUE.items() for kind in strategy.kinds]
_EPOCHS = [name for name, span in PARAMETERS.items() if isinstance(span, Range) and name.endswith("epochs")]


def _silent(_: Progress) -> None:
    pass


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Context]:
    """One for each kind, so that strategies share teachers and exports as they do in a search."""
    return {kind: _context(kind, tmp_path_factory.mktemp(kind)) for kind in ("classification", "generation")}


def _context(kind: str, folder: Path) -> Context:
    if kind == "generation":
        return generation_context(folder, rows=20, max_tokens=40, rationales=True, unlabeled=12)
    context = tiny_context(folder, rows=30)
    rows = Rows(texts=task_rows(12, seed=5).texts, labels=np.full(12, -1))
    more = tokenise(rows, inspect_model(context.models["base"]), context.store, max_tokens=16)
    return replace(context, tokens={"base": {**context.tokens["base"], "unlabeled": more.fingerprint}})


def _plan(name: str, kind: str) -> Plan:
    """The strategy's first proposal, at one epoch a stage."""
    space = Space(
        base="base",
        base_layers=2,
        data="rows",
        seed=0,
        strategies=(name,),
        student_layers=(1,),
        narrowed={epochs: replace(PARAMETERS[epochs], low=1, high=1, default=1) for epochs in _EPOCHS}
        | {"confidence": replace(PARAMETERS["confidence"], low=0.0, default=0.0)},
        # So long that what a teacher writes comes to an end.
        teacher_recipes={"standard": Optimisation(learning_rate=1e-2, epochs=5, batch_size=8)},
        unlabeled="more",
        batch_size=8,
        lacking={} if kind == "generation" else {"writes": "it is for classification"},
    )
    return next(opening(space)).plan


@pytest.mark.parametrize(("name", "kind"), _PAIRS, ids=map("-".join, _PAIRS))
def test_a_strategy_is_trained_deployed_and_measured(name: str, kind: str, contexts: dict[str, Context]) -> None:
    precisions = ("fp32", "int8")
    plan = _plan(name, kind)
    result = carry_out(plan, precisions, contexts[kind], ranks=solo(), report=_silent)
    assert result is not None
    assert [variant.precision for variant in result.variants] == list(precisions)
    assert all(variant.low <= variant.value <= variant.high for variant in result.variants)
    assert all(len(variant.predictions) == (20 if kind == "classification" else 0) for variant in result.variants)
    assert {label for variant in result.variants for label in variant.predictions} <= set(range(len(LABELS)))
    assert result.train_seconds > 0 and result.train_memory_mb > 0
    assert plan.stages[-1].say()
