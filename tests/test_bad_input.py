"""What a user may get wrong in data and models: found before anything is trained, with an exit code and a way out."""

import contextlib
import json
from pathlib import Path

import pytest
import yaml
from tiny_models import VOCABULARY, tiny_causal, tiny_model
from tiny_search import tiny_spec
from tiny_writing import writing_spec
from transformers import AutoConfig
from transformers.models.bert.modeling_bert import BertLayer

from search import engine
from search.cluster import Layout
from search.engine import Search
from search.errors import FAILED, WRONG, exit_code

ROW = {"text": "a red cat", "label": "cat"}


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this gets as far as needing it."""
    monkeypatch.setenv("DISTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engine, "ray_running", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(engine, "lay_out", lambda *_, **__: Layout(seats=1, workers=1, cpus=1))
    monkeypatch.setattr(engine, "measure_costs", _gone_too_far)


def refused(spec: Path) -> tuple[int | None, str]:
    """Exit code and message of the search of ``spec``."""
    with pytest.raises(Exception) as caught:
        Search.from_yaml(spec).run()
    return exit_code(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "train.jsonl"),
        ([json.dumps(ROW), '{"text": "broken'], "line 2"),
        ([json.dumps({"words": "a red cat", "label": "cat"})], "text"),
        ([json.dumps({"text": "a red cat", "intent": "cat"})], "label"),
        ([json.dumps(ROW)] * 40, "cat"),
        ([json.dumps({"text": "", "label": "cat"}), json.dumps({"text": None, "label": "dog"})], "none of the 2 rows"),
    ],
    ids=["empty file", "broken line", "no text column", "no label column", "one class", "no texts"],
)
def test_rows_that_cannot_be_learned_from(tmp_path: Path, lines: list[str], said: str) -> None:
    spec = tiny_spec(tmp_path)
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    code, text = refused(spec)
    assert (code, said in text) == (WRONG, True), text
    assert not (tmp_path / "runs/tiny/spec.yaml").exists(), "a run begins with rows and models that are good"


def test_rows_that_are_not_there(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, task={"train": "nothing.jsonl"})
    code, text = refused(spec)
    assert (code, "nothing.jsonl" in text) == (WRONG, True), text


def test_rows_that_are_not_utf8(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path)
    (tmp_path / "train.jsonl").write_bytes(json.dumps(ROW).encode() + b'\n{"text": "\xff", "label": "dog"}\n')
    code, text = refused(spec)
    assert (code, "line 2" in text) == (WRONG, True), text


def test_a_label_in_validation_that_train_lacks(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, task={"validation": "validation.jsonl"})
    (tmp_path / "validation.jsonl").write_text(json.dumps({"text": "a red moon", "label": "dgo"}))
    code, text = refused(spec)
    assert code == WRONG
    assert "task.validation: label 'dgo' (1 rows) does not occur in train; did you mean 'dog'?" in text


def test_a_domain_column_that_would_leave_an_expert_without_data(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, task={"domain": "shop"}, search={"strategies": ["moe_dft"]})
    rows = [json.loads(line) | {"shop": "one"} for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, text = refused(spec)
    assert (code, "task.domain: found 'shop', which is 'one' in all" in text) == (WRONG, True), text


@pytest.mark.parametrize(
    ("why", "said"), [("", "none of the 87 rows has one"), ("Thus #### elephant", "none of the 87")]
)
def test_rationales_that_teach_nothing(tmp_path: Path, why: str, said: str) -> None:
    spec = writing_spec(tmp_path, task={"rationale": "why"}, search={"strategies": ["distill_cot"]})
    rows = [json.loads(line) | {"why": why} for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, text = refused(spec)
    assert (code, f"task.rationale: found 'why'; {said}" in text) == (WRONG, True), text


def test_a_rationale_column_that_is_not_there(tmp_path: Path) -> None:
    code, text = refused(writing_spec(tmp_path, task={"rationale": "respons"}))
    assert (code, "train.jsonl: no column 'respons' (task.rationale); found are prompt, response" in text) == (
        WRONG,
        True,
    ), text


def test_a_precision_that_the_machine_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    code, text = refused(writing_spec(tmp_path, search={"space": {"quantization": ["fp32", "int4"]}}))
    assert code == WRONG
    assert text == (
        "int4: not on this machine, whose processor has no instructions for it in torch "
        "(found DEFAULT, expected AVX2 or AVX512); use int8"
    )


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    code, text = refused(tiny_spec(tmp_path, model={"base": "./nothing"}))
    assert (code, "nothing" in text) == (WRONG, True), text


def test_a_model_without_safetensors(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path)
    (tmp_path / "model/model.safetensors").rename(tmp_path / "model/pytorch_model.bin")
    code, text = refused(spec)
    assert (code, "safetensors" in text) == (WRONG, True), text


def test_a_tokenizer_that_does_not_fit(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path)
    path = tmp_path / "model/tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["beyond"] = len(VOCABULARY) + 5
    path.write_text(json.dumps(tokenizer))
    code, text = refused(spec)
    assert (code, "tokenizer" in text) == (WRONG, True), text


def test_more_layers_than_the_model_has(tmp_path: Path) -> None:
    code, text = refused(tiny_spec(tmp_path, model={"student_layers": [1, 9]}))
    assert (code, "9" in text) == (WRONG, True), text


def test_a_run_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, text = refused(tiny_spec(tmp_path, storage=str(tmp_path / "file" / "runs")))
    assert (code, "file" in text) == (FAILED, True), text


def test_odd_rows_are_taken_and_said(tmp_path: Path) -> None:
    """A text of 100,000 characters, a class with a single row, a text on both sides: no reason to give up."""
    spec = tiny_spec(tmp_path)
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    odd = [{"text": "red " * 25_000, "label": "cat"}, {"text": "the only one", "label": "moon"}]
    shared = (tmp_path / "test.jsonl").read_text().splitlines()[0]
    (tmp_path / "train.jsonl").write_text("\n".join([*rows, *map(json.dumps, odd), shared]))
    with pytest.raises(_TooFar):
        Search.from_yaml(spec).run()
    labels = yaml.safe_load((tmp_path / "runs/tiny/context.json").read_text())["labels"]
    assert sorted(labels) == ["cat", "dog", "moon", "sun"]


def test_odd_exchanges_are_taken_and_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Empty responses, and prompts that are longer than a row may be: also beside a teacher of its own tokenizer."""
    spec = writing_spec(tmp_path, task={"max_tokens": 12}, model={"teacher": "./teacher"})
    tiny_causal(tmp_path / "teacher", num_layers=1, seed=1)
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    odd = [{"prompt": "red", "response": " "}, {"prompt": "sun " * 40, "response": "sun"}]
    (tmp_path / "train.jsonl").write_text("\n".join([*rows, *map(json.dumps, odd)]))
    with pytest.raises(_TooFar):
        Search.from_yaml(spec).run()
    said = capsys.readouterr().out
    assert said.count("train: 1 of 122 rows without a response left out") == 1
    assert said.count("prompts longer than 8 tokens, cut from the left; raise task.max_tokens") == 1


