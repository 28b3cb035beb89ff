"""Tokens: what the tokenizer says, written once, mapped and not loaded."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tiny_models import MAX_TOKENS, VOCABULARY, tiny_model

from trainers.artifacts import ArtifactStore
from trainers.datasets import Rows
from trainers.models import ModelInfo, inspect_model
from trainers.storage import Storage
from trainers.tokens import open_tokens, tokenise

ROWS = Rows(("the red cat", "a big DOG", "sun " * 200, "naïve 🌞 ☂"), np.array([1, 0, 2, 1]))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    return inspect_model(str(tiny_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(Storage(tmp_path / "artifacts"), tmp_path / "cache")


def test_rows_come_back_as_their_tokens(model: ModelInfo, store: ArtifactStore) -> None:
    tokens = open_tokens(tokenise(ROWS, model, store, max_tokens=32))
    expected = [VOCABULARY[piece] for piece in ("[CLS]", "the", "red", "cat", "[SEP]")]
    assert tokens.ids(0).tolist() == expected
    assert tokens.ids(2).tolist() == [VOCABULARY["[CLS]"], *[VOCABULARY["sun"]] * 30, VOCABULARY["[SEP]"]]
    assert len(tokens) == 4
    assert tokens.labels.tolist() == [1, 0, 2, 1]
    assert tokens.lengths.tolist() == [len(tokens.ids(row)) for row in range(4)]
    assert {array.dtype for array in (tokens.ids(0), tokens.labels, tokens.lengths)} == {np.dtype(np.int64)}
    for row in (-1, 4):
        with pytest.raises(IndexError, match="outside 0 … 3"):
            tokens.ids(row)


def test_length_is_bounded_by_the_model(model: ModelInfo, store: ArtifactStore) -> None:
    artifact = tokenise(ROWS, model, store, max_tokens=100_000)
    assert open_tokens(artifact).lengths.max() == MAX_TOKENS
    assert artifact == tokenise(ROWS, model, store, max_tokens=MAX_TOKENS)
    assert artifact.about["tokens"] == open_tokens(artifact).lengths.sum()


def test_the_same_rows_are_found_and_others_are_not(
    model: ModelInfo, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tokenise(ROWS, model, store, max_tokens=16)
    others = [
        tokenise(ROWS, model, store, max_tokens=17),
        tokenise(Rows(ROWS.texts, ROWS.labels[::-1].copy()), model, store, max_tokens=16),
        tokenise(ROWS, dataclasses.replace(model, tokenizer_fingerprint="x"), store, max_tokens=16),
    ]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 4

    monkeypatch.setattr("trainers.tokens._token_ids", lambda *_: pytest.fail("tokenised twice"))
    elsewhere = dataclasses.replace(model, folder=Path("elsewhere"), reference="copy")
    assert tokenise(Rows(ROWS.texts, ROWS.labels.copy()), elsewhere, store, max_tokens=16) == first


def test_opening_allocates_no_arrow_memory(model: ModelInfo, store: ArtifactStore) -> None:
    artifact = tokenise(Rows(ROWS.texts * 500, np.tile(ROWS.labels, 500)), model, store, max_tokens=64)
    before = pa.total_allocated_bytes()
    tokens = open_tokens(artifact)
    assert pa.total_allocated_bytes() == before
    assert tokens.ids(1999).tolist() == tokens.ids(3).tolist()


def test_no_rows_at_all(model: ModelInfo, store: ArtifactStore) -> None:
    tokens = open_tokens(tokenise(Rows((), np.array([], dtype=np.int64)), model, store, max_tokens=8))
    assert (len(tokens), tokens.labels.tolist(), tokens.lengths.tolist()) == (0, [], [])
