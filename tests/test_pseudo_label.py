"""Pseudo-labels: only rows that the teacher is sure of are learnt from, and their share is recorded."""

from typing import Any

import numpy as np
import pytest
from training_task import LABELS, finetuning, fitting, plan_of, task_rows, tiny_context

from spaces.methods.cut import SelectLayers
from spaces.methods.pseudo_label import PseudoLabel
from spaces.plan import Plan
from spaces.stages import Chain
from trainers import pseudo_label as method
from trainers.carry_out import carry_out
from trainers.compute import logits
from trainers.context import Context
from trainers.datasets import Rows
from trainers.kinds import split_tokens
from trainers.loop import TrainingError
from trainers.models import inspect_model, load_classifier
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.run_stage import run_plan
from trainers.tokens import tokenise

_TEACHER = plan_of(finetuning())


def _plan(confidence: float) -> Plan:
    teacher = Chain(base="base", stages=_TEACHER.stages)
    stage = PseudoLabel(optimisation=fitting(epochs=1), teacher=teacher, unlabeled="more", confidence=confidence)
    return plan_of(SelectLayers(layers=(0,)), stage)


def _silent(_: Progress) -> None:
    pass


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    found = tiny_context(tmp_path_factory.mktemp("pseudo"))
    rows = Rows(texts=task_rows(30, seed=5).texts, labels=np.full(30, -1))
    more = tokenise(rows, inspect_model(found.models["base"]), found.store, max_tokens=16)
    found.tokens["base"]["unlabeled"] = more.fingerprint  # type: ignore[index]
    run_plan(_TEACHER, found, ranks=solo(), report=_silent)
    return found


def _sure(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's labels and confidences, asked of the trained model directly."""
    trained = context.store.find(_TEACHER.fingerprint)
    assert trained is not None
    model = load_classifier(trained.folder, labels=LABELS)
    found = logits(model, split_tokens(context, base="base", split="unlabeled"), context=context, ranks=solo())
    shares = np.exp(found.numpy()) / np.exp(found.numpy()).sum(-1, keepdims=True)
    return shares.argmax(-1), shares.max(-1)


def test_it_trains_on_gold_rows_and_on_those_the_teacher_is_sure_of(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, confidences = _sure(context)
    threshold = float(np.median(confidences))
    kept = np.flatnonzero(confidences >= threshold)
    seen: list[Any] = []
    fit = method.fit
    monkeypatch.setattr(method, "fit", lambda *args, tokens: seen.append(tokens) or fit(*args, tokens=tokens))
    artifact = run_plan(_plan(threshold), context, ranks=solo(), report=_silent)
    gold, more = (split_tokens(context, base="base", split=split) for split in ("train", "unlabeled"))
    (rows,) = seen
    assert len(rows) == len(gold) + len(kept)
    assert rows.labels.tolist() == [*gold.labels.tolist(), *labels[kept].tolist()]
    assert rows.ids(len(gold)).tolist() == more.ids(int(kept[0])).tolist()
    assert artifact.about["notes"] == {"pseudo_labels_kept": len(kept) / 30, "pseudo_labels": len(kept)}


def test_the_share_that_was_kept_comes_back_with_the_result(context: Context) -> None:
    result = carry_out(_plan(0.0), ("fp32",), context, ranks=solo(), report=_silent)
    assert result is not None
    assert result.notes == {"pseudo_labels_kept": 1.0, "pseudo_labels": 30.0}


def test_a_teacher_that_is_sure_of_nothing_fails_the_plan_and_says_how_sure_it_was(context: Context) -> None:
    with pytest.raises(TrainingError, match=r"sure of none of the 30 unlabeled rows: its highest .* lower"):
        run_plan(_plan(1.0), context, ranks=solo(), report=_silent)


def test_other_unlabeled_rows_are_another_plan() -> None:
    other = _plan(0.5).stages[-1].model_copy(update={"unlabeled": "others"})
    assert plan_of(*_plan(0.5).stages[:-1], other).fingerprint != _plan(0.5).fingerprint
