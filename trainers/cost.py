"""What it costs to serve a shape at a precision on a target: known before anything is trained.

Weights do not matter, so the graphs are filled at random. Latency is a ratio to a reference graph that is timed in
turn with it, call by call: what slows the machine slows both, and cancels.
"""

import ctypes
import dataclasses
import gc
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from spaces.plan import Shape
from spaces.targets import TARGETS, Precision, Target
from trainers import onnx_graph
from trainers.context import Context
from trainers.deploy import ensure_export, load_graph, write_graph
from trainers.roofline import GraphFacts, energy_j, graph_facts, least_ms
from trainers.serving import feeds, open_session
from trainers.storage import Storage

CALLS = 60
WARM_UP = 10
_MEASURED = "cpu"


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
    flops: float
    weights: float
    activations: float
    num_ops: int

    @property
    def facts(self) -> GraphFacts:
        """The work of one request."""
        return GraphFacts(flops=self.flops, weights=self.weights, activations=self.activations, num_ops=self.num_ops)


class Probe(Protocol):
    """Measures one shape at one precision; ``probe``, or something that calls it in a fresh process."""

    def __call__(
        self, shape: Shape, precision: Precision, context: Context, *, reference: Shape, sequence_length: int
    ) -> CostRow: ...


def probe(shape: Shape, precision: Precision, context: Context, *, reference: Shape, sequence_length: int) -> CostRow:
    """Measure ``shape`` at ``precision`` in ONNX Runtime on one thread of this process.

    Memory is a rise of this process's own: run it in one that has measured nothing before.
    """
    graph = _random_graph(shape, context)
    facts = graph_facts(graph, sequence_length=sequence_length)
    with tempfile.TemporaryDirectory(prefix="distune-") as folder:
        file = write_graph(graph, precision=precision, folder=Path(folder))
        reference_file = write_graph(_random_graph(reference, context), precision="fp32", folder=Path(folder) / "ref")
        del graph
        size_mb = file.stat().st_size / 1e6
        session, memory_mb = _load_and_run(file, sequence_length)
        reference_session, _ = _load_and_run(reference_file, sequence_length)
    times, reference_times = _time_in_turn(session, reference_session, sequence_length)
    reference_ms = float(np.median(reference_times))
    ratio = float(np.median(times / reference_times))
    return CostRow(
        shape=shape,
        precision=precision,
        target=_MEASURED,
        estimated=False,
        latency_ms=ratio * reference_ms,
        latency_p95_ms=max(ratio * reference_ms, float(np.quantile(times, 0.95))),
        latency_ratio=ratio,
        reference_ms=reference_ms,
        size_mb=size_mb,
        memory_mb=memory_mb,
        energy_j=energy_j(facts, precision, TARGETS[_MEASURED]),
        sequence_length=sequence_length,
        **dataclasses.asdict(facts),
    )


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
    return [_row_for(row, target) for target in targets for row in rows if row.precision in target.precisions]


def write_cost_table(rows: Sequence[CostRow], storage: Storage, name: str) -> None:
    """Write the rows as the Parquet file ``name``, the shape as the columns ``base`` and ``num_layers``."""
    table = pa.Table.from_pylist([_flat(row) for row in rows], schema=_schema())
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write(name, sink.getvalue())


def read_cost_table(storage: Storage, name: str) -> list[CostRow]:
    """The rows of ``write_cost_table``. Raises ``FileNotFoundError`` where there is no such file."""
    rows = pq.read_table(pa.BufferReader(storage.read(name))).to_pylist()
    return [CostRow(shape=Shape(base=row.pop("base"), num_layers=row.pop("num_layers")), **row) for row in rows]


def _row_for(row: CostRow, target: Target) -> CostRow:
    return row if target.measured else estimate(row, row.facts, target)


def _with_one_reference(rows: Sequence[CostRow]) -> list[CostRow]:
    if not rows:
        return []
    common = statistics.median(row.reference_ms for row in rows)
    return [
        dataclasses.replace(
            row,
            reference_ms=common,
            latency_ms=row.latency_ratio * common,
            latency_p95_ms=row.latency_p95_ms * common / row.reference_ms,
        )
        for row in rows
    ]


def _random_graph(shape: Shape, context: Context) -> Any:
    graph, sources = load_graph(ensure_export(shape, context))
    return onnx_graph.fill_randomly(graph, sources)


def _load_and_run(file: Path, length: int) -> tuple[onnxruntime.InferenceSession, float]:
    """A session that has answered, and by how many MB (10⁶ bytes) the process's peak rose above what it held before."""
    _release_free_memory()
    before = psutil.Process().memory_info().rss
    session = open_session(file)
    _call(session, length)
    return session, max(0.0, (_peak_bytes() - before) / 1e6)


def _release_free_memory() -> None:
    """Give freed memory back and start the peak anew, where the system can (Linux with glibc)."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return


def _peak_bytes() -> int:
    """The peak of resident memory since it was started anew; elsewhere than on Linux, what is resident now."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return int(psutil.Process().memory_info().rss)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _time_in_turn(
    session: onnxruntime.InferenceSession, reference: onnxruntime.InferenceSession, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Times of both in ms, call by call; which goes first alternates, since the second finds the caches fuller."""
    times = np.empty((CALLS, 2))
    for call in range(-WARM_UP, CALLS):
        for which in (0, 1) if call % 2 else (1, 0):
            elapsed = _call((session, reference)[which], length)
            if call >= 0:
                times[call, which] = elapsed
    return times[:, 0], times[:, 1]


def _call(session: onnxruntime.InferenceSession, length: int) -> float:
    inputs = feeds(np.ones(length, dtype=np.int64))
    started = time.perf_counter()
    session.run(["logits"], inputs)
    return (time.perf_counter() - started) * 1e3


def _flat(row: CostRow) -> dict[str, Any]:
    fields = {field.name: getattr(row, field.name) for field in dataclasses.fields(row) if field.name != "shape"}
    return {"base": row.shape.base, "num_layers": row.shape.num_layers} | fields


def _schema() -> pa.Schema:
    special = {
        "precision": pa.string(),
        "target": pa.string(),
        "estimated": pa.bool_(),
        "sequence_length": pa.int64(),
        "num_ops": pa.int64(),
    }
    names = [field.name for field in dataclasses.fields(CostRow) if field.name != "shape"]
    columns = [(name, special.get(name, pa.float64())) for name in names]
    return pa.schema([("base", pa.string()), ("num_layers", pa.int64()), *columns])
