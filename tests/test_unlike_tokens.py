"""A teacher that reads other tokens than the student: what a search does without, and what it refuses."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model
from tiny_search import tiny_spec

from search.prepare import Prepared, prepare
from search.spec import SpecError, load_spec
from spaces.methods.distill import DFT_FEATURE
from trainers.storage import Storage


def other_teacher(folder: Path, *, swapped: bool) -> None:
    """Another, wider model; with other files of its tokenizer, and with other ids of two words where ``swapped``."""
    model = tiny_model(folder / "teacher", "roberta", num_layers=3, hidden_size=48, seed=1)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "right"}))
    if swapped:
        tokenizer = json.loads((model / "tokenizer.json").read_text())
        ids = tokenizer["model"]["vocab"]
        ids["the"], ids["small"] = ids["small"], ids["the"]
        (model / "tokenizer.json").write_text(json.dumps(tokenizer))


def prepared(folder: Path, search: Mapping[str, Any], *, swapped: bool) -> tuple[Prepared, list[str]]:
    path = tiny_spec(folder, model={"teacher": "./teacher"}, search=search)
    other_teacher(folder, swapped=swapped)
    said: list[str] = []
    return prepare(load_spec(path), Storage(folder / "run"), threads=1, say=said.append), said


def test_another_width_and_other_files_are_no_hindrance(tmp_path: Path) -> None:
    found, said = prepared(tmp_path, {"strategies": ["distill_feature", "dft"]}, swapped=False)
    assert found.space.strategies == ("distill_feature", "dft")
    assert found.space.options(DFT_FEATURE) == DFT_FEATURE.options
    assert not any("does not read" in line for line in said)


def test_all_leaves_out_what_needs_the_same_tokens(tmp_path: Path) -> None:
    found, said = prepared(tmp_path, {"strategies": "all"}, swapped=True)
    assert "distill_feature" not in found.space.strategies and "dft" in found.space.strategies
    assert found.space.options(DFT_FEATURE) == ("none",)
    (line,) = (line for line in said if "distill_feature" in line)
    assert f"{tmp_path / 'teacher'} does not read the tokens of {tmp_path / 'model'}: training row" in line
    assert any("dft_feature goes without hidden, relation: " in line for line in said)


@pytest.mark.parametrize(
    ("search", "key"),
    [
        ({"strategies": ["full", "distill_feature"]}, "search.strategies: distill_feature needs "),
        ({"strategies": ["dft"], "space": {"dft_feature": "relation"}}, "search.space.dft_feature: found relation; "),
    ],
    ids=["strategy", "parameter"],
)
def test_what_is_named_is_refused_with_both_models(tmp_path: Path, search: Mapping[str, Any], key: str) -> None:
    with pytest.raises(SpecError) as refused:
        prepared(tmp_path, search, swapped=True)
    (problem,) = refused.value.problems
    assert problem.startswith(f"{key}")
    assert f"{tmp_path / 'teacher'} does not read the tokens of {tmp_path / 'model'}: training row" in problem
    assert "name a teacher with the same tokenizer" in problem
