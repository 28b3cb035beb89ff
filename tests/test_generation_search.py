"""Generation through the whole search: what a spec may ask for, what is prepared, a real search and its export."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import VOCABULARY, tiny_causal
from tiny_search import run_to_end
from tiny_writing import writing_spec

from search.prepare import prepare
from search.run import load_run
from search.run_folder import context_of
from search.spec import SpecError, load_spec
from spaces.catalogue import CATALOGUE
from trainers.causal_models import load_causal
from trainers.kinds import kind_of, split_tokens
from trainers.model_files import ModelError
from trainers.packed import open_packed
from trainers.ranks import solo
from trainers.storage import Storage


def changed(folder: Path, section: str, **keys: Any) -> Path:
    """The tiny spec with other keys in one section."""
    spec = writing_spec(folder)
    raw = yaml.safe_load(spec.read_text())
    raw[section] = {**raw[section], **keys}
    spec.write_text(yaml.safe_dump(raw))
    return spec


def test_what_a_spec_stands_for(tmp_path: Path) -> None:
    spec = load_spec(changed(tmp_path, "search", strategies="all", objectives=["exact_match", "token_ms"]))
    fitting = {name for name, found in CATALOGUE.items() if "generation" in found.kinds}
    # The tiny rows have no rationales, and there are no others.
    assert set(spec.strategies) == {
        name for name in fitting if not {"rationales", "unlabeled"} & {*CATALOGUE[name].needs}
    }
    assert (spec.task.metric, spec.task.max_tokens, spec.task.max_new_tokens) == ("exact_match", 512, 4)


@pytest.mark.parametrize(
    ("section", "keys", "message"),
    [
        ("task", {"metric": "accuracy"}, "task.metric: found 'accuracy'; expected a metric of kind generation"),
        ("search", {"objectives": ["accuracy", "latency_ms"]}, "expected the task's metric, exact_match"),
    ],
)
def test_what_a_spec_may_not_ask(section: str, keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        load_spec(changed(tmp_path, section, **keys))


def test_targets_at_which_writing_is_not_estimated(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"targets: found phone; .* neither measured nor estimated; expected cpu"):
        load_spec(writing_spec(tmp_path, targets=["cpu", "phone"]))


def test_what_is_prepared(tmp_path: Path) -> None:
    heard: list[str] = []
    spec = load_spec(changed(tmp_path, "task", max_tokens=10))
    prepared = prepare(spec, Storage(tmp_path / "run"), threads=1, say=heard.append)
    for name, rows in prepared.rows.splits.items():
        # A token for each word, and one that begins the text.
        long = sum(len(prompt.split()) + 1 > 6 for prompt in rows.prompts)  # type: ignore[union-attr]
        note = f"{name}: {long} of {len(rows)} prompts longer than 6 tokens, cut from the left; raise task.max_tokens"
        assert long and heard.count(f"data: {note}") == 1
    assert (prepared.sequence_length, prepared.context.output_tokens) == (5, 3)
    assert prepared.precisions == ("fp32", "int8")
    assert prepared.context.labels == ()
    other = prepare(
        load_spec(changed(tmp_path, "task", max_tokens=10, max_new_tokens=3)),
        Storage(tmp_path / "run"),
        threads=1,
        say=heard.append,
    )
    assert other.space.data != prepared.space.data


def test_a_teacher_of_another_vocabulary_is_refused_before_anything_runs(tmp_path: Path) -> None:
    spec = load_spec(changed(tmp_path, "model", teacher="./teacher"))
    folder = tiny_causal(tmp_path / "teacher")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    del tokenizer["model"]["vocab"]["sun"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=f"has {len(VOCABULARY)} tokens, the student {len(VOCABULARY)}, and they are"):
        prepare(spec, Storage(tmp_path / "run"), threads=1, say=lambda _: None)


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_and_what_it_ships(tmp_path: Path) -> None:
    """Two strategies, deployed at two precisions; the export loads in transformers and answers as it was measured."""
    from transformers import pipeline

    search = {
        "strategies": ["full", "distill_soft"],
        "batch_size": 8,
        "space": {"learning_rate": 1e-2, "student_learning_rate": 1e-2, "epochs": 12, "quantization": ["fp32", "int4"]},
    }
    spec = writing_spec(tmp_path, search=search, budget={"trials": 2})
    code, text = run_to_end(["search", spec], cwd=tmp_path, cache=tmp_path / "cache")
    assert code == 0, text
    run = load_run(tmp_path / "runs" / "writing")
    complete = [record for record in run.records if record.status == "complete"]
    assert {(record.strategy, record.precision) for record in complete} == {
        (strategy, precision) for strategy in ("full", "distill_soft") for precision in ("fp32", "int4")
    }
    assert all(record.first_token_ms and record.token_ms and record.latency_ms for record in complete)
    assert max(record.quality or 0.0 for record in complete) > 0
    best = tmp_path / "runs" / "writing" / "best"
    chosen = json.loads((best / "distune.json").read_text())
    context = context_of(run.storage)
    tokens = split_tokens(context, base=chosen["plan"]["base"], split="validation")
    write = pipeline("text-generation", model=str(best))
    (found,) = write("the red cat", max_new_tokens=4, do_sample=False)
    assert found["generated_text"].startswith("the red cat")
    (deployed,) = [*best.glob("packed_*.safetensors")] or [best / "model.safetensors"]
    scores = kind_of(context).ask(open_packed(deployed), tokens, context=context, ranks=solo())
    assert kind_of(context).quality(scores, tokens, context=context).value == chosen["validation"]["exact_match"]
    assert load_causal(best).config.num_hidden_layers in (1, 2)
    card = (best / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card and "first token" in card and str(tmp_path) not in card
