"""A classifier as an ONNX graph whose weights can be replaced, so that one export serves every model of a shape.

The exporter renames and transposes weights. Where each one went is found by its content, with random weights that
are all different, and proved with a second set: the graph, filled with it by that map, must answer as torch does.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Weights = Mapping[str, np.ndarray]

TOLERANCE = 1e-4
_PREPROCESSED = ("onnx.quant.pre_process", "onnxruntime.quant")
_NOISY_LOGGERS = ("torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnx_ir")


class Source(NamedTuple):
    """Where the values of a graph's initialiser come from."""

    tensor: str
    """Name in the model's state dict."""
    transposed: bool


Sources = Mapping[str, Source]
"""The source of each initialiser that is a weight, by its name in the graph."""


class _Logits(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def trace(model: "PreTrainedModel") -> onnx.ModelProto:
    """Export ``model``: ``input_ids`` and ``attention_mask`` (int64, batch x length) to ``logits``, weights inside."""
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    names = ("input_ids", "attention_mask")
    with _silence():
        program = torch.onnx.export(
            _Logits(model).eval(),
            (),
            kwargs=dict(zip(names, example_inputs(model, rows=2, length=9), strict=True)),
            dynamo=True,
            input_names=names,
            output_names=("logits",),
            dynamic_shapes=dict.fromkeys(names, dynamic),
            verbose=False,
        )
    assert program is not None
    return _bare(program.model_proto)


def find_sources(graph: onnx.ModelProto, weights: Weights) -> dict[str, Source]:
    """The source of each initialiser whose content is one of ``weights``, as it is or transposed."""
    places: dict[bytes, Source] = {}
    for name, array in weights.items():
        places.setdefault(_content(array), Source(name, transposed=False))
        if array.ndim == 2:
            places.setdefault(_content(array.T), Source(name, transposed=True))
    contents = {tensor.name: _content(numpy_helper.to_array(tensor)) for tensor in graph.graph.initializer}
    return {name: places[content] for name, content in contents.items() if content in places}


def hollow(graph: onnx.ModelProto, sources: Sources) -> onnx.ModelProto:
    """A copy of ``graph`` without the values of the initialisers in ``sources``: kilobytes instead of megabytes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    for tensor in copy.graph.initializer:
        if tensor.name in sources:
            tensor.ClearField("raw_data")
    return copy


def fill(graph: onnx.ModelProto, sources: Sources, weights: Weights) -> onnx.ModelProto:
    """A copy of the hollow ``graph`` with the values of ``weights``."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    for tensor in copy.graph.initializer:
        if (source := sources.get(tensor.name)) is not None:
            array = weights[source.tensor]
            tensor.raw_data = np.ascontiguousarray(array.T if source.transposed else array).tobytes()
    return copy


def fill_randomly(graph: onnx.ModelProto, sources: Sources, *, seed: int = 0) -> onnx.ModelProto:
    """A copy of the hollow ``graph`` with small random values: for what depends on the shape alone."""
    rng = np.random.default_rng(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    for tensor in copy.graph.initializer:
        if tensor.name in sources:
            tensor.raw_data = (rng.standard_normal(tuple(tensor.dims), dtype=np.float32) * 0.05).tobytes()
    return copy


def agrees(graph: onnx.ModelProto, model: "PreTrainedModel") -> bool:
    """Whether ONNX Runtime gives torch's logits within ``TOLERANCE`` on rows of several lengths, padded."""
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    ids, mask = example_inputs(model, rows=3, length=23)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits.numpy()
    (found,) = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    return bool(np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE))


def randomise(model: torch.nn.Module, *, seed: int) -> None:
    """Fill every weight with different random values, of a size that keeps activations near one.

    No two tensors may be alike, and each must matter to the logits: constant biases would hide a wrong map.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            scale = 0.1 if tensor.dim() <= 1 else tensor.shape[-1] ** -0.5
            tensor.copy_(noise * scale + (1.0 if tensor.dim() == 1 and name.endswith("weight") else 0.0))


def arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The model's floating-point weights by name, as float32 without a copy."""
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def example_inputs(model: "PreTrainedModel", *, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``input_ids`` and ``attention_mask``, rows x length; each row after the first is padded by two tokens more."""
    generator = torch.Generator().manual_seed(length)
    pad = model.config.pad_token_id or 0
    ids = torch.randint(pad + 1, model.config.vocab_size, (rows, length), generator=generator)
    lengths = length - 2 * torch.arange(rows)
    mask = (torch.arange(length)[None, :] < lengths[:, None]).long()
    return ids.where(mask.bool(), pad), mask


def _content(array: np.ndarray) -> bytes:
    return repr((array.dtype.str, array.shape)).encode() + np.ascontiguousarray(array).tobytes()


def _bare(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes, which hold stack traces with this machine's paths; marked as preprocessed.

    The exporter has optimised the graph already, and the mark keeps the quantiser from asking for it.
    """
    notes = [graph, graph.graph, *graph.graph.node, *graph.graph.initializer, *graph.graph.value_info]
    for part in [*notes, *graph.graph.input, *graph.graph.output]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.metadata_props.add(key=_PREPROCESSED[0], value=_PREPROCESSED[1])
    return graph


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing from the exporter, which prints, logs and warns about its own internals whatever it is told."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
