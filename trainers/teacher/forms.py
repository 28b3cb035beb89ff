"""The forms in which a teacher's distributions are kept: what is written of each, and what a loss gets back.

Shapes: P = positions, C = classes or vocabulary, K = kept classes, N = draws, later distinct drawn classes.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from trainers.draws import drawn_classes
from trainers.losses import SampledTargets, Targets, TopKTargets
from trainers.losses.reduction import log_softmax

Columns = tuple[np.ndarray, ...]
_MAX_DRAWS = np.iinfo(np.uint16).max


class Form(Protocol):
    """One way to keep distributions. Its settings are the fields of a frozen dataclass."""

    @property
    def fixed_temperature(self) -> float | None:
        """The only temperature at which it can be used; None if that is decided when reading."""

    def encode(self, logits_PC: Tensor, rows: np.ndarray, lengths: np.ndarray, /) -> dict[str, pa.Array]:
        """What is written of the positions of ``rows``, of which each has ``lengths`` of them, one after another."""

    def columns(self, batch: pa.RecordBatch, /) -> Columns:
        """What was written, mapped: nothing is copied."""

    def cut(self, columns: Columns, positions: slice, /) -> Columns:
        """Of some columns, some positions; joined, cuts can be handed to ``targets``."""

    def targets(self, *columns: np.ndarray) -> Targets:
        """What a loss takes; memory of its own."""


@dataclass(frozen=True)
class Full:
    """Every class's log-probability at temperature 1, float32: 4 C bytes a position."""

    @property
    def fixed_temperature(self) -> None:
        """Any temperature will do."""

    def encode(self, logits_PC: Tensor, _rows: np.ndarray, _lengths: np.ndarray, /) -> dict[str, pa.Array]:
        """Rows × classes."""
        return {"log_probs": _lists(log_softmax(logits_PC).float().cpu().numpy())}

    def columns(self, batch: pa.RecordBatch, /) -> Columns:
        """Log-probabilities P × C."""
        return (_matrix(batch.column("log_probs")),)

    def cut(self, columns: Columns, positions: slice, /) -> Columns:
        """Rows of the matrix."""
        return tuple(column[positions] for column in columns)

    def targets(self, *columns: np.ndarray) -> Tensor:
        """Log-probabilities P × C at temperature 1, which a loss takes as logits."""
        (log_probs_PC,) = columns
        return torch.from_numpy(log_probs_PC)


@dataclass(frozen=True)
class TopK:
    """The ``k`` likeliest classes, and the probability of all others in one: 6 k + 4 bytes a position (8 k + 4 where
    there are more than 65,536 classes).

    The tail's probability at one temperature does not tell what it is at another, so that is fixed when writing.
    """

    k: int
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.k < 1 or self.temperature <= 0:
            raise ValueError(f"k must be 1 or more and temperature above 0, but got {self}")

    @property
    def fixed_temperature(self) -> float:
        """That of the tail."""
        return self.temperature

    def encode(self, logits_PC: Tensor, _rows: np.ndarray, _lengths: np.ndarray, /) -> dict[str, pa.Array]:
        """Class ids and their log-probabilities, float32, likeliest first, and the tail's.

        Raises:
            ValueError: there are fewer classes than ``k``.
        """
        num_classes = logits_PC.shape[-1]
        if self.k > num_classes:
            raise ValueError(f"k must be at most the number of classes, {num_classes}, but got {self.k}")
        log_probs_PC = log_softmax(logits_PC, temperature=self.temperature)
        log_probs_PK, ids_PK = log_probs_PC.topk(self.k)
        log_tail_P = log_probs_PC.scatter(-1, ids_PK, -torch.inf).logsumexp(dim=-1)
        return {
            "ids": _lists(ids_PK.cpu().numpy().astype(_id_type(num_classes))),
            "log_probs": _lists(log_probs_PK.float().cpu().numpy()),
            "log_tail": pa.array(log_tail_P.float().cpu().numpy()),
        }

    def columns(self, batch: pa.RecordBatch, /) -> Columns:
        """Ids P × K, log-probabilities P × K, log-probability of the tail P."""
        tail = batch.column("log_tail").to_numpy(zero_copy_only=True)
        return _matrix(batch.column("ids")), _matrix(batch.column("log_probs")), tail

    def cut(self, columns: Columns, positions: slice, /) -> Columns:
        """The same rows of all three."""
        return tuple(column[positions] for column in columns)

    def targets(self, *columns: np.ndarray) -> TopKTargets:
        """For ``top_k_forward_kl``."""
        ids_PK, log_probs_PK, log_tail_P = columns
        return TopKTargets(
            ids_PK=torch.from_numpy(ids_PK.astype(np.int64)),
            log_probs_PK=torch.from_numpy(log_probs_PK),
            log_tail_P=torch.from_numpy(log_tail_P),
            temperature=self.temperature,
        )


