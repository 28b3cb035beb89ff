"""Training in int8: the arithmetic is that of the deployed graph, and weights come out of it as floats."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tiny_models import KINDS, tiny_model
from training_task import LABELS, finetuning, fitting, plan_of, tiny_context

from spaces.methods.cut import SelectLayers
from spaces.methods.quantized_distill import QuantizedDistill
from spaces.stages import Chain
from trainers import onnx_graph
from trainers.carry_out import carry_out
from trainers.deploy import write_graph
from trainers.evaluate import evaluate_plan
from trainers.fake_int8 import fake_int8, int8_weight, uint8_values
from trainers.models import load_classifier
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.run_stage import run_plan
from trainers.serving import feeds, open_session

_EXPERT = finetuning()


def _plan(**settings: float):
    stage = QuantizedDistill(
        optimisation=fitting(**{"epochs": 1, **settings}),
        teacher=Chain(base="base", stages=(_EXPERT,)),
        temperature=1.0,
    )
    return plan_of(_EXPERT, SelectLayers(layers=(0,)), stage)


def _silent(_: Progress) -> None:
    pass


@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_as_the_exported_int8_graph_does(kind: str, tmp_path: Path) -> None:
    """Within a tenth of what int8 changes: roundings may fall the other way, a wrong scale would change far more."""
    model = load_classifier(tiny_model(tmp_path / "model", kind, num_layers=2), labels=LABELS)
    onnx_graph.randomise(model, seed=3)
    session = open_session(write_graph(onnx_graph.trace(model), precision="int8", folder=tmp_path))
    rows = [np.arange(5, 5 + length) for length in (3, 9, 14)]
    deployed = np.concatenate([session.run(["logits"], feeds(row))[0] for row in rows])
    ids = torch.zeros(3, 14, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.from_numpy(row)
    mask = (torch.arange(14)[None] < torch.tensor([3, 9, 14])[:, None]).long()
    with torch.no_grad():
        full = model(input_ids=ids, attention_mask=mask).logits.numpy()
        with fake_int8(model):
            found = model(input_ids=ids, attention_mask=mask).logits.numpy()
    difference = np.abs(full - deployed).max()
    assert difference > 1e-3, "int8 changes something"
    assert np.abs(found - deployed).max() < 0.1 * difference


def test_weights_are_rounded_as_the_quantiser_rounds_them(tmp_path: Path) -> None:
    model = load_classifier(tiny_model(tmp_path / "model", "bert", num_layers=1), labels=LABELS)
    graph = onnx.load(write_graph(onnx_graph.trace(model), precision="int8", folder=tmp_path))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    prefix = "model.bert.embeddings.word_embeddings.weight"
    table = model.bert.embeddings.word_embeddings.weight.detach()
    kept = (arrays[f"{prefix}_quantized"].astype(np.float32) - arrays[f"{prefix}_zero_point"]) * arrays[
        f"{prefix}_scale"
    ]
    np.testing.assert_allclose(uint8_values(table, table.min(), table.max()).numpy(), kept, atol=1e-6)
    head = "model.classifier.weight_Transposed"
    kept = arrays[f"{head}_quantized"].T.astype(np.float32) * arrays[f"{head}_scale"]
    np.testing.assert_allclose(int8_weight(model.classifier.weight.detach()).numpy(), kept, atol=1e-6)


def test_a_model_leaves_as_it_came_and_trains_all_but_its_embeddings(tmp_path: Path) -> None:
    model = load_classifier(tiny_model(tmp_path / "model", "bert", num_layers=1), labels=LABELS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = {name for name, _ in model.named_parameters() if "embeddings" in name and "LayerNorm" not in name}
    with fake_int8(model):
        model(
            input_ids=torch.tensor([[2, 5, 3]]), attention_mask=torch.ones(1, 3, dtype=torch.long)
        ).logits.sum().backward()
        assert {name for name, p in model.named_parameters() if not p.requires_grad} == frozen
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.requires_grad for p in model.parameters())


def test_what_is_trained_is_what_is_deployed(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    told: list[Progress] = []
    result = carry_out(_plan(), ("fp32", "int8"), context, ranks=solo(), report=told.append)
    assert result is not None
    assert [p.kind for p in told if p.final] == ["quantized_distill"]
    int8 = next(variant for variant in result.variants if variant.precision == "int8")
    assert told[-1].quality == pytest.approx(int8.value, abs=0.05)  # one of 20 rows


def test_it_brings_the_int8_answers_nearer_to_the_teacher(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    start = plan_of(_EXPERT, SelectLayers(layers=(0,)), finetuning(epochs=1, learning_rate=1e-6))
    for plan in (start, _plan(epochs=6, learning_rate=3e-3)):
        run_plan(plan, context, ranks=solo(), report=_silent)
    before, after = (
        evaluate_plan(plan, ("int8",), context, split="train")[0].quality.value
        for plan in (start, _plan(epochs=6, learning_rate=3e-3))
    )
    assert after > before
