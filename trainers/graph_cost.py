"""Measuring a deployed graph: time, memory and size of a shape, its weights filled at random."""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from spaces.shape import Shape
from spaces.targets import TARGETS, Precision
from trainers import onnx_graph
from trainers.context import Context
from trainers.cost import MEASURED, CostRow
from trainers.deploy import ensure_export, load_graph, write_graph
from trainers.measuring import peak_rise_mb, time_in_turn
from trainers.roofline import energy_j, graph_facts
from trainers.serving import feeds, open_session


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
    times, reference_times = time_in_turn(
        lambda: _call(session, sequence_length), lambda: _call(reference_session, sequence_length)
    )
    reference_ms = float(np.median(reference_times))
    ratio = float(np.median(times / reference_times))
    return CostRow(
        shape=shape,
        precision=precision,
        target=MEASURED,
        estimated=False,
        latency_ms=ratio * reference_ms,
        latency_p95_ms=max(ratio * reference_ms, float(np.quantile(times, 0.95))),
        latency_ratio=ratio,
        reference_ms=reference_ms,
        size_mb=size_mb,
        memory_mb=memory_mb,
        energy_j=energy_j(facts, precision, TARGETS[MEASURED]),
        sequence_length=sequence_length,
        **dataclasses.asdict(facts),
    )


def _random_graph(shape: Shape, context: Context) -> Any:
    graph, sources = load_graph(ensure_export(shape, context))
    return onnx_graph.fill_randomly(graph, sources)


def _load_and_run(file: Path, length: int) -> tuple[onnxruntime.InferenceSession, float]:
    """A session that has answered, and the MB that this took."""

    def run() -> onnxruntime.InferenceSession:
        session = open_session(file)
        _call(session, length)
        return session

    return peak_rise_mb(run)


def _call(session: onnxruntime.InferenceSession, length: int) -> float:
    inputs = feeds(np.ones(length, dtype=np.int64))
    started = time.perf_counter()
    session.run(["logits"], inputs)
    return (time.perf_counter() - started) * 1e3
