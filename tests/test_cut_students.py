"""Students with the vocabulary of the task: trained, deployed, evaluated and exported as those with all of it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import KINDS, VOCABULARY
from tiny_search import tiny_spec
from training_task import LABELS, finetuning, fitting, plan_of, task_rows, tiny_context
from transformers import AutoTokenizer

from search.export import export_record
from search.prepare import Prepared, prepare
from search.records import Record
from search.run import load_run
from search.run_folder import RunFolder
from search.spec import SpecError, load_spec
from spaces.catalogue import CATALOGUE
from spaces.draw import opening, shapes
from spaces.methods.cut import SelectLayers
from spaces.methods.distill import Distill
from spaces.methods.distill_feature import DistillFeature
from spaces.methods.features import Feature
from spaces.methods.vocabulary import KeepVocabulary
from spaces.shape import Shape
from spaces.stages import Chain, Stage
from trainers import onnx_graph, vocabulary
from trainers.batches import collate
from trainers.carry_out import carry_out
from trainers.context import Context
from trainers.cost import probe
from trainers.datasets import Rows
from trainers.deploy import deploy, ensure_export
from trainers.evaluate import evaluate_plan
from trainers.forgetting import forgetting
from trainers.kinds import split_tokens
from trainers.models import inspect_model, load_classifier, save_model
from trainers.ranks import solo
from trainers.run_stage import run_plan
from trainers.serving import open_session, predict
from trainers.storage import Storage, StorageError
from trainers.tokens import tokenise
from trainers.vocabulary import cut, keep_vocabulary, kept_of, read_cut

UNSEEN = Rows(("red cat moon", "big dog", "moon sun"), np.array([0, 1, 2]))
"""Each with a word that train lacks."""


@pytest.fixture(autouse=True)
def no_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the tiny vocabulary are characters, which always stay; a tenth more would be all of it."""
    monkeypatch.setattr(vocabulary, "_MARGIN_SHARE", 0.0)


def narrow_rows() -> Rows:
    """Rows of the tiny task without two of its words."""
    rows = task_rows(45, seed=0)
    texts = (" ".join(word for word in text.split() if word not in ("moon", "big")) for text in rows.texts)
    return Rows(tuple(texts), rows.labels)


def logits_of(model: Any, tokens: Any) -> torch.Tensor:
    batch = collate(tokens, range(len(tokens)), pad_id=model.config.pad_token_id)
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL).logits
    return found


def cut_context(folder: Path, kind: str = "bert", *, train: Rows | None = None) -> tuple[Context, KeepVocabulary]:
    """The tiny task, and its rows by the vocabulary that train leaves of the base's."""
    context = tiny_context(folder, kind=kind)
    model, train = inspect_model(context.models["base"]), train or narrow_rows()
    stage = keep_vocabulary([train], model, context.store)
    splits = {"train": train, "validation": task_rows(20, seed=1), "test": UNSEEN, "retain": UNSEEN}
    tokens = {
        reader: {name: tokenise(rows, info, context.store, max_tokens=16).fingerprint for name, rows in splits.items()}
        for reader, info in (("base", model), (stage.vocabulary, read_cut(stage, model, context.store)))
    }
    return dataclasses.replace(context, tokens=tokens), stage


@pytest.fixture
def few() -> Rows:
    """Rows of four words."""
    return Rows(("red cat", "red dog", "red sun") * 8, np.arange(24) % 3)


def silent(_progress: Any) -> None:
    pass


