"""Forgetting and overfitting: the probe against one by hand, models that have lost everything or nothing."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tiny_models import KINDS
from tiny_search import tiny_spec, write_rows
from training_task import LABELS, finetuning, plan_of, task_rows, tiny_context
from transformers import PreTrainedModel

from search.prepare import prepare
from search.spec import load_spec
from spaces.methods.cut import SelectLayers
from trainers.carry_out import carry_out
from trainers.compute import features
from trainers.context import Context
from trainers.datasets import Rows
from trainers.forgetting import forgetting
from trainers.kinds import kind_of, split_tokens
from trainers.metrics import quality
from trainers.models import inspect_model, load_classifier, select_layers
from trainers.overfitting import overfit
from trainers.probe import probe_accuracy
from trainers.ranks import solo
from trainers.run_stage import run_plan
from trainers.storage import Storage
from trainers.tokens import tokenise


def with_retain(context: Context, rows: Rows) -> Context:
    model = inspect_model(context.models["base"])
    tokens = tokenise(rows, model, context.store, max_tokens=16).fingerprint
    return dataclasses.replace(context, tokens={"base": {**context.tokens["base"], "retain": tokens}})


def general_rows(count: int) -> Rows:
    """Random words; the class is how the text begins."""
    rng = random.Random(0)
    labels = [rng.randrange(3) for _ in range(count)]
    texts = [" ".join([("red", "green", "blue")[label], *rng.choices(("the", "a", "big"), k=3)]) for label in labels]
    return Rows(tuple(f"{text} {number}" for number, text in enumerate(texts)), np.array(labels))


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return with_retain(tiny_context(tmp_path), general_rows(120))


def loss(model: PreTrainedModel, context: Context) -> float:
    tokens = split_tokens(context, base="base", split="retain")
    return kind_of(context).retained_loss(model, tokens, context=context)


def answers(model: PreTrainedModel, context: Context, split: str) -> np.ndarray:
    tokens = split_tokens(context, base="base", split=split)
    return kind_of(context).ask(model, tokens, context=context, ranks=solo())


def base_model(context: Context) -> PreTrainedModel:
    return load_classifier(context.base_folder("base"), labels=LABELS)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_means_over_a_rows_own_tokens(kind: str, tmp_path: Path) -> None:
    context = tiny_context(tmp_path, kind=kind)
    model, tokens = base_model(context), split_tokens(context, base="base", split="validation")
    found = features(model, tokens, context=context, ranks=solo())
    for row in range(len(tokens)):
        with torch.no_grad():
            alone = model.base_model(input_ids=torch.from_numpy(tokens.ids(row))[None])
        torch.testing.assert_close(found[row], alone.last_hidden_state[0].mean(0), atol=1e-5, rtol=1e-4)


def test_the_probe_is_a_logistic_regression_on_halves_of_every_class() -> None:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2], [41, 40, 19]))
    values = rng.normal(size=(100, 4)) + 0.8 * np.eye(4)[labels]
    fitted = np.zeros(100, dtype=bool)
    for label in range(3):
        own = np.flatnonzero(labels == label)
        # Classes follow on one another: after an odd number of rows the next one begins with the other half.
        fitted[own[label in (1, 2) :: 2]] = True
    scaled = (values - values[fitted].mean(0)) / values[fitted].std(0)
    by_hand = LogisticRegression(max_iter=1000).fit(scaled[fitted], labels[fitted])
    expected = np.mean(by_hand.predict(scaled[~fitted]) == labels[~fitted])
    assert probe_accuracy(values, labels) == pytest.approx(expected)
    assert 0.4 < expected < 0.95


def test_the_base_forgets_nothing_and_noise_everything(context: Context) -> None:
    assert forgetting(base_model(context), plan_of(), context) == 0.0
    assert loss(base_model(context), context) < 0.2
    deaf = base_model(context)
    torch.nn.init.zeros_(deaf.get_input_embeddings().weight)
    lost = forgetting(deaf, plan_of(), context)
    assert lost is not None and lost > 0.3


def test_a_student_is_compared_with_the_base_at_full_depth(context: Context) -> None:
    student = select_layers(base_model(context), (0,))
    assert forgetting(student, plan_of(), context) == loss(student, context) - loss(base_model(context), context)


def test_the_base_is_asked_once(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    model = base_model(context)
    first = forgetting(model, plan_of(), context)
    monkeypatch.setattr("trainers.kinds.classification.load_classifier", None)
    assert forgetting(model, plan_of(), context) == first


def test_without_rows_there_is_nothing_to_forget(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    assert forgetting(base_model(context), plan_of(), context) is None


def test_overfit_is_train_minus_validation_on_as_many_rows(context: Context) -> None:
    model, plan = base_model(context), plan_of(finetuning(), seed=3)
    train, validation = (split_tokens(context, base="base", split=split) for split in ("train", "validation"))
    asked = np.random.default_rng(3).permutation(45)[:20]
    on_train = quality("accuracy", train.labels[asked], answers(model, context, "train")[asked]).value
    on_validation = np.mean(answers(model, context, "validation") == validation.labels)
    assert overfit(model, plan, context) == pytest.approx(on_train - on_validation)


def test_rows_learnt_by_heart_are_overfitted(tmp_path: Path) -> None:
    rows = task_rows(40, seed=0)
    shuffled = Rows(rows.texts, np.random.default_rng(1).permutation(rows.labels))
    plain = tiny_context(tmp_path)
    train = tokenise(shuffled, inspect_model(plain.models["base"]), plain.store, max_tokens=16).fingerprint
    context = dataclasses.replace(plain, tokens={"base": {**plain.tokens["base"], "train": train}})
    plan = plan_of(finetuning(epochs=25))
    artifact = run_plan(plan, context, ranks=solo(), report=lambda progress: None)  # noqa: ARG005
    assert overfit(load_classifier(artifact.folder, labels=LABELS), plan, context) > 0.4


def test_a_result_holds_all_three(context: Context) -> None:
    plan = plan_of(SelectLayers(layers=(0,)), finetuning(epochs=1))
    result = carry_out(plan, ["fp32"], context, ranks=solo(), report=lambda progress: None)  # noqa: ARG005
    assert result is not None
    artifact = context.store.find(plan.fingerprint)
    trained = load_classifier(artifact.folder, labels=LABELS)
    assert result.forgetting == forgetting(trained, plan_of(), context)
    assert result.overfit == overfit(trained, plan, context)
    assert result.train_memory_mb == artifact.about["peak_memory_mb"] > 50


def test_a_search_is_prepared_with_all_splits(tmp_path: Path) -> None:
    path = tiny_spec(tmp_path, task={"retain": "general.jsonl", "unlabeled": "more.jsonl"})
    write_rows(tmp_path / "general.jsonl", 60, seed=2)
    write_rows(tmp_path / "more.jsonl", 60, seed=3)
    plain = load_spec(tiny_spec(tmp_path / "plain"))
    prepared, without = (
        prepare(spec, Storage(tmp_path / name), threads=1, say=lambda text: None)  # noqa: ARG005
        for name, spec in (("run", load_spec(path)), ("other", plain))
    )
    (tokens,) = prepared.context.tokens.values()
    assert list(tokens) == ["train", "validation", "test", "unlabeled", "retain"]
    unlabeled = split_tokens(prepared.context, base=prepared.base.fingerprint, split="unlabeled")
    assert set(unlabeled.labels.tolist()) == {-1}
    assert prepared.space.data == without.space.data
