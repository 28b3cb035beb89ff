"""Deployment: one export a shape, weights replaced, every architecture answering as torch does, int8 small."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_models import KINDS, tiny_model
from transformers import PreTrainedModel

from spaces.methods.cut import SelectLayers
from spaces.methods.finetune import Finetune
from spaces.plan import Plan
from spaces.stages import Optimisation
from trainers import onnx_graph
from trainers.artifacts import Artifact
from trainers.context import Context
from trainers.deploy import deploy, ensure_export, load_graph, write_graph
from trainers.models import load_classifier, save_model, select_layers
from trainers.serving import open_session

LABELS = ("cat", "dog", "sun")
IDS = torch.tensor([[2, 5, 6, 7, 11, 12, *range(20, 50), 3], [2, 8, 10, 3, *[0] * 33]])
MASK = (IDS != 0).long()


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    root = tmp_path_factory.mktemp("deploy")
    models = {kind: str(tiny_model(root / kind, kind)) for kind in KINDS}
    return Context(
        artifacts=str(root / "artifacts"), cache=str(root / "cache"), models=models, tokens={}, labels=LABELS
    )


def trained(context: Context, kind: str, layers: tuple[int, ...], seed: int) -> tuple[PreTrainedModel, Plan, Artifact]:
    """A student whose every weight is random: as far from its base as training could bring it."""
    stages = (SelectLayers(layers=layers), Finetune(optimisation=Optimisation(learning_rate=1e-4, epochs=1)))
    plan = Plan(base=kind, stages=stages, data="rows", seed=seed)
    model = select_layers(load_classifier(Path(context.models[kind]), labels=LABELS), layers)
    onnx_graph.randomise(model, seed=100 + seed)
    with context.store.publish(plan.fingerprint, {"kind": "model"}) as folder:
        save_model(model, folder)
    artifact = context.store.find(plan.fingerprint)
    assert artifact is not None
    return model, plan, artifact


def logits_of(file: Path, ids: torch.Tensor = IDS, mask: torch.Tensor = MASK) -> np.ndarray:
    return open_session(file).run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]


def torch_logits(model: PreTrainedModel) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK).logits.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_is_deployed_as_torch_answers(context: Context, kind: str, tmp_path: Path) -> None:
    model, plan, artifact = trained(context, kind, (0, 3), seed=0)
    fp32 = deploy(artifact, plan=plan, precision="fp32", context=context, folder=tmp_path)
    assert ensure_export(plan.shape, context).about["swappable"]
    np.testing.assert_allclose(logits_of(fp32), torch_logits(model), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(logits_of(fp32, IDS[1:, :4], MASK[1:, :4]), torch_logits(model)[1:], atol=1e-4)

    int8 = deploy(artifact, plan=plan, precision="int8", context=context, folder=tmp_path)
    assert weight_bytes(int8) < weight_bytes(fp32) / 3
    assert np.abs(logits_of(int8) - torch_logits(model)).max() < 0.5
    assert {path.name for path in tmp_path.iterdir()} == {"model_fp32.onnx", "model_int8.onnx"}


def weight_bytes(file: Path) -> int:
    return sum(len(tensor.raw_data) for tensor in onnx.load(file).graph.initializer)


def test_one_export_serves_every_model_of_a_shape(context: Context, tmp_path: Path) -> None:
    first, plan, artifact = trained(context, "bert", (0, 3), seed=1)
    deploy(artifact, plan=plan, precision="fp32", context=context, folder=tmp_path / "1")
    exports = set(Path(context.artifacts).iterdir())
    second, other_plan, other = trained(context, "bert", (0, 3), seed=2)
    file = deploy(other, plan=other_plan, precision="fp32", context=context, folder=tmp_path / "2")
    assert {path.name for path in set(Path(context.artifacts).iterdir()) - exports} == {other.fingerprint}
    np.testing.assert_allclose(logits_of(file), torch_logits(second), atol=1e-4)
    assert np.abs(torch_logits(first) - torch_logits(second)).max() > 0.01


def test_the_same_model_gives_the_same_bytes_without_paths(context: Context, tmp_path: Path) -> None:
    _, plan, artifact = trained(context, "bert", (0, 3), seed=1)
    for precision in ("fp32", "int8"):
        files = [
            deploy(artifact, plan=plan, precision=precision, context=context, folder=tmp_path / name) for name in "ab"
        ]
        first, second = (file.read_bytes() for file in files)
        assert first == second
        assert b"site-packages" not in first


def test_a_wrong_map_is_noticed(context: Context) -> None:
    _, plan, _ = trained(context, "bert", (0, 3), seed=1)
    graph, sources = load_graph(ensure_export(plan.shape, context))
    model = select_layers(load_classifier(Path(context.models["bert"]), labels=LABELS), (0, 3))
    onnx_graph.randomise(model, seed=7)
    weights = onnx_graph.arrays(model)
    assert onnx_graph.agrees(onnx_graph.fill(graph, sources, weights), model)
    biases = sorted(name for name, source in sources.items() if source.tensor.endswith("query.bias"))
    norms = sorted(name for name, source in sources.items() if source.tensor.endswith("LayerNorm.bias"))
    for one, two in (biases[:2], norms[:2]):
        crossed = {**sources, one: sources[two], two: sources[one]}
        assert not onnx_graph.agrees(onnx_graph.fill(graph, crossed, weights), model)


def test_a_model_unlike_its_shapes_export_is_exported_by_itself(
    context: Context, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Layers 0 and 1 of a ModernBERT attend globally and locally; the shape's export has 0 and 3, both global."""
    model, plan, artifact = trained(context, "modernbert", (0, 1), seed=0)
    file = deploy(artifact, plan=plan, precision="fp32", context=context, folder=tmp_path)
    assert "exported by itself: its config is not that of its shape's export" in caplog.text
    np.testing.assert_allclose(logits_of(file), torch_logits(model), atol=1e-4)


def test_a_map_that_was_not_proved_is_not_used(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plan, _ = trained(context, "distilbert", (0,), seed=0)
    monkeypatch.setattr(onnx_graph, "find_sources", lambda graph, weights: {})  # noqa: ARG005
    elsewhere = dataclasses.replace(context, artifacts=str(tmp_path / "artifacts"))
    assert not ensure_export(plan.shape, elsewhere).about["swappable"]


def test_the_exporter_is_quiet(context: Context, capfd: pytest.CaptureFixture[str]) -> None:
    model = select_layers(load_classifier(Path(context.models["distilbert"]), labels=LABELS), (0,))
    capfd.readouterr()
    onnx_graph.trace(model)
    assert capfd.readouterr() == ("", "")


def test_a_precision_that_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision 'bf16' is not served by ONNX Runtime; one of fp32, int8 is"):
        write_graph(onnx.ModelProto(), precision="bf16", folder=tmp_path)
