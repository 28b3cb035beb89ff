"""Measuring deployed graphs: time, memory and size of a shape, its weights filled at random; several side by side."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from spaces.shape import Shape
from spaces.targets import Precision
from trainers import onnx_graph
from trainers.context import Context
from trainers.cost import CostRow, measured_row
from trainers.deploy import ensure_export, load_graph, write_graph
from trainers.measuring import peak_rise_mb, time_in_turn
from trainers.roofline import graph_facts
from trainers.serving import feeds, open_session

Feeds = dict[str, np.ndarray]


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
        request = _request(1, sequence_length)
        session, memory_mb = _load_and_run(file, request)
        reference_session, _ = _load_and_run(reference_file, request)
    times, reference_times = time_in_turn(
        [partial(_call, session, request), partial(_call, reference_session, request)]
    )
    return measured_row(
        times,
        reference_times,
        facts,
        precision=precision,
        shape=shape,
        size_mb=size_mb,
        memory_mb=memory_mb,
        sequence_length=sequence_length,
    )


def time_batches(files: Sequence[Path], *, batch_sizes: Sequence[int], sequence_length: int) -> Iterator[np.ndarray]:
    """For each batch size the time (ms) of every call of every graph, files × calls, the graphs in turn."""
    sessions = [open_session(file) for file in files]
    for batch_size in batch_sizes:
        request = _request(batch_size, sequence_length)
        yield time_in_turn([partial(_call, session, request) for session in sessions])


def _random_graph(shape: Shape, context: Context) -> Any:
    graph, sources = load_graph(ensure_export(shape, context))
    return onnx_graph.fill_randomly(graph, sources)


def _load_and_run(file: Path, request: Feeds) -> tuple[onnxruntime.InferenceSession, float]:
    """A session that has answered, and the MB that this took."""

    def run() -> onnxruntime.InferenceSession:
        session = open_session(file)
        _call(session, request)
        return session

    return peak_rise_mb(run)


def _request(batch_size: int, sequence_length: int) -> Feeds:
    """Rows without padding; how long a graph takes does not depend on which tokens they hold."""
    return feeds(np.ones((batch_size, sequence_length), dtype=np.int64))


def _call(session: onnxruntime.InferenceSession, request: Feeds) -> float:
    started = time.perf_counter()
    session.run(["logits"], request)
    return (time.perf_counter() - started) * 1e3