def test_a_cut_is_one_stage_of_a_plan() -> None:
    stage = KeepVocabulary(vocabulary="v" * 64, num_tokens=6081)
    plan = plan_of(finetuning(), stage, SelectLayers(layers=(0,)), finetuning())
    assert plan.shape == Shape(base="base", num_layers=1, vocab_size=6081)
    assert (plan.reader, plan.prefix(1).reader, plan.prefix(2).reader) == ("v" * 64, "base", "v" * 64)
    assert type(plan).model_validate_json(plan.to_json()) == plan
    assert stage.say() == "keep 6,081 tokens"
    other = plan_of(finetuning(), KeepVocabulary(vocabulary="w" * 64, num_tokens=6081), *plan.stages[2:])
    assert other.fingerprint != plan.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_same_pieces_and_logits_the_same_numbers(kind: str, tmp_path: Path) -> None:
    """Train is longer than what is read of it: pieces that are cut off still decide how the last one is split."""
    train = Rows(tuple(f"the red cat {'dog ' * 12}sun{number}zz" for number in range(4)), np.array([0, 1, 2, 0]))
    context, stage = cut_context(tmp_path, kind, train=train)
    kept = kept_of(stage.vocabulary, context)
    whole, few = (split_tokens(context, base=name, split="train") for name in ("base", stage.vocabulary))
    assert len(kept) == stage.num_tokens < len(VOCABULARY)
    for row in range(len(whole)):
        assert kept[few.ids(row)].tolist() == whole.ids(row).tolist()
    model = load_classifier(Path(context.models["base"]), labels=LABELS)
    small = cut(model, stage, context=context)
    torch.testing.assert_close(logits_of(small, few), logits_of(model, whole), atol=1e-6, rtol=1e-5)
    assert model.get_input_embeddings().weight.shape[0] == len(VOCABULARY)
    assert small.num_parameters() < model.num_parameters()


def _stages(name: str) -> list[Stage]:
    teacher = Chain(base="base", stages=(finetuning(),))
    soft: dict[str, Any] = {"teacher": teacher, "temperature": 2.0, "alpha": 0.5, "alpha_end": 0.5}
    optimisation = fitting(learning_rate=1e-3)
    if name == "finetune":
        return [finetuning(learning_rate=1e-3)]
    if name == "distill":
        return [Distill(optimisation=optimisation, **soft)]
    attention = Feature(kind="attention")
    align = DistillFeature(optimisation=optimisation, teacher=teacher, feature=attention)
    return [align, Distill(optimisation=optimisation, **soft, feature=attention, gamma=1.0)]


@pytest.mark.parametrize("name", ["finetune", "distill", "features"])
def test_training_is_the_same_with_and_without_the_cut(name: str, tmp_path: Path) -> None:
    context, stage = cut_context(tmp_path)
    plans = [plan_of(*begin, SelectLayers(layers=(0,)), *_stages(name)) for begin in ((), (stage,))]
    whole, small = (run_plan(plan, context, ranks=solo(), report=silent) for plan in plans)
    for one, other in zip(whole.about["history"], small.about["history"], strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)
    assert small.about["history"][-1]["train_loss"] < small.about["history"][0]["train_loss"]
    assert vocab_size(small.folder) == stage.num_tokens < vocab_size(whole.folder)


def vocab_size(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["vocab_size"])


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_a_cut_student_is_deployed_as_torch_answers(kind: str, tmp_path: Path) -> None:
    context, stage = cut_context(tmp_path, kind)
    plan = plan_of(stage, finetuning())
    model = cut(load_classifier(Path(context.models["base"]), labels=LABELS), stage, context=context)
    onnx_graph.randomise(model, seed=3)
    with context.store.publish(plan.fingerprint, {"kind": "model"}) as folder:
        save_model(model, folder)
    artifact = context.store.find(plan.fingerprint)
    assert artifact is not None
    before = set(Path(context.artifacts).iterdir())
    export = ensure_export(plan.shape, context)
    file = deploy(artifact, plan=plan, precision="fp32", context=context, folder=tmp_path)
    assert export.about["swappable"]
    assert {path.name for path in set(Path(context.artifacts).iterdir()) - before} == {export.fingerprint}
    ids = torch.tensor([split_tokens(context, base=stage.vocabulary, split="train").ids(0).tolist()])
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.numpy()
    found = open_session(file).run(["logits"], {"input_ids": ids.numpy(), "attention_mask": np.ones_like(ids.numpy())})
    np.testing.assert_allclose(found[0], expected, atol=1e-4, rtol=1e-4)


