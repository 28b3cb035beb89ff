"""Measuring a packed model that writes: time to the first token and for each later one, memory and size of a shape.

Its weights are those of the base, cut: how long a request takes does not depend on them, since it is not ended early.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spaces.methods.cut import spread
from spaces.shape import Shape
from spaces.targets import Precision
from trainers.causal_models import load_causal
from trainers.context import Context
from trainers.cost import CostRow, measured_row
from trainers.generate import start, step
from trainers.measuring import peak_rise_mb, time_in_turn
from trainers.models import PREFIX, add_bottlenecks, add_prefix, select_layers
from trainers.packed import open_packed, weight_matrix, write_packed
from trainers.roofline import GraphFacts
from trainers.width import narrow

CALLS = 30
WARM_UP = 3
"""A request takes as many steps as it has tokens, so fewer of them are as sure as of a classifier's."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a model when it is measured."""

    prompt_tokens: int
    output_tokens: int
    """At least 1."""
    batch_size: int = 1
    """How many prompts are answered together."""


def probe(
    shape: Shape, precision: Precision, context: Context, *, reference: Shape, request: Request, plain: Request
) -> CostRow:
    """Measure ``shape`` at ``precision`` in torch, on one thread of this process, as it answers ``request``.

    The reference answers ``plain``, the same one beside every shape: costs are ratios to it.

    Memory is a rise of this process's own: run it in one that has measured nothing before.
    """
    torch.set_num_threads(1)
    facts = request_facts(_cut(shape, context), request)
    with tempfile.TemporaryDirectory(prefix="distune-") as folder:
        file = write_packed(_cut(shape, context), precision=precision, folder=Path(folder))
        reference_file = write_packed(_cut(reference, context), precision="fp32", folder=Path(folder) / "ref")
        size_mb = file.stat().st_size / 1e6
        model, memory_mb = peak_rise_mb(lambda: _open_and_answer(file, request))
        reference_model = _open_and_answer(reference_file, plain)
    firsts: list[float] = []
    times, reference_times = time_in_turn(
        [_stopwatch(model, request, firsts), _stopwatch(reference_model, plain, [])], calls=CALLS, warm_up=WARM_UP
    )
    row = measured_row(
        times,
        reference_times,
        facts,
        precision=precision,
        shape=shape,
        size_mb=size_mb,
        memory_mb=memory_mb,
        sequence_length=request.prompt_tokens,
        output_tokens=request.output_tokens,
    )
    # What the machine did in the meantime has to cancel in the parts as it does in the whole.
    first_token_ms = row.latency_ms * float(np.median(np.array(firsts[-CALLS:]) / times))
    token_ms = (row.latency_ms - first_token_ms) / max(1, request.output_tokens - 1)
    return dataclasses.replace(row, first_token_ms=first_token_ms, token_ms=token_ms)


def time_batches(
    files: Sequence[Path], requests: Sequence[Request], *, batch_sizes: Sequence[int]
) -> Iterator[np.ndarray]:
    """For each batch size the time (ms) of every call of every packed model, files × calls, the models in turn; each
    answers so many of the request that stands in its place.
    """
    torch.set_num_threads(1)
    models = [open_packed(file) for file in files]
    for batch_size in batch_sizes:
        batches = [dataclasses.replace(request, batch_size=batch_size) for request in requests]
        calls = [_stopwatch(model, batch, []) for model, batch in zip(models, batches, strict=True)]
        yield time_in_turn(calls, calls=CALLS, warm_up=WARM_UP)


def request_facts(model: Any, request: Request) -> GraphFacts:
    """The work of one request to a causal ``model`` that is not packed: matrices are read once for the prompt and once
    for each later token. What attention adds is counted in operations, but moves little.
    """
    matrices = [matrix for module in model.modules() if (matrix := weight_matrix(module)) is not None]
    sizes, outputs = [matrix.numel() for matrix in matrices], [matrix.shape[0] for matrix in matrices]
    head = model.get_output_embeddings().weight.numel()
    config, passes = model.config, request.output_tokens
    read = request.prompt_tokens + passes - 1
    attended = sum(range(1, read + 1)) + read * getattr(config, PREFIX, 0)
    attention = 4 * attended * config.num_hidden_layers * config.hidden_size
    return GraphFacts(
        flops=float(2 * ((sum(sizes) - head) * read + head * passes) + attention),
        weights=float(sum(sizes) * passes),
        activations=float(sum(outputs) * read),
        num_ops=len(sizes) * passes,
    )


def _cut(shape: Shape, context: Context) -> Any:
    """The base of ``shape`` with as much of its width and as many layers as it says, and with adapters and a prefix
    where it has them.
    """
    model: Any = load_causal(context.base_folder(shape.base))
    if shape.width is not None:
        model = narrow(model, shape.width)
    if shape.num_layers is not None:
        model = select_layers(model, spread(model.config.num_hidden_layers, shape.num_layers))
    if shape.adapters is not None:
        model = add_bottlenecks(model, shape.adapters)
    return add_prefix(model, shape.prefix_tokens) if shape.prefix_tokens else model


def _open_and_answer(file: Path, request: Request) -> Any:
    model = open_packed(file)
    _answer(model, request)
    return model


def _stopwatch(model: Any, request: Request, firsts: list[float]) -> Callable[[], float]:
    """A call that answers once: its time in ms, that to the first token appended to ``firsts``."""

    def call() -> float:
        whole, first = _answer(model, request)
        firsts.append(first)
        return whole

    return call


@torch.inference_mode()
def _answer(model: Any, request: Request) -> tuple[float, float]:
    """Time of a whole request, and that to its first token, in ms."""
    started = time.perf_counter()
    prompt = np.ones(request.prompt_tokens, dtype=np.int64)
    state, token = start(model, [prompt] * request.batch_size, pad_id=0)
    first = time.perf_counter()
    for _ in range(request.output_tokens - 1):
        token = step(model, state, token)
    return (time.perf_counter() - started) * 1e3, (first - started) * 1e3
