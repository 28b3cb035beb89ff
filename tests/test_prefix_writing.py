"""Prefixes in models that write: PEFT's own answers, decoded with a cache as without, packed, measured, trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generation_task import generation_context
from safetensors.torch import load_file
from test_adapters_writing import logits
from test_prefix import is_prefix, prefixed, prefixing, through_peft
from tiny_models import tiny_causal
from training_task import plan_of

from spaces.shape import Shape
from spaces.targets import Precision
from trainers import generation_cost
from trainers.carry_out import carry_out
from trainers.causal_models import load_causal
from trainers.fake_packed import fake_packed_int8
from trainers.families import DECODERS
from trainers.generate import greedy
from trainers.generation_cost import Request
from trainers.models import add_prefix
from trainers.packed import open_packed, write_packed
from trainers.past import prefixes
from trainers.progress import Progress
from trainers.ranks import solo

PLAN = plan_of(prefixing(4, epochs=3, learning_rate=3e-2))


def filled(folder: Path, num_tokens: int = 4) -> Any:
    """The model in ``folder`` with a prefix that does something."""
    model = add_prefix(load_causal(folder), num_tokens)
    generator = torch.Generator().manual_seed(1)
    for prefix in prefixes(model):
        prefix.keep(torch.randn(2, *prefix.key.shape, generator=generator))
    return model


@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_every_family_answers_as_with_pefts_prefix(kind: str, tmp_path: Path) -> None:
    model, num_tokens = load_causal(tiny_causal(tmp_path, kind)), 2
    theirs, pairs = through_peft(model, num_tokens)
    ours = prefixed(model, num_tokens)
    for prefix, pair in zip(prefixes(ours), pairs, strict=True):
        prefix.keep(pair)
    ids = torch.tensor([[2, 5, 6, 7, 11], [2, 8, 10, 9, 14]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        found = ours(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        # PEFT moves positions behind the prefix; ours stay.
        positions = torch.arange(5).expand_as(ids) - num_tokens
        expected = theirs(input_ids=ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
        without = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - without).abs().max() > 1e-3


@torch.no_grad()
def likeliest_after(model: Any, ids: list[int]) -> int:
    return int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())


@pytest.mark.parametrize("kind", ["gemma3_text", "gpt2", "gpt_neox", "llama", "mistral"])
def test_it_writes_with_a_cache_as_without(kind: str, tmp_path: Path) -> None:
    """Longer than the windows of Gemma and Mistral, with another prompt beside."""
    model = filled(tiny_causal(tmp_path, kind))
    prompts = [np.array([2, 5, 6, 7, 11, 12]), np.array([2, 8, 10])]
    for prompt, found in zip(prompts, greedy(model, prompts, max_new_tokens=8, end_ids=[], pad_id=0), strict=True):
        ids = prompt.tolist()
        for token in found.tolist():
            assert likeliest_after(model, ids) == token
            ids.append(token)


@pytest.mark.parametrize(
    ("kind", "precision", "bound"),
    [
        ("gpt2", "fp32", 1e-6),
        ("gpt2", "int8", 0.1),
        ("llama", "fp32", 1e-6),
        ("llama", "int8", 0.1),
        ("llama", "bf16", 0.1),
        ("llama", "int4", 0.6),
    ],
)
def test_it_is_packed_and_opened(kind: str, precision: Precision, bound: float, tmp_path: Path) -> None:
    folder = tiny_causal(tmp_path / "model", kind)
    expected, without = logits(filled(folder)), logits(load_causal(folder))
    found = logits(open_packed(write_packed(filled(folder), precision=precision, folder=tmp_path / "packed")))
    assert (found - expected).square().mean() < bound**2 * expected.square().mean()
    assert (without - expected).square().mean() > 4 * (found - expected).square().mean()


def test_training_in_int8_answers_as_packed_prefixes_do(tmp_path: Path) -> None:
    model = filled(tiny_causal(tmp_path / "model"))
    with fake_packed_int8(model):
        found = logits(model)
    deployed = logits(open_packed(write_packed(model, precision="int8", folder=tmp_path / "packed")))
    torch.testing.assert_close(found, deployed, rtol=0, atol=2**-7 * float(found.abs().max()))


def test_it_is_part_of_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, plain = generation_context(tmp_path, rows=4), Shape(base="base")
    monkeypatch.setattr(generation_cost, "CALLS", 2)
    request = Request(3, 2)
    with_prefix = plain.model_copy(update={"prefix_tokens": 16})
    rows = [
        generation_cost.probe(shape, "fp32", context, reference=plain, request=request, plain=request)
        for shape in (plain, with_prefix)
    ]
    model = add_prefix(load_causal(context.base_folder("base")), 16)
    num_more = sum(prefix.key.numel() + prefix.value.numel() for prefix in prefixes(model))
    # Beside the numbers stand their names.
    assert 4e-6 * num_more <= rows[1].size_mb - rows[0].size_mb < 4e-6 * num_more + 2e-3
    # Each of 4 tokens reads 16 more: queries by keys and shares by values, 2 operations on each of 32 numbers, twice.
    assert rows[1].flops - rows[0].flops == 4 * 16 * 2 * 2 * 32 * 2


def test_it_alone_is_trained_and_what_is_deployed_is_what_was_trained(tmp_path: Path) -> None:
    context = generation_context(tmp_path / "task", rows=40)
    told: list[Progress] = []
    result = carry_out(PLAN, ("fp32", "int8"), context, ranks=solo(), report=told.append)
    assert result is not None and told[-1].train_loss < told[0].train_loss
    artifact = context.store.find(PLAN.fingerprint)
    assert artifact is not None
    base = load_causal(context.base_folder("base")).state_dict()
    weights = load_file(artifact.folder / "model.adapted.safetensors")
    assert sum(map(is_prefix, weights)) == 2 * 2
    assert all(torch.equal(tensor, base[name]) for name, tensor in weights.items() if not is_prefix(name))
    deployed = open_packed(write_packed(load_causal(artifact.folder), precision="fp32", folder=tmp_path / "packed"))
    torch.testing.assert_close(logits(deployed), logits(load_causal(artifact.folder)), rtol=0, atol=0)
    assert told[-1].quality == result.variants[0].value