def test_what_is_asked_is_read_by_the_cut_tokenizer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows that hold other words are still answered, on every split; the shape's one graph serves the model."""
    context, stage = cut_context(tmp_path)
    tokens = split_tokens(context, base=stage.vocabulary, split="test")
    assert [len(tokens.ids(row)) > len(split_tokens(context, base="base", split="test").ids(row)) for row in range(3)]
    assert max(int(tokens.ids(row).max()) for row in range(3)) < stage.num_tokens
    plan = plan_of(stage, finetuning(epochs=8))
    result = carry_out(plan, ["fp32"], context, ranks=solo(), report=silent)
    artifact = context.store.find(plan.fingerprint)
    assert "exported by itself" not in caplog.text
    assert result is not None and result.variants[0].value > 0.5 and artifact is not None
    (variant,) = evaluate_plan(plan, ["fp32"], context, split="test")
    model = load_classifier(artifact.folder, labels=LABELS)
    assert variant.predictions == tuple(logits_of(model, tokens).argmax(dim=-1).tolist())


def test_forgetting_compares_with_the_whole_base(tmp_path: Path) -> None:
    context, stage = cut_context(tmp_path)
    many = Rows(tuple(f"the red {word} sun" for word in ("cat", "dog") * 20), np.arange(40) % 2)
    model = inspect_model(context.models["base"])
    infos = {"base": model, stage.vocabulary: read_cut(stage, model, context.store)}
    tokens = {
        reader: {**context.tokens[reader], "retain": tokenise(many, info, context.store, max_tokens=16).fingerprint}
        for reader, info in infos.items()
    }
    context = dataclasses.replace(context, tokens=tokens)
    untrained = cut(load_classifier(Path(context.models["base"]), labels=LABELS), stage, context=context)
    assert forgetting(untrained, plan_of(stage, finetuning()), context) == pytest.approx(0.0, abs=1e-6)


def test_a_cut_shape_costs_less(tmp_path: Path) -> None:
    context, stage = cut_context(tmp_path)
    base = Shape(base="base")
    whole, small = (
        probe(shape, "fp32", context, reference=base, sequence_length=8) for shape in (base, stage.reshape(base))
    )
    assert small.shape == Shape(base="base", vocab_size=stage.num_tokens)
    saved = (len(VOCABULARY) - stage.num_tokens) * 32 * 4 / 1e6
    assert whole.size_mb - small.size_mb == pytest.approx(saved, rel=0.05)


def test_a_vocabulary_that_is_gone(tmp_path: Path) -> None:
    context, stage = cut_context(tmp_path)
    model = load_classifier(Path(context.models["base"]), labels=LABELS)
    gone = stage.model_copy(update={"vocabulary": "0" * 64})
    with pytest.raises(StorageError, match="the cut vocabulary 000000000000… is gone"):
        cut(model, gone, context=context)


def test_what_is_kept_depends_on_the_rows_that_are_learnt(tmp_path: Path, few: Rows) -> None:
    context = tiny_context(tmp_path)
    model = inspect_model(context.models["base"])
    first, again = (keep_vocabulary([few], model, context.store) for _ in range(2))
    more = keep_vocabulary([few, task_rows(45, seed=0)], model, context.store)
    assert first == again
    assert more.vocabulary != first.vocabulary and more.num_tokens > first.num_tokens
    assert VOCABULARY["cat"] in kept_of(first.vocabulary, context)


