"""A trained model as what serves it: an ONNX file at a precision.

Exporting takes seconds and depends on the shape alone, so it is done once a shape and kept as an artifact; a trained
model's weights are then put into that graph. Where they do not fit, the model is exported by itself.
"""

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch

from spaces.canonical import canonical_json, fingerprint
from spaces.methods.cut import spread
from spaces.plan import Plan
from spaces.shape import Shape
from spaces.targets import Precision
from trainers import onnx_graph
from trainers.artifacts import Artifact
from trainers.context import Context
from trainers.families import FAMILIES
from trainers.models import ADAPTERS, PREFIX, classifier_config, cut_config, load_classifier, new_classifier
from trainers.onnx_graph import Sources, Weights
from trainers.width import narrow_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

EXPORT_VERSION = 2
"""Raise it when the code here changes the graph: old exports are then not found again."""
GRAPH = "graph.onnx"
DEPLOYED = ("fp32", "int8")
"""Precisions that ONNX Runtime serves on a processor."""
_NOT_SHAPE = {
    "id2label",
    "label2id",
    "problem_type",
    "architectures",
    "dtype",
    "transformers_version",
    "_name_or_path",
}
_LOG = logging.getLogger(__name__)


def ensure_export(shape: Shape, context: Context) -> Artifact:
    """The ONNX graph of ``shape`` without weights, and where each weight goes; exported if it is not there yet.

    ``about`` holds ``sources`` (initialiser → state-dict tensor, transposed), ``swappable`` (whether that map was
    proved against torch), ``architecture`` and ``seconds``.
    """
    name = fingerprint(
        {"kind": "export", "version": EXPORT_VERSION, "torch": torch.__version__.partition("+")[0]}
        | {"shape": shape, "labels": len(context.labels)}
    )
    if (found := context.store.find(name)) is not None:
        return found
    about: dict[str, Any] = {"kind": "export", "shape": shape.model_dump()}
    with context.store.publish(name, about) as folder:
        about |= _export(_shape_config(shape, context), folder / GRAPH)
    artifact = context.store.find(name)
    assert artifact is not None
    return artifact


def load_graph(export: Artifact) -> tuple[onnx.ModelProto, Sources]:
    """The hollow graph of an export, and where its weights come from."""
    sources = {name: onnx_graph.Source(*source) for name, source in export.about["sources"].items()}
    return onnx.load(export.folder / GRAPH), sources


def deploy(model: Artifact, *, plan: Plan, precision: Precision, context: Context, folder: Path) -> Path:
    """Write ``model_PRECISION.onnx`` of the trained ``model``, the result of ``plan``, to ``folder``; returns the file.

    The same model gives the same bytes.

    Raises:
        ValueError: a precision that ONNX Runtime does not serve.
    """
    graph = _trained_graph(model, plan=plan, context=context)
    return write_graph(graph, precision=precision, folder=folder)


def write_graph(graph: onnx.ModelProto, *, precision: Precision, folder: Path) -> Path:
    """Write a full float32 graph at ``precision``; int8: weights and embeddings, activations while it runs."""
    if precision not in DEPLOYED:
        raise ValueError(f"precision {precision!r} is not served by ONNX Runtime; one of {', '.join(DEPLOYED)} is")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"model_{precision}.onnx"
    if precision == "int8":
        _quantise(graph, path)
    else:
        path.write_bytes(graph.SerializeToString(deterministic=True))
    return path


def _trained_graph(model: Artifact, *, plan: Plan, context: Context) -> onnx.ModelProto:
    export = ensure_export(plan.shape, context)
    weights = _read_weights(model.folder)
    reason = _misfit(export, model, weights, context)
    if reason is None:
        graph, sources = load_graph(export)
        return onnx_graph.fill(graph, sources, weights)
    _LOG.warning("%s…: exported by itself: %s", model.fingerprint[:12], reason)
    return onnx_graph.trace(load_classifier(model.folder, labels=context.labels))


def _misfit(export: Artifact, model: Artifact, weights: Weights, context: Context) -> str | None:
    """Why the model's weights cannot go into the export's graph; None if they can."""
    if not export.about["swappable"]:
        return "its shape's graph holds something that is computed from weights"
    if export.about["architecture"] != _architecture(classifier_config(model.folder, context.labels)):
        return "its config is not that of its shape's export"
    if missing := {tensor for tensor, _ in export.about["sources"].values()} - weights.keys():
        return f"it has no tensor {min(missing)}"
    return None


def _shape_config(shape: Shape, context: Context) -> "PretrainedConfig":
    config = classifier_config(context.base_folder(shape.base), context.labels)
    if shape.vocab_size is not None:
        config.vocab_size = shape.vocab_size
        if not FAMILIES[config.model_type].padded_positions:
            # Its number after the cut is not known here; it only tells which row of the table is not trained.
            config.pad_token_id = 0
    if shape.width is not None:
        config = narrow_config(config, shape.width)
    if shape.num_layers is not None:
        config = cut_config(config, spread(config.num_hidden_layers, shape.num_layers))
    if shape.adapters is not None:
        setattr(config, ADAPTERS, shape.adapters.model_dump())
    if shape.prefix_tokens is not None:
        setattr(config, PREFIX, shape.prefix_tokens)
    return config


def _export(config: "PretrainedConfig", path: Path) -> dict[str, Any]:
    started = time.perf_counter()
    model = new_classifier(config)
    onnx_graph.randomise(model, seed=0)
    full = onnx_graph.trace(model)
    sources = onnx_graph.find_sources(full, onnx_graph.arrays(model))
    graph = onnx_graph.hollow(full, sources)
    path.write_bytes(graph.SerializeToString(deterministic=True))
    onnx_graph.randomise(model, seed=1)
    second = onnx_graph.fill(graph, sources, onnx_graph.arrays(model))
    return {
        "sources": sources,
        "swappable": onnx_graph.agrees(second, model),
        "architecture": _architecture(config),
        "seconds": time.perf_counter() - started,
    }


def _architecture(config: "PretrainedConfig") -> str:
    settings = json.loads(config.to_json_string(use_diff=False))
    return canonical_json({key: settings[key] for key in settings.keys() - _NOT_SHAPE if not _is_free(key)})


def _is_free(key: str) -> bool:
    # Tokens are numbered anew where the vocabulary is cut; models of one shape count positions from one padding token.
    return "dropout" in key or key.endswith("_token_id")


def _read_weights(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return {
        name: array for path in sorted(folder.glob("model*.safetensors")) for name, array in load_file(path).items()
    }


def _quantise(graph: onnx.ModelProto, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(graph, path, weight_type=QuantType.QInt8)
