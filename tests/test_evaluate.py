"""Quality of what is deployed: metrics against independent references, predictions against torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import f1_score
from tiny_models import WORDS, tiny_model
from transformers import PreTrainedModel

from spaces.methods.finetune import Finetune
from spaces.plan import Plan
from spaces.stages import Optimisation
from trainers.context import Context
from trainers.datasets import Rows
from trainers.deploy import write_graph
from trainers.evaluate import evaluate_plan
from trainers.kinds import split_tokens
from trainers.metrics import macro_f1, quality, wilson
from trainers.models import ModelError, inspect_model, load_classifier, save_model
from trainers.onnx_graph import randomise, trace
from trainers.serving import predict
from trainers.tokens import Tokens, open_tokens, tokenise

LABELS = ("cat", "dog", "sun")
PLAN = Plan(base="base", stages=(Finetune(optimisation=Optimisation(learning_rate=1e-4, epochs=1)),), data="rows")
PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A trained plan and its tokenised validation rows, of many lengths."""
    root = tmp_path_factory.mktemp("evaluate")
    base = tiny_model(root / "base", num_layers=2)
    rng = np.random.default_rng(0)
    texts = tuple(" ".join(rng.choice(WORDS, size=size)) for size in rng.integers(1, 20, size=40))
    plain = Context(
        artifacts=str(root / "artifacts"),
        cache=str(root / "cache"),
        models={"base": str(base)},
        tokens={},
        labels=LABELS,
    )
    rows = Rows(texts=texts, labels=rng.integers(3, size=40))
    tokens = tokenise(rows, inspect_model(str(base)), plain.store, max_tokens=32)
    with plain.store.publish(PLAN.fingerprint, {"kind": "model"}) as folder:
        save_model(balanced(load_classifier(base, labels=LABELS), open_tokens(tokens)), folder)
    return Context(
        artifacts=plain.artifacts,
        cache=plain.cache,
        models=plain.models,
        tokens={"base": {"validation": tokens.fingerprint}},
        labels=LABELS,
        threads=2,
    )


def balanced(model: PreTrainedModel, tokens: Tokens) -> PreTrainedModel:
    """Random weights, and a bias under which no label wins everywhere."""
    randomise(model, seed=1)
    model.classifier.bias.data -= torch.cat([logits(model, tokens, row) for row in range(len(tokens))]).mean(0)
    return model


def logits(model: PreTrainedModel, tokens: Tokens, row: int) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor(tokens.ids(row), dtype=torch.long)[None]).logits


@given(PAIRS)
def test_macro_f1_is_sklearns(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = np.array(pairs).T
    assert macro_f1(labels, predictions) == pytest.approx(f1_score(labels, predictions, average="macro"))


@given(st.integers(1, 3000), st.floats(0, 1))
def test_wilson_is_scipys(total: int, share: float) -> None:
    successes = round(share * total)
    expected = binomtest(successes, total).proportion_ci(method="wilson")
    assert wilson(successes, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


@settings(max_examples=10)
@given(PAIRS, st.sampled_from(["accuracy", "macro_f1"]))
def test_the_interval_holds_the_value(pairs: list[tuple[int, int]], metric: str) -> None:
    labels, predictions = np.array(pairs).T
    found = quality(metric, labels, predictions)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found == quality(metric, labels, predictions)


def test_accuracy() -> None:
    assert quality("accuracy", np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])).value == 0.75


def test_the_bootstrap_covers_as_often_as_it_says() -> None:
    """Of 100 samples of 300 rows with a known macro F1, about 95 % give an interval that holds it."""
    rng = np.random.default_rng(1)
    labels = rng.integers(3, size=30_000)
    predictions = np.where(rng.random(30_000) < 0.7, labels, rng.integers(3, size=30_000))
    truth = f1_score(labels, predictions, average="macro")
    intervals = [quality("macro_f1", labels[i : i + 300], predictions[i : i + 300]) for i in range(0, 30_000, 300)]
    assert 0.89 <= np.mean([found.low <= truth <= found.high for found in intervals]) <= 0.99


@pytest.mark.parametrize(
    ("metric", "rows", "message"),
    [
        ("rouge", (2, 2), "`metric` must be one of"),
        ("accuracy", (0, 0), "each label"),
        ("accuracy", (3, 2), "each label"),
    ],
)
def test_what_cannot_be_measured(metric: str, rows: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quality(metric, np.zeros(rows[0], dtype=int), np.zeros(rows[1], dtype=int))


def test_predictions_are_torchs_whatever_the_threads(context: Context, tmp_path: Path) -> None:
    folder = context.store.find(PLAN.fingerprint).folder
    model = load_classifier(folder, labels=LABELS)
    tokens = split_tokens(context, base="base", split="validation")
    expected = [logits(model, tokens, row).argmax().item() for row in range(len(tokens))]
    assert len(set(expected)) > 1
    file = write_graph(trace(model), precision="fp32", folder=tmp_path)
    for threads in (1, 3):
        assert predict(file, tokens, threads=threads).tolist() == expected


def test_a_plan_is_measured_at_every_precision(context: Context) -> None:
    tokens = split_tokens(context, base="base", split="validation")
    variants = evaluate_plan(PLAN, ["fp32", "int8"], context)
    assert [variant.precision for variant in variants] == ["fp32", "int8"]
    for variant in variants:
        assert variant.quality.value == np.mean(np.array(variant.predictions) == tokens.labels)
    agreement = np.mean(np.array(variants[0].predictions) == np.array(variants[1].predictions))
    assert agreement > 0.8


def test_a_plan_that_is_not_trained(context: Context) -> None:
    with pytest.raises(ModelError, match="train the plan before"):
        evaluate_plan(PLAN.model_copy(update={"seed": 1}), ["fp32"], context)


def test_a_split_that_is_not_there(context: Context) -> None:
    with pytest.raises(ModelError, match=r"no tokenised 'test' rows .* there are \['validation'\]"):
        evaluate_plan(PLAN, ["fp32"], context, split="test")


def test_ray_is_not_imported() -> None:
    code = "import sys, trainers.evaluate, trainers.cost; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
