"""What a graph has to compute and to move, and the least time that takes on a target: max(compute, memory) + overhead.

[Williams2009]. An estimate for a target that is not here is calibrated by the ratio of measured to least time on the
one that is.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime

from spaces.targets import Precision, Target

_MATRIX_PRODUCTS = {"MatMul", "Gemm", "Conv"}
_WEIGHT_BYTES: dict[Precision, float] = {"fp32": 4, "bf16": 2, "int8": 1, "int4": 0.5}
_LOOKUPS = {"Gather", "GatherElements"}


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """The work of one request: a graph at batch 1 and one length."""

    flops: float
    """Multiplications and additions of matrix products; the rest is small beside them."""
    weights: float
    """Weights that are read: all but those of embeddings, of which only the looked-up rows are."""
    activations: float
    """Elements that operations write."""
    num_ops: int

    def moved_bytes(self, precision: Precision) -> float:
        """Bytes to and from memory: weights at ``precision``, activations in float32, written and read."""
        return self.weights * _WEIGHT_BYTES[precision] + self.activations * 2 * 4


def graph_facts(graph: onnx.ModelProto, *, sequence_length: int) -> GraphFacts:
    """Count the work of the float32 ``graph``, weights included, for one row of ``sequence_length`` tokens."""
    shapes = _shapes(graph, sequence_length)
    nodes = graph.graph.node
    looked_up = {node.input[0] for node in nodes if node.op_type in _LOOKUPS}
    return GraphFacts(
        flops=sum(_flops(node, shapes) for node in nodes),
        weights=sum(math.prod(tensor.dims) for tensor in graph.graph.initializer if tensor.name not in looked_up),
        activations=sum(math.prod(shapes[name]) for node in nodes for name in node.output if name in shapes),
        num_ops=len(nodes),
    )


def least_ms(facts: GraphFacts, precision: Precision, target: Target) -> float:
    """The roofline's time of one request on ``target``, in milliseconds."""
    compute_s = facts.flops / (target.peak_gflops[precision] * 1e9)
    memory_s = facts.moved_bytes(precision) / (target.bandwidth_gb_s * 1e9)
    return 1e3 * (max(compute_s, memory_s) + facts.num_ops * target.overhead_us_per_op * 1e-6)


def energy_j(facts: GraphFacts, precision: Precision, target: Target) -> float:
    """Energy of one request on ``target``, estimated, in joules."""
    return 1e-12 * (facts.flops * target.pj_per_flop + facts.moved_bytes(precision) * target.pj_per_byte)


def _shapes(graph: onnx.ModelProto, length: int) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by running the graph once with all of them as outputs.

    ONNX's shape inference leaves holes where a size is computed from the input's, as attention masks are.
    """
    open_graph = onnx.ModelProto()
    open_graph.CopyFrom(graph)
    names = list(dict.fromkeys(name for node in graph.graph.node for name in node.output if name))
    del open_graph.graph.output[:]
    open_graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(open_graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    row = np.ones((1, length), dtype=np.int64)
    values = session.run(names, {"input_ids": row, "attention_mask": row})
    given = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    return given | {name: np.shape(value) for name, value in zip(names, values, strict=True)}


def _flops(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> float:
    """2 x output elements x the length of the summed dimension."""
    if node.op_type not in _MATRIX_PRODUCTS:
        return 0.0
    kernel = shapes[node.input[1]]
    summed = math.prod(kernel[1:]) if node.op_type == "Conv" else shapes[node.input[0]][-1]
    return 2.0 * math.prod(shapes[node.output[0]]) * summed