def test_the_margin_is_a_share_of_the_vocabulary(tmp_path: Path, few: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    context = tiny_context(tmp_path)
    model = inspect_model(context.models["base"])
    bare = keep_vocabulary([few], model, context.store)
    monkeypatch.setattr(vocabulary, "_MARGIN_SHARE", 3.5 / len(VOCABULARY))
    more = keep_vocabulary([few], model, context.store)
    assert more.num_tokens == bare.num_tokens + 3 and more.vocabulary != bare.vocabulary


# Space and spec -------------------------------------------------------------------------------------------------


def prepared(folder: Path, vocabulary: str = "task", **changes: Any) -> tuple[Prepared, list[str]]:
    heard: list[str] = []
    spec = load_spec(tiny_spec(folder, model={"vocabulary": vocabulary, "student_layers": [1, 2]}, **changes))
    return prepare(spec, Storage(folder / "runs" / "tiny" / ""), threads=1, say=heard.append), heard


def test_students_of_every_strategy_begin_with_the_cut(tmp_path: Path) -> None:
    found, heard = prepared(tmp_path)
    stage = found.space.vocabulary
    assert stage is not None
    assert f"vocabulary: students keep {stage.num_tokens} of {len(VOCABULARY)} tokens" in heard
    assert list(found.context.tokens[stage.vocabulary]) == ["train", "validation", "test"]
    for one in opening(found.space):
        assert (stage in one.plan.stages) is CATALOGUE[one.strategy].student, one.strategy
        for part in one.plan.stages:
            assert all(chain.reader == chain.base for chain in part.teachers)
    assert found.reference == Shape(base=found.base.fingerprint)
    cuts = [Shape(base=found.base.fingerprint, num_layers=size, vocab_size=stage.num_tokens) for size in (1, None)]
    assert {shape for shape in shapes(found.space) if not shape.additions} == {*cuts, found.reference}
    assert {shape.vocab_size for shape in shapes(found.space) if shape.additions} == {None}


def test_without_it_nothing_changes(tmp_path: Path) -> None:
    (cut_space, _), (plain, _) = prepared(tmp_path / "a"), prepared(tmp_path / "b", "full")
    assert plain.space == dataclasses.replace(cut_space.space, vocabulary=None)
    assert len(plain.context.tokens) == 1


def test_a_tokenizer_that_cannot_be_cut(tmp_path: Path) -> None:
    spec = load_spec(tiny_spec(tmp_path, model={"vocabulary": "task"}))
    file = tmp_path / "model" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"] = {"type": "WordLevel", "vocab": content["model"]["vocab"], "unk_token": "[UNK]"}
    file.write_text(json.dumps(content))
    with pytest.raises(SpecError, match=r"model.vocabulary: found task; .*'WordLevel'; expected WordPiece.*write full"):
        prepare(spec, Storage(tmp_path / "run"), threads=1, say=lambda _: None)


def test_what_a_spec_may_not_ask(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"model.vocabulary: found 'small'.*"):
        load_spec(tiny_spec(tmp_path, model={"vocabulary": "small"}))
    with pytest.raises(SpecError, match=r"model.vocabulary: found task; a model writes with its vocabulary"):
        load_spec(tiny_spec(tmp_path, model={"vocabulary": "task"}, task={"kind": "generation"}))


# Export ---------------------------------------------------------------------------------------------------------


def test_an_export_reads_and_answers_as_it_was_measured(tmp_path: Path) -> None:
    """What is handed over has the cut tokenizer, and transformers loads it and answers as the graph does."""
    spec = load_spec(tiny_spec(tmp_path, model={"vocabulary": "task"}))
    folder = RunFolder.open(spec, new=False)
    ready = prepare(spec, folder.storage, threads=1, say=lambda _: None)
    folder.claim(spec, ready.context, ready.rows)
    stage = ready.space.vocabulary
    assert stage is not None
    plan = ready.space.plan((stage, SelectLayers(layers=(0,)), finetuning()))
    result = carry_out(plan, ["int8"], ready.context, ranks=solo(), report=silent)
    assert result is not None
    record = Record(
        record_id="0-int8-cpu",
        trial_id="0",
        number=0,
        strategy="small_finetune",
        plan=plan.to_json(),
        fingerprint=plan.fingerprint,
        params={},
        precision="int8",
        target="cpu",
        estimated=False,
        status="complete",
        quality=result.variants[0].value,
        quality_low=result.variants[0].low,
        quality_high=result.variants[0].high,
        latency_ms=1.0,
        size_mb=1.0,
        train_seconds=1.0,
    )
    exported = export_record(load_run(folder.storage.location), record, tmp_path / "model-out")
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert len(tokenizer) == stage.num_tokens == inspect_model(str(exported)).vocab_size
    tokens = split_tokens(ready.context, base=plan.reader, split="validation")
    texts = ready.rows.validation.texts  # type: ignore[union-attr]
    assert [tokenizer(text)["input_ids"] for text in texts] == [tokens.ids(row).tolist() for row in range(len(texts))]
    graph = exported / "model_int8.onnx"
    assert predict(graph, tokens, threads=1).tolist() == list(result.variants[0].predictions)
    assert f"keep {stage.num_tokens} tokens → keep 1 layer" in (exported / "README.md").read_text()