def test_a_teacher_that_is_smaller_than_its_students_is_said_and_written_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"model": {"teacher": "./teacher", "student_layers": [1, 2]}, "search": {"strategies": ["distill_soft"]}}
    spec = tiny_spec(tmp_path, **settings)
    tiny_model(tmp_path / "teacher", num_layers=1, seed=1)
    with pytest.raises(_TooFar):
        Search.from_yaml(spec).run()
    each = sum(tensor.numel() for tensor in BertLayer(AutoConfig.from_pretrained(tmp_path / "model")).parameters())
    found = f"has {each:,} parameters in its layers, fewer than students of 2 layers or more ({2 * each:,})"
    assert found in capsys.readouterr().out
    notes = json.loads((tmp_path / "runs/tiny/notes.json").read_text())["notes"]
    assert [found in note for note in notes].count(True) == 1
    tiny_model(tmp_path / "teacher", num_layers=2, seed=1)
    with pytest.raises(_TooFar):
        Search.from_yaml(spec, new=True).run()
    assert "parameters in its layers" not in capsys.readouterr().out


class _TooFar(Exception):
    """Costs would be measured now: everything before was found good."""


def _gone_too_far(*_: object, **__: object) -> None:
    raise _TooFar


def test_the_tiny_model_is_good(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    with pytest.raises(_TooFar):
        Search.from_yaml(tiny_spec(tmp_path)).run()
