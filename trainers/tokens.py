"""Tokenised rows: written once per data, tokenizer and length, then memory-mapped by everyone who reads them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from spaces.canonical import fingerprint
from trainers.artifacts import Artifact, ArtifactStore
from trainers.datasets import Rows

if TYPE_CHECKING:
    from trainers.models import ModelInfo

FILE = "tokens.arrow"
_VERSION = 1
_BLOCK_ROWS = 1000


class Tokens:
    """Rows as token ids, mapped from an Arrow file: opening allocates nothing, whatever the number of rows.

    What a loss is computed at are *positions*, numbered on one flat axis over all rows: a row has one or many.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        lists = batch.column("input_ids")
        self._values: np.ndarray = lists.values.to_numpy(zero_copy_only=True)
        self._offsets: np.ndarray = lists.offsets.to_numpy(zero_copy_only=True)
        self.lengths: np.ndarray = np.diff(self._offsets).astype(np.int64)
        """Number of tokens of each row, special ones included, int64."""

    def __len__(self) -> int:
        return len(self.lengths)

    def ids(self, row: int) -> np.ndarray:
        """Token ids of one row, int64; an array of one's own."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside 0 … {len(self) - 1}")
        return self._values[self._offsets[row] : self._offsets[row + 1]].astype(np.int64)

    def take(self, rows: np.ndarray) -> Self:
        """Some of the rows, in the order of their numbers in ``rows``; a copy."""
        return type(self)(self._batch.take(pa.array(rows)))

    def joined(self, other: Self) -> Self:
        """These rows and then those of ``other``; a copy."""
        return type(self)(pa.concat_batches([self._batch, other._batch]))

    def answered(self, rows: np.ndarray, answers: Sequence[Any]) -> Self:
        """Some of the rows, each with another answer in the place of what is right; a copy."""
        raise NotImplementedError

    def num_positions(self, rows: np.ndarray | None = None) -> int:
        """How many positions ``rows`` have; without them, all."""
        raise NotImplementedError

    def targets(self, rows: np.ndarray, *, length: int) -> "Targets":
        """The positions of ``rows``, padded to ``length`` tokens, in order."""
        raise NotImplementedError


class Targets(NamedTuple):
    """The positions of some rows. P = positions; arrays of int64."""

    labels_P: np.ndarray
    """What is right at each position."""
    positions_P: np.ndarray
    """Number of each position on the split's flat axis."""
    places_P: np.ndarray | None
    """Where the answer for each position is among rows × padded length, flat; None: a model gives one answer a row."""


class LabelledTokens(Tokens):
    """Rows with a class each; every row is one position."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        super().__init__(batch)
        self.labels: np.ndarray = batch.column("label").to_numpy(zero_copy_only=True).astype(np.int64)
        """Class of each row, int64; -1 where it has none."""

    def answered(self, rows: np.ndarray, answers: Sequence[int]) -> "LabelledTokens":
        ids = self._batch.column("input_ids").take(pa.array(rows))
        return LabelledTokens(pa.record_batch({"input_ids": ids, "label": pa.array(answers, pa.int32())}))

    def num_positions(self, rows: np.ndarray | None = None) -> int:
        return len(self if rows is None else rows)

    def targets(self, rows: np.ndarray, *, length: int) -> Targets:  # noqa: ARG002
        return Targets(self.labels[rows], rows, None)


def first_difference(one: Tokens, other: Tokens) -> int | None:
    """The first row whose token ids are not the same in both tokenisations of some rows; None where all are."""
    rows = range(len(one))
    return next((row for row in rows if not np.array_equal(one.ids(row), other.ids(row))), None)


def tokenise(rows: Rows, model: "ModelInfo", store: ArtifactStore, *, max_tokens: int) -> Artifact:
    """The tokens of ``rows`` for ``model``, found again if they exist. Longer rows are cut to ``max_tokens`` or to what
    the model takes.
    """
    length = min(max_tokens, model.max_tokens)
    identity = {
        "kind": "tokens",
        "rows": rows.fingerprint,
        "tokenizer": model.tokenizer_fingerprint,
        "max_tokens": length,
        "version": _VERSION,
    }
    name = fingerprint(identity)
    if found := store.find(name):
        return found
    about: dict[str, Any] = {"kind": "tokens", "rows": len(rows.texts), "max_tokens": length}
    with store.publish(name, about) as folder:
        ids = list(_token_ids(rows.texts, model, length))
        about["tokens"] = sum(map(len, ids))
        write_rows(folder / FILE, ids, {"label": pa.array(rows.labels.astype(np.int32))})
    published = store.find(name)
    assert published is not None
    return published


def open_tokens(artifact: Artifact) -> LabelledTokens:
    """The rows of an artifact of ``tokenise``."""
    return LabelledTokens(read_batch(artifact))


def read_batch(artifact: Artifact) -> pa.RecordBatch:
    """The mapped columns of tokenised rows."""
    with pa.memory_map(str(artifact.folder / FILE)) as source:
        return pa.ipc.open_file(source).get_batch(0)


def _token_ids(texts: tuple[str, ...], model: "ModelInfo", length: int) -> Iterator[np.ndarray]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.folder, local_files_only=True, trust_remote_code=False)
    for start in range(0, len(texts), _BLOCK_ROWS):
        block = list(texts[start : start + _BLOCK_ROWS])
        for ids in tokenizer(block, truncation=True, max_length=length, padding=False)["input_ids"]:
            yield np.asarray(ids, dtype=np.int32)


def write_rows(path: Path, ids: Sequence[np.ndarray], columns: Mapping[str, pa.Array]) -> None:
    """Write an Arrow file of the rows' token ids (int32) as ``input_ids``, and of other ``columns``."""
    batch = pa.record_batch({"input_ids": lists(ids), **columns})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def lists(ids: Sequence[np.ndarray]) -> pa.Array:
    """Token ids (int32) of rows as one column."""
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int32)
    values = np.concatenate([*ids, np.empty(0, dtype=np.int32)])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