@dataclass(frozen=True)
class Sampled:
    """``num_draws`` draws with replacement, as distinct classes and counts. [Anshumann2025]

    Unbiased, unlike the top k: the gradient's expectation is that of the whole distribution. A distinct class costs 3
    bytes (more than 65,536 classes: 5; more than 255 draws: 1 more), a position 4: 50 draws from a language model's
    distribution fall on 10 to 20 classes. The luck of a row depends on ``seed`` and its number alone, not on the order
    or the blocks in which rows are written.
    """

    num_draws: int = 50
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_draws <= _MAX_DRAWS or self.temperature <= 0 or self.seed < 0:
            raise ValueError(
                f"num_draws must be 1 to {_MAX_DRAWS}, temperature above 0 and seed 0 or more, but got {self}"
            )

    @property
    def fixed_temperature(self) -> float:
        """That of the distribution drawn from."""
        return self.temperature

    def encode(self, logits_PC: Tensor, rows: np.ndarray, lengths: np.ndarray, /) -> dict[str, pa.Array]:
        """A list of each position's distinct classes, lowest first, with their counts."""
        num_positions, num_classes = logits_PC.shape
        drawn_PN = self._draw(logits_PC, rows, lengths)
        places, counts = np.unique(drawn_PN + num_classes * np.arange(num_positions)[:, None], return_counts=True)
        ends = np.cumsum(np.bincount(places // num_classes, minlength=num_positions))
        ids = pa.array((places % num_classes).astype(_id_type(num_classes)))
        kept = pa.array(counts.astype(np.uint8 if self.num_draws <= np.iinfo(np.uint8).max else np.uint16))
        offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
        return {"draws": pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays([ids, kept], ["id", "count"]))}

    def columns(self, batch: pa.RecordBatch, /) -> Columns:
        """Where each position's classes begin, and the last one's end; ids; counts."""
        lists = batch.column("draws")
        fields = (lists.values.field(name) for name in ("id", "count"))
        return tuple(array.to_numpy(zero_copy_only=True) for array in (lists.offsets, *fields))

    def cut(self, columns: Columns, positions: slice, /) -> Columns:
        """How many classes each position has, ids, counts."""
        offsets, *values = columns
        bounds = offsets[positions.start : positions.stop + 1]
        return np.diff(bounds), *(column[bounds[0] : bounds[-1]] for column in values)

    def targets(self, *columns: np.ndarray) -> SampledTargets:
        """For ``sampled_forward_kl``."""
        widths_P, ids, counts = columns
        filled_PN = np.arange(widths_P.max(initial=1)) < widths_P[:, None]
        ids_PN, counts_PN = np.zeros((2, *filled_PN.shape), dtype=np.int64)
        ids_PN[filled_PN], counts_PN[filled_PN] = ids, counts
        return SampledTargets(torch.from_numpy(ids_PN), torch.from_numpy(counts_PN), self.temperature)

    def _draw(self, logits_PC: Tensor, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Classes, P × N."""
        luck_PN = torch.from_numpy(np.concatenate(list(self._luck(rows, lengths)))).to(logits_PC.device)
        return drawn_classes(logits_PC, luck_PN, temperature=self.temperature).cpu().numpy()

    def _luck(self, rows: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
        for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
            yield np.random.default_rng([self.seed, row]).random((length, self.num_draws))


_NAMES: dict[type, str] = {TopK: "top_k", Sampled: "sampled"}


def form_note(form: Form) -> dict[str, Any]:
    """What is written down about a form; nothing about ``Full``, as nothing was when there was no other."""
    if isinstance(form, Full):
        return {}
    return {"form": _NAMES[type(form)], **asdict(form)}  # type: ignore[call-overload]


def noted_form(note: dict[str, Any]) -> Form:
    """The form about which ``note`` was written."""
    if not note:
        return Full()
    named = {name: kind for kind, name in _NAMES.items()}
    settings = {key: value for key, value in note.items() if key != "form"}
    form: Form = named[note["form"]](**settings)
    return form


def _id_type(num_classes: int) -> type[np.unsignedinteger]:
    return np.uint16 if num_classes <= np.iinfo(np.uint16).max + 1 else np.uint32


def _lists(matrix: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def _matrix(column: pa.FixedSizeListArray) -> np.ndarray:
    # Not `flatten()`, which would copy.
    return column.values.to_numpy(zero_copy_only=True).reshape(len(column), column.type.list_size)
