"""Costs: work counted against torch's own count, estimates by hand, a real probe, the table there and back."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_models import tiny_causal, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from spaces.shape import Adapters, Shape
from spaces.targets import TARGETS, Precision
from trainers import onnx_graph
from trainers.causal_models import load_causal
from trainers.context import Context
from trainers.cost import CostRow, cost_table, estimate, probe, read_cost_table, write_cost_table
from trainers.generate import start, step
from trainers.generation_cost import Request, request_facts
from trainers.models import load_classifier
from trainers.roofline import GraphFacts, energy_j, graph_facts, least_ms
from trainers.storage import Storage

FACTS = GraphFacts(flops=6e8, weights=1e6, activations=5e5, num_ops=100)
BASE = Shape(base="base")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    root = tmp_path_factory.mktemp("cost")
    base = tiny_model(root / "base", num_layers=2)
    return Context(
        artifacts=str(root / "artifacts"),
        cache=str(root / "cache"),
        models={"base": str(base)},
        tokens={},
        labels=("cat", "dog"),
    )


def row(
    precision: Precision = "fp32",
    *,
    num_layers: int | None = None,
    vocab_size: int | None = None,
    ratio: float = 0.5,
    reference: float = 8,
) -> CostRow:
    return CostRow(
        shape=Shape(base="base", num_layers=num_layers, vocab_size=vocab_size),
        precision=precision,
        target="cpu",
        estimated=False,
        latency_ms=ratio * reference,
        latency_p95_ms=1.5 * ratio * reference,
        latency_ratio=ratio,
        reference_ms=reference,
        size_mb=4.0,
        memory_mb=10.0,
        energy_j=0.01,
        sequence_length=16,
        **dataclasses.asdict(FACTS),
    )


def test_the_work_is_what_torch_counts(tmp_path: Path) -> None:
    model = load_classifier(tiny_model(tmp_path, "distilbert", num_layers=1), labels=("cat", "dog"))
    model.set_attn_implementation("eager")  # torch counts no fused attention on a processor
    ids = torch.ones(1, 12, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=ids)
    found = graph_facts(onnx_graph.trace(model), sequence_length=12)
    assert found.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert found.num_ops > 20


def test_embeddings_are_looked_up_not_read(tmp_path: Path) -> None:
    model = load_classifier(tiny_model(tmp_path, num_layers=1), labels=("cat", "dog"))
    onnx_graph.randomise(model, seed=0)  # the exporter merges equal weights, such as biases of zero
    found = graph_facts(onnx_graph.trace(model), sequence_length=12)
    tables = sum(part.weight.numel() for part in model.modules() if isinstance(part, torch.nn.Embedding))
    total = sum(weight.numel() for weight in model.parameters())
    assert found.weights == pytest.approx(total - tables, rel=0.01)


def test_the_roofline_by_hand() -> None:
    cpu = TARGETS["cpu"]
    assert least_ms(FACTS, "fp32", cpu) == pytest.approx(1e3 * (6e8 / 60e9 + 100 * 2e-6))
    heavy = dataclasses.replace(FACTS, weights=5e7)
    assert least_ms(heavy, "fp32", cpu) == pytest.approx(1e3 * ((5e7 * 4 + 5e5 * 8) / 12e9 + 100 * 2e-6))
    assert heavy.moved_bytes("int8") == pytest.approx(5e7 + 5e5 * 8)
    assert energy_j(FACTS, "int8", cpu) == pytest.approx(6e8 * 30e-12 + (1e6 + 4e6) * 60e-12)


def test_an_estimate_is_the_measurement_scaled() -> None:
    measured = row("int8")
    found = estimate(measured, FACTS, TARGETS["phone"])
    factor = least_ms(FACTS, "int8", TARGETS["phone"]) / least_ms(FACTS, "int8", TARGETS["cpu"])
    assert (found.target, found.estimated) == ("phone", True)
    assert found.latency_ms == pytest.approx(measured.latency_ms * factor)
    assert found.latency_p95_ms == pytest.approx(measured.latency_p95_ms * factor)
    assert (found.size_mb, found.shape, found.precision) == (measured.size_mb, measured.shape, "int8")


def test_a_table_has_one_reference_and_every_row(context: Context) -> None:
    references = iter([8.0, 10.0, 30.0, 9.0])
    heard = []

    def measure(shape: Shape, precision: Precision, *_: object, **__: object) -> CostRow:
        return dataclasses.replace(row(precision, reference=next(references)), shape=shape)

    shapes = [Shape(base="base", num_layers=1), BASE]
    rows = cost_table(
        shapes,
        ["fp32", "int8"],
        [TARGETS["cpu"], TARGETS["phone"]],
        context,
        reference=BASE,
        sequence_length=16,
        measure=measure,
        report=heard.append,
    )
    assert [(found.target, found.shape, found.precision) for found in rows] == [
        (target, shape, precision) for target in ("cpu", "phone") for shape in shapes for precision in ("fp32", "int8")
    ]
    assert {found.reference_ms for found in rows} == {9.5}
    assert [found.latency_ms for found in rows if found.target == "cpu"] == [4.75] * 4
    assert [found.latency_p95_ms for found in rows if found.target == "cpu"] == pytest.approx([7.125] * 4)
    assert len(heard) == 4


def test_a_table_without_shapes(context: Context) -> None:
    assert cost_table([], ["fp32"], [TARGETS["cpu"]], context, reference=BASE, sequence_length=16) == []


def test_a_probe_measures_the_deployed_graph(context: Context) -> None:
    full = probe(BASE, "fp32", context, reference=BASE, sequence_length=16)
    small = probe(Shape(base="base", num_layers=1), "int8", context, reference=BASE, sequence_length=16)
    assert (small.target, small.estimated, small.shape.num_layers, small.precision) == ("cpu", False, 1, "int8")
    assert 0 < small.size_mb < full.size_mb
    assert small.flops < full.flops
    for found in (full, small):
        assert found.memory_mb >= 0
        assert found.latency_ms == pytest.approx(found.latency_ratio * found.reference_ms)
        assert 0 < found.latency_ms <= found.latency_p95_ms
        assert found.sequence_length == 16


def test_the_table_there_and_back(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    adapted = Shape(base="base", num_layers=2, adapters=Adapters(placement="houlsby", reduction=4))
    with_adapters = dataclasses.replace(row(), shape=adapted)
    rows = [row(), row("int8", num_layers=3, vocab_size=60), with_adapters, estimate(row(), FACTS, TARGETS["phone"])]
    write_cost_table(rows, storage, "cost_table.parquet")
    assert read_cost_table(storage, "cost_table.parquet") == rows
    with pytest.raises(FileNotFoundError):
        read_cost_table(storage, "other.parquet")


def test_a_table_of_an_earlier_version(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    write_cost_table([row(num_layers=3)], storage, "cost_table.parquet")
    table = pq.read_table(tmp_path / "cost_table.parquet")
    pq.write_table(table.drop_columns(["vocab_size", "adapters"]), tmp_path / "cost_table.parquet")
    assert read_cost_table(storage, "cost_table.parquet") == [row(num_layers=3)]


# Generation -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writing(tmp_path_factory: pytest.TempPathFactory) -> Context:
    root = tmp_path_factory.mktemp("writing")
    models = {kind: str(tiny_causal(root / kind, kind)) for kind in ("llama", "gpt2")}
    return Context(
        artifacts=str(root / "artifacts"),
        cache=str(root / "cache"),
        models=models,
        tokens={},
        labels=(),
        kind="generation",
        output_tokens=5,
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_work_of_writing_is_what_torch_counts(writing: Context, kind: str) -> None:
    model = load_causal(Path(writing.models[kind]))
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        state, token = start(model, [np.ones(12, dtype=np.int64)], pad_id=0)
        for _ in range(4):
            token = step(model, state, token)
    found = request_facts(model, Request(12, 5))
    # The prompt's upper triangle, which nothing looks at, is computed all the same.
    assert found.flops == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_a_probe_of_writing_measures_first_and_later_tokens(writing: Context) -> None:
    base = Shape(base="llama")
    full = probe(base, "fp32", writing, reference=base, sequence_length=8)
    small = probe(Shape(base="llama", num_layers=1), "int8", writing, reference=base, sequence_length=8)
    assert 0 < small.size_mb < full.size_mb / 3
    assert 0 < small.flops < full.flops
    for found in (full, small):
        assert (found.sequence_length, found.output_tokens, found.estimated) == (8, 5, False)
        assert found.first_token_ms is not None and found.token_ms is not None
        assert found.latency_ms == pytest.approx(found.first_token_ms + 4 * found.token_ms)
        assert 0 < found.first_token_ms < found.latency_ms <= found.latency_p95_ms
        assert found.latency_ms == pytest.approx(found.latency_ratio * found.reference_ms)


def test_parts_of_a_request_share_the_tables_reference(writing: Context, tmp_path: Path) -> None:
    references = iter([8.0, 12.0])

    def measure(shape: Shape, precision: Precision, *_: object, **__: object) -> CostRow:
        found = row(precision, reference=next(references))
        return dataclasses.replace(found, shape=shape, output_tokens=3, first_token_ms=2.0, token_ms=1.0)

    rows = cost_table(
        [Shape(base="llama")],
        ["fp32", "int8"],
        [TARGETS["cpu"]],
        writing,
        reference=BASE,
        sequence_length=8,
        measure=measure,
    )
    assert [(found.first_token_ms, found.token_ms) for found in rows] == [
        pytest.approx((2.0 * 10 / 8, 10 / 8)),
        pytest.approx((2.0 * 10 / 12, 10 / 12)),
    ]
    write_cost_table(rows, Storage(tmp_path), "costs.parquet")
    assert read_cost_table(Storage(tmp_path), "costs.parquet") == rows
