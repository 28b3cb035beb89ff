"""What it costs to serve a shape at a precision on a target: known before anything is trained.

Weights do not matter: only shapes are measured. Latency is a ratio to a reference that is timed in turn with it, call
by call: what slows the machine slows both, and cancels.
"""

import dataclasses
import io
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spaces.shape import Shape
from spaces.targets import TARGETS, Precision, Target
from trainers.context import Context
from trainers.kinds import kind_of
from trainers.roofline import GraphFacts, energy_j, least_ms
from trainers.storage import Storage

MEASURED = "cpu"
_SHAPE_COLUMNS = [
    ("base", pa.string()),
    ("num_layers", pa.int64()),
    ("vocab_size", pa.int64()),
    ("adapters", pa.struct([("placement", pa.string()), ("reduction", pa.int64())])),
    ("width", pa.float64()),
    ("prefix_tokens", pa.int64()),
    ("reasons", pa.bool_()),
    ("num_shots", pa.int64()),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostRow:
    """What one request costs (batch 1), and what the deployed file takes."""

    shape: Shape
    precision: Precision
    target: str
    estimated: bool
    """Whether it comes from a profile; energy always does."""
    latency_ms: float
    """Median."""
    latency_p95_ms: float
    latency_ratio: float
    """Median time over the reference's on this machine, call by call."""
    reference_ms: float
    """Median time of the reference: the base at full depth, fp32."""
    size_mb: float
    memory_mb: float
    """Peak rise of resident memory from loading and running it."""
    energy_j: float
    sequence_length: int
    """Tokens that go in."""
    flops: float
    weights: float
    activations: float
    num_ops: int
    output_tokens: int = 0
    """Tokens that come out, all of them in ``latency_ms``; 0 where the answer is no text."""
    first_token_ms: float | None = None
    """From the request to the first token, median."""
    token_ms: float | None = None
    """Of each token after the first, median."""

    @property
    def facts(self) -> GraphFacts:
        """The work of one request."""
        return GraphFacts(flops=self.flops, weights=self.weights, activations=self.activations, num_ops=self.num_ops)


def measured_row(
    times: np.ndarray, reference_times: np.ndarray, facts: GraphFacts, *, precision: Precision, **known: Any
) -> CostRow:
    """The row of what was timed here in turn with the reference (ms, call by call); ``known`` are other columns."""
    reference_ms, ratio = float(np.median(reference_times)), float(np.median(times / reference_times))
    return CostRow(
        precision=precision,
        target=MEASURED,
        estimated=False,
        latency_ms=ratio * reference_ms,
        latency_p95_ms=max(ratio * reference_ms, float(np.quantile(times, 0.95))),
        latency_ratio=ratio,
        reference_ms=reference_ms,
        energy_j=energy_j(facts, precision, TARGETS[MEASURED]),
        **known,
        **dataclasses.asdict(facts),
    )


class Probe(Protocol):
    """Measures one shape at one precision; ``probe``, or something that calls it in a fresh process."""

    def __call__(
        self, shape: Shape, precision: Precision, context: Context, *, reference: Shape, sequence_length: int
    ) -> CostRow: ...


def probe(shape: Shape, precision: Precision, context: Context, *, reference: Shape, sequence_length: int) -> CostRow:
    """Measure ``shape`` at ``precision``, as the context's kind serves it, on one thread of this process.

    Memory is a rise of this process's own: run it in one that has measured nothing before.
    """
    measure = kind_of(context).probe
    return measure(shape, precision, context, reference=reference, sequence_length=sequence_length)


def estimate(measured: CostRow, graph_facts: GraphFacts, target: Target) -> CostRow:
    """The row for a target that is not here: its roofline, times measured over least time here."""
    here = least_ms(graph_facts, measured.precision, TARGETS[measured.target])
    factor = least_ms(graph_facts, measured.precision, target) / here
    return dataclasses.replace(
        measured,
        target=target.name,
        estimated=True,
        latency_ms=measured.latency_ms * factor,
        latency_p95_ms=measured.latency_p95_ms * factor,
        energy_j=energy_j(graph_facts, measured.precision, target),
    )


def cost_table(
    shapes: Sequence[Shape],
    precisions: Sequence[Precision],
    targets: Sequence[Target],
    context: Context,
    *,
    reference: Shape,
    sequence_length: int,
    measure: Probe = probe,
    report: Callable[[CostRow], None] = lambda row: None,  # noqa: ARG005
) -> list[CostRow]:
    """A row for every shape, precision and target that can run it. ``report`` hears of each measurement.

    All rows share one ``reference_ms``, the median over the measurements, so that they can be compared.
    """
    measured = []
    for shape in shapes:
        for precision in precisions:
            measured.append(measure(shape, precision, context, reference=reference, sequence_length=sequence_length))
            report(measured[-1])
    rows = _with_one_reference(measured)
    return [_row_for(row, target) for target in targets for row in rows if row.precision in target.runs(context.kind)]


def write_cost_table(rows: Sequence[CostRow], storage: Storage, name: str) -> None:
    """Write the rows as the Parquet file ``name``, a column for each field of the shape."""
    table = pa.Table.from_pylist([_flat(row) for row in rows], schema=_schema())
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write(name, sink.getvalue())


def read_cost_table(storage: Storage, name: str) -> list[CostRow]:
    """The rows of ``write_cost_table``. Raises ``FileNotFoundError`` where there is no such file."""
    rows = pq.read_table(pa.BufferReader(storage.read(name))).to_pylist()
    own = {field.name for field in dataclasses.fields(CostRow)}
    return [
        CostRow(shape=Shape.of_row(row), **{name: value for name, value in row.items() if name in own}) for row in rows
    ]


def _row_for(row: CostRow, target: Target) -> CostRow:
    return row if target.measured else estimate(row, row.facts, target)


def _with_one_reference(rows: Sequence[CostRow]) -> list[CostRow]:
    if not rows:
        return []
    common = statistics.median(row.reference_ms for row in rows)

    def scaled(row: CostRow, value: float | None) -> float | None:
        return None if value is None else value * common / row.reference_ms

    return [
        dataclasses.replace(
            row,
            reference_ms=common,
            latency_ms=row.latency_ratio * common,
            latency_p95_ms=row.latency_p95_ms * common / row.reference_ms,
            first_token_ms=scaled(row, row.first_token_ms),
            token_ms=scaled(row, row.token_ms),
        )
        for row in rows
    ]


def _flat(row: CostRow) -> dict[str, Any]:
    fields = {field.name: getattr(row, field.name) for field in dataclasses.fields(row) if field.name != "shape"}
    return row.shape.model_dump() | fields


def _schema() -> pa.Schema:
    special = {
        "precision": pa.string(),
        "target": pa.string(),
        "estimated": pa.bool_(),
        "sequence_length": pa.int64(),
        "output_tokens": pa.int64(),
        "num_ops": pa.int64(),
    }
    names = [field.name for field in dataclasses.fields(CostRow) if field.name != "shape"]
    columns = [(name, special.get(name, pa.float64())) for name in names]
    return pa.schema([*_SHAPE_COLUMNS, *columns])
