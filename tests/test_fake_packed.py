"""Training in int8 for models that write: the arithmetic is that of packed weights, which come out of it as floats."""

from pathlib import Path

import pytest
import torch
from generation_task import generation_context
from tiny_models import tiny_causal
from torch import Tensor, nn
from training_task import finetuning, fitting, plan_of

from spaces.methods.cut import SelectLayers
from spaces.methods.quantized_distill import QuantizedDistill
from spaces.stages import Chain
from trainers.carry_out import carry_out
from trainers.causal_models import load_causal
from trainers.fake_packed import fake_packed_int8, int8_values
from trainers.families import DECODERS
from trainers.packed import open_packed, write_packed
from trainers.progress import Progress
from trainers.ranks import solo

_IDS = torch.tensor([[2, 5, 6, 7, 11, 12, 20], [2, 8, 10, 9, 14, 15, 16]])


@torch.no_grad()
def _logits(model: nn.Module) -> Tensor:
    return model(input_ids=_IDS, use_cache=False).logits.float()


@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_it_answers_as_packed_weights_do(kind: str, tmp_path: Path) -> None:
    """All but a few roundings are the same ones; the values of float32 are three times as far away."""
    folder = tiny_causal(tmp_path / "model", kind)
    model = load_causal(folder)
    full = _logits(model)
    with fake_packed_int8(model):
        found = _logits(model)
    deployed = _logits(open_packed(write_packed(model, precision="int8", folder=tmp_path / "packed")))
    changed = (full - deployed).square().mean()
    assert changed > 1e-4 * full.square().mean(), "int8 changes something"
    assert (found - deployed).square().mean() < changed / 9


@pytest.mark.parametrize("tied", [True, False])
def test_of_a_usual_model_it_is_one_rounding_away_at_most(tied: bool, tmp_path: Path) -> None:
    model = load_causal(tiny_causal(tmp_path / "model", "llama", tied=tied))
    with fake_packed_int8(model):
        found = _logits(model)
    deployed = open_packed(write_packed(model, precision="int8", folder=tmp_path / "packed"))
    torch.testing.assert_close(found, _logits(deployed), rtol=0, atol=2**-7 * float(found.abs().max()))


def test_weights_are_rounded_as_packing_rounds_them(tmp_path: Path) -> None:
    model = load_causal(tiny_causal(tmp_path / "model", hidden_size=24))
    expected = int8_values(model.model.layers[1].mlp.up_proj.weight.detach())
    packed = open_packed(write_packed(model, precision="int8", folder=tmp_path)).model.layers[1].mlp.up_proj
    # Filled up to a multiple of 16 inputs.
    assert packed.weight.shape == (48, 32) and expected.shape == (48, 24)
    torch.testing.assert_close(expected, packed.weight[:, :24].float() * packed.scale.float()[:, None], rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("llama", False), ("gpt2", True), ("gemma2", False)])
def test_a_model_leaves_as_it_came_and_trains_all_but_a_table_of_its_own(kind: str, tied: bool, tmp_path: Path) -> None:
    model = load_causal(tiny_causal(tmp_path / "model", kind, tied=tied)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with fake_packed_int8(model):
        model(input_ids=_IDS).logits.float().square().sum().backward()
        frozen = {id(p) for p in model.parameters() if not p.requires_grad}
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert frozen == (set() if tied else {id(model.get_input_embeddings().weight)})
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.requires_grad for p in model.parameters()) and not any("forward" in vars(m) for m in model.modules())


def test_rounding_passes_gradients(tmp_path: Path) -> None:
    """They are those of the layer with its rounded weight, as if that were what is trained."""
    model = load_causal(tiny_causal(tmp_path / "model", num_layers=1))
    layer, values = model.model.layers[0].mlp.up_proj, torch.randn(3, 32).bfloat16()
    with fake_packed_int8(model):
        layer(values).sum().backward()
    expected = values.float().sum(dim=0).expand(64, 32)
    torch.testing.assert_close(layer.weight.grad, expected)


def test_what_is_trained_is_what_is_deployed_and_nears_the_teacher(tmp_path: Path) -> None:
    context = generation_context(tmp_path, rows=40)
    expert = finetuning(epochs=4)
    stage = QuantizedDistill(
        optimisation=fitting(epochs=3, learning_rate=3e-3),
        teacher=Chain(base="base", stages=(expert,)),
        temperature=1.0,
    )
    told: list[Progress] = []
    plan = plan_of(expert, SelectLayers(layers=(0,)), stage)
    result = carry_out(plan, ("fp32", "int8"), context, ranks=solo(), report=told.append)
    assert result is not None
    final = [progress for progress in told if progress.final]
    assert [progress.kind for progress in final] == ["quantized_distill"] * 3
    assert final[-1].train_loss < 0.7 * final[0].train_loss, "the divergence from the teacher, in int8"
    int8 = next(variant for variant in result.variants if variant.precision == "int8")
    assert final[-1].quality == pytest.approx(int8.value, abs=0.04)  # one of 30 rows
