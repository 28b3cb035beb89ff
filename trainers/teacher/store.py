"""Teacher outputs in a folder: written in blocks as the teacher answers, memory-mapped when read.

``teacher.arrow`` has one entry a position, in the order in which they were written, a record batch for each block. A
position is a row of the data (classification) or a token of a row (generation). ``rows.arrow`` says where each row's
positions begin and how many they are; it is missing where position i is row i.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch import Tensor

from trainers.losses import Targets
from trainers.model_files import ModelError
from trainers.teacher.forms import Columns, Form, form_note, noted_form

FILE = "teacher.arrow"
ROWS_FILE = "rows.arrow"
_NOTE = b"distune"


@dataclass(frozen=True)
class Block:
    """A teacher's answers at the positions of some rows, in a form, not written yet."""

    rows: np.ndarray
    lengths: np.ndarray
    batch: pa.RecordBatch

    @classmethod
    def of(
        cls, form: Form, rows: Sequence[int] | np.ndarray, logits_PC: Tensor, *, lengths: np.ndarray | None = None
    ) -> "Block":
        """The block of ``logits_PC`` at the positions of ``rows``, the first row's first.

        Args:
            form: in which they are kept.
            rows: their numbers, in any order.
            logits_PC: positions × classes, on any device.
            lengths: how many positions each row has, 0 or more; left out, each has one.

        Raises:
            ValueError: ``lengths`` are not those of ``rows`` or do not add up to the positions of ``logits_PC``.
        """
        rows = np.asarray(rows, dtype=np.int64)
        lengths = np.ones_like(rows) if lengths is None else np.asarray(lengths, dtype=np.int64)
        if len(lengths) != len(rows) or lengths.sum() != len(logits_PC):
            raise ValueError(
                f"every row must have its positions, but got {len(rows)} rows, {len(lengths)} lengths with a sum of "
                f"{lengths.sum()}, and logits of {len(logits_PC)} positions"
            )
        batch = pa.record_batch(form.encode(logits_PC.detach(), rows, lengths))
        if note := form_note(form):
            batch = batch.replace_schema_metadata({_NOTE: json.dumps(note, sort_keys=True)})
        return cls(rows, lengths, batch)


class OutputsWriter:
    """Takes a teacher's answers block by block; made by ``write_outputs``."""

    def __init__(self, sink: pa.NativeFile, form: Form) -> None:
        self._sink, self._form = sink, form
        self._file: pa.ipc.RecordBatchFileWriter | None = None
        self._rows: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []

    def add(self, rows: Sequence[int] | np.ndarray, logits_PC: Tensor, *, lengths: np.ndarray | None = None) -> None:
        """Write a block, given as ``Block.of`` takes it. In all of them together each row comes once."""
        self.write(Block.of(self._form, rows, logits_PC, lengths=lengths))

    def write(self, block: Block) -> None:
        """Write a block of the writer's form."""
        if self._file is None:
            self._file = pa.ipc.new_file(self._sink, block.batch.schema)
        self._file.write_batch(block.batch)
        self._rows.append(block.rows)
        self._lengths.append(block.lengths)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """End the file; where each row's positions begin, and how many they are.

        Raises:
            ValueError: nothing was written, or a row is missing or came twice.
        """
        if self._file is None:
            raise ValueError("teacher outputs must have at least one block, but nothing was written")
        self._file.close()
        rows, lengths = np.concatenate(self._rows), np.concatenate(self._lengths)
        times = np.bincount(rows)
        if (times != 1).any():
            wrong = int((times != 1).argmax())
            raise ValueError(f"every row must be written once, but row {wrong} was written {times[wrong]} times")
        order = np.argsort(rows)
        return (np.cumsum(lengths) - lengths)[order], lengths[order]


@contextlib.contextmanager
def write_outputs(folder: Path, form: Form) -> Iterator[OutputsWriter]:
    """A writer of outputs in the form ``form`` into ``folder``, complete when the block ends without an error."""
    with pa.OSFile(str(folder / FILE), "wb") as sink:
        writer = OutputsWriter(sink, form)
        yield writer
        starts, lengths = writer.finish()
    if np.array_equal(starts, np.arange(len(starts))) and (lengths == 1).all():
        return
    batch = pa.record_batch({"start": pa.array(starts), "length": pa.array(lengths)})
    with pa.OSFile(str(folder / ROWS_FILE), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as file:
        file.write_batch(batch)


class Outputs:
    """Teacher outputs, mapped from their files: opening copies nothing, whatever the number of positions."""

    def __init__(self, form: Form, batches: Sequence[pa.RecordBatch], rows: pa.RecordBatch | None) -> None:
        self.form = form
        self.blocks: tuple[Columns, ...] = tuple(map(form.columns, batches))
        """What the form keeps of the positions of each block that was written."""
        self._bounds = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self._starts: np.ndarray | None = None
        if rows is not None:
            self._starts, self._lengths = (rows.column(i).to_numpy(zero_copy_only=True) for i in range(2))

    def __len__(self) -> int:
        return self.num_positions if self._starts is None else len(self._starts)

    @property
    def num_positions(self) -> int:
        """Of all rows."""
        return int(self._bounds[-1])

    def read(self, rows: Sequence[int] | np.ndarray) -> Targets:
        """What a loss takes for the positions of ``rows``, one row's after another's, on the processor."""
        nothing = self.form.cut(self.blocks[0], slice(0, 0))
        cuts = [nothing, *(self._cut(int(row)) for row in rows)]
        return self.form.targets(*(np.concatenate(column) for column in zip(*cuts, strict=True)))

    def _cut(self, row: int) -> Columns:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside 0 … {len(self) - 1}")
        start, length = (row, 1) if self._starts is None else (int(self._starts[row]), int(self._lengths[row]))
        # A row lies in one block. One of no positions may begin where the last block ends.
        block = min(int(np.searchsorted(self._bounds, start, side="right")), len(self.blocks)) - 1
        first = start - int(self._bounds[block])
        return self.form.cut(self.blocks[block], slice(first, first + length))


def open_outputs(folder: Path, *, temperature: float) -> Outputs:
    """The outputs in ``folder``, to be used at ``temperature``.

    Raises:
        ModelError: they were kept in a form that fixes the temperature, at another one.
    """
    note, batches = _map(folder / FILE)
    form = noted_form(note)
    if form.fixed_temperature not in (None, temperature):
        raise ModelError(
            f"{folder / FILE}: teacher outputs were kept at temperature {form.fixed_temperature:g} and cannot be used "
            f"at {temperature:g}; distil at {form.fixed_temperature:g}, write them anew, or keep them in full"
        )
    rows = _map(folder / ROWS_FILE)[1][0] if (folder / ROWS_FILE).exists() else None
    return Outputs(form, batches, rows)


def _map(path: Path) -> tuple[dict, list[pa.RecordBatch]]:
    """The note beside an Arrow file's schema, and its blocks."""
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        note = json.loads((file.schema.metadata or {}).get(_NOTE, b"{}"))
        return note, [file.get_batch(i) for i in range(file.num_record_batches)]
