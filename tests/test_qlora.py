"""Low-rank adapters over a base in four bits: the levels, the arithmetic, what is kept, what is merged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generation_task import generation_context
from pydantic import ValidationError
from scipy.stats import norm
from tiny_models import tiny_causal
from torch import Tensor, nn
from torch.nn import functional
from training_task import fitting, plan_of

from spaces.methods.adapter import AdapterTuning
from spaces.methods.finetune import Lora
from spaces.methods.qlora import Qlora
from spaces.shape import Adapters
from trainers.carry_out import carry_out
from trainers.causal_models import load_causal
from trainers.families import DECODERS
from trainers.finetune import add_adapters
from trainers.nf4 import LEVELS, Nf4Linear, dequantise, quantise
from trainers.progress import Progress
from trainers.qlora import in_four_bits, merged
from trainers.ranks import solo

_IDS = torch.tensor([[2, 5, 6, 7, 11, 12, 20], [2, 8, 10, 9, 14, 15, 16]])


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _logits(model: nn.Module) -> Tensor:
    return model(input_ids=_IDS, use_cache=False).logits


def test_the_levels_are_quantiles_of_a_normal_distribution() -> None:
    """As in [Dettmers2023] Eq. 4: 8 of the upper half and 7 of the lower one, zero exactly, the ends at 1 and -1."""
    offset = 0.9677083
    upper, lower = norm.ppf(np.linspace(offset, 0.5, 9)[:-1]), -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    quantiles = np.sort(np.concatenate([upper, [0.0], lower]))
    np.testing.assert_allclose(LEVELS, quantiles / quantiles.max(), atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 64), (7, 100), (130, 257)])
def test_every_number_is_at_its_nearest_level(shape: tuple[int, int]) -> None:
    weight = _normal(*shape)
    weight[-1] = 0
    kept = quantise(weight)
    blocks = np.concatenate([weight.numpy().ravel(), np.zeros(-weight.numel() % 64)]).reshape(-1, 64)
    largest, levels = np.abs(blocks).max(1), np.array(LEVELS)
    codes = np.stack([kept.codes.numpy() >> 4, kept.codes.numpy() & 15], axis=1).reshape(-1, 64)
    nearest = np.abs(blocks[..., None] - largest[:, None, None] * levels).argmin(-1)
    np.testing.assert_array_equal(codes[largest > 0], nearest[largest > 0])
    groups = np.repeat(kept.groups.numpy(), 256)[: len(blocks)]
    scales = kept.scales.float().numpy() / 448 * groups + float(kept.mean)
    # float8 has three bits behind the first.
    assert (np.abs(scales - largest) <= np.abs(largest - float(kept.mean)) / 16 + 1e-3).all()
    expected = (levels[codes] * scales[:, None]).ravel()[: weight.numel()].reshape(shape)
    found = dequantise(kept, shape=shape)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert not found[-1, -64:].any() and float((found - weight).abs().max()) < 0.25 * float(weight.abs().max())


def test_it_takes_four_bits_and_a_little_and_is_nearer_than_even_steps() -> None:
    weight = 0.02 * _normal(256, 512)
    kept = quantise(weight)
    bits = 8 * sum(tensor.numel() * tensor.element_size() for tensor in kept) / weight.numel()
    assert bits < 4.13
    scales = weight.view(-1, 64).abs().amax(dim=1, keepdim=True)
    even = ((weight.view(-1, 64) / scales * 7.5 - 0.5).round() + 0.5) / 7.5 * scales
    errors = [(values.view(256, 512) - weight).square().mean() for values in (dequantise(kept, shape=(256, 512)), even)]
    assert errors[0] < 0.85 * errors[1]


def test_a_layer_computes_and_passes_gradients_as_its_dequantised_weight_and_keeps_none_of_it() -> None:
    layer = nn.Linear(96, 40).requires_grad_(False)
    four_bits, values = Nf4Linear(layer), _normal(3, 5, 96).requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        found = four_bits(values)
    assert not any(tensor.numel() >= 40 * 96 // 2 for tensor in saved)
    (gradient,) = torch.autograd.grad(found.sin().sum(), values)
    again = values.detach().requires_grad_()
    expected = functional.linear(again, four_bits.weight, layer.bias)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sin().sum(), again)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = four_bits(values)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(torch.autograd.grad(found.float().sin().sum(), values)[0], gradient, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_every_family_starts_at_its_dequantised_base_and_is_merged_into_that(kind: str, tmp_path: Path) -> None:
    folder = tiny_causal(tmp_path, kind)
    plain = load_causal(folder)
    model = in_four_bits(load_causal(folder))
    start = _logits(model)
    # The head is no part of a layer, and it may be tied to the embedding.
    assert not isinstance(model.get_output_embeddings(), Nf4Linear)
    assert not any(type(part) is nn.Linear for part in model.base_model.modules() if part is not model.lm_head)
    adapted = add_adapters(model, Lora(rank=3, alpha=6.0, target="mlp"))
    torch.testing.assert_close(_logits(adapted), start, rtol=0, atol=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * _normal(*parameter.shape))
    expected = _logits(adapted)
    assert (expected - start).abs().max() > 1e-3
    whole = merged(adapted)
    torch.testing.assert_close(_logits(whole), expected, rtol=1e-5, atol=1e-5)
    before, after = plain.state_dict(), whole.state_dict()
    assert {name: tensor.shape for name, tensor in after.items()} == {n: t.shape for n, t in before.items()}
    assert all(parameter.requires_grad for parameter in whole.parameters())


def test_adapters_alone_are_trained_and_what_is_deployed_is_what_was_trained(tmp_path: Path) -> None:
    context = generation_context(tmp_path, rows=40)
    stage = Qlora(optimisation=fitting(epochs=3, learning_rate=3e-2), lora=Lora(rank=4, alpha=8.0, target="attention"))
    plan, told = plan_of(stage), list[Progress]()
    result = carry_out(plan, ("fp32",), context, ranks=solo(), report=told.append)
    assert result is not None and told[-1].train_loss < 0.7 * told[0].train_loss
    assert told[-1].quality == result.variants[0].value
    artifact = context.store.find(plan.fingerprint)
    assert artifact is not None
    base, found = load_causal(context.base_folder("base")), load_causal(artifact.folder)
    trained = found.state_dict()
    for name, weight in base.state_dict().items():
        if "_proj" not in name:
            assert torch.equal(trained[name], weight), name
            continue
        frozen = dequantise(quantise(weight), shape=tuple(weight.shape))
        update = trained[name] - frozen
        assert (torch.linalg.matrix_rank(update, atol=1e-5) <= 4) and (update.any() == ("self_attn" in name)), name


def test_it_cannot_be_merged_into_what_stands_before_adapters() -> None:
    before: Any = AdapterTuning(optimisation=fitting(), adapters=Adapters(placement="pfeiffer", reduction=4))
    with pytest.raises(ValidationError, match="LoRA rank 2 cannot be merged into a model with pfeiffer-4"):
        plan_of(before, Qlora(optimisation=fitting(), lora=Lora(rank=2, alpha=4)))
