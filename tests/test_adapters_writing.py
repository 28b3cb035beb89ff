"""Bottleneck adapters in models that write: packed with them, opened with them, measured with them, handed over."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from generation_task import generation_context
from ledgers import make_record
from safetensors.torch import load_file
from tiny_models import tiny_causal
from torch import Tensor, nn
from training_task import fitting, plan_of
from transformers import AutoModelForCausalLM

from search.export import export_record
from search.run import Run
from spaces.methods.adapter import AdapterTuning
from spaces.shape import Adapters, Shape
from spaces.targets import Precision
from trainers import generation_cost
from trainers.bottleneck import adapter_parameters
from trainers.carry_out import carry_out
from trainers.causal_models import load_causal
from trainers.context import Context
from trainers.fake_packed import fake_packed_int8
from trainers.families import DECODERS
from trainers.generation_cost import Request
from trainers.models import add_bottlenecks
from trainers.packed import open_packed, write_packed
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.storage import Storage

HOULSBY = Adapters(placement="houlsby", reduction=4)
PLAN = plan_of(AdapterTuning(optimisation=fitting(epochs=3, learning_rate=3e-2), adapters=HOULSBY))
_IDS = torch.tensor([[2, 5, 6, 7, 11, 12, 20], [2, 8, 10, 9, 14, 15, 16]])


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=_IDS, use_cache=False).logits.float()


def adapted(folder: Path) -> nn.Module:
    """The model in ``folder`` with adapters that do something."""
    model = add_bottlenecks(load_causal(folder), HOULSBY)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(
    ("kind", "precision", "bound"),
    [(kind, *pair) for kind in sorted(DECODERS) for pair in (("fp32", 1e-6), ("int8", 0.1))]
    + [("llama", "bf16", 0.1), ("llama", "int4", 0.6)],
)
def test_every_family_is_packed_and_opened_with_them(
    kind: str, precision: Precision, bound: float, tmp_path: Path
) -> None:
    folder = tiny_causal(tmp_path / "model", kind)
    expected, without = logits(adapted(folder)), logits(load_causal(folder))
    found = logits(open_packed(write_packed(adapted(folder), precision=precision, folder=tmp_path / "packed")))
    assert (found - expected).square().mean() < bound**2 * expected.square().mean()
    assert (without - expected).square().mean() > 4 * (found - expected).square().mean()


def test_training_in_int8_answers_as_packed_adapters_do(tmp_path: Path) -> None:
    model = adapted(tiny_causal(tmp_path / "model"))
    with fake_packed_int8(model):
        found = logits(model)
    deployed = logits(open_packed(write_packed(model, precision="int8", folder=tmp_path / "packed")))
    torch.testing.assert_close(found, deployed, rtol=0, atol=2**-7 * float(found.abs().max()))


def test_they_are_part_of_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, plain = generation_context(tmp_path, rows=4), Shape(base="base")
    monkeypatch.setattr(generation_cost, "CALLS", 2)
    request = Request(3, 2)
    rows = [
        generation_cost.probe(shape, "fp32", context, reference=plain, request=request, plain=request)
        for shape in (plain, plain.model_copy(update={"adapters": HOULSBY}))
    ]
    num_more = sum(p.numel() for p in adapter_parameters(adapted(context.base_folder("base"))))
    # Beside the numbers stand their names.
    assert 4e-6 * num_more <= rows[1].size_mb - rows[0].size_mb < 4e-6 * num_more + 3e-3
    assert rows[1].shape.adapters == HOULSBY


def test_they_alone_are_trained_and_what_is_deployed_is_what_was_trained(tmp_path: Path) -> None:
    context = generation_context(tmp_path / "task", rows=40)
    told: list[Progress] = []
    result = carry_out(PLAN, ("fp32", "int8"), context, ranks=solo(), report=told.append)
    assert result is not None and told[-1].train_loss < told[0].train_loss
    artifact = context.store.find(PLAN.fingerprint)
    assert artifact is not None
    base = load_causal(context.base_folder("base")).state_dict()
    weights = load_file(artifact.folder / "model.adapted.safetensors")
    assert all(tensor.any() for name, tensor in weights.items() if ".adapter." in name)
    assert all(torch.equal(tensor, base[name]) for name, tensor in weights.items() if ".adapter." not in name)
    trained = load_causal(artifact.folder)
    deployed = open_packed(write_packed(load_causal(artifact.folder), precision="fp32", folder=tmp_path / "packed"))
    torch.testing.assert_close(logits(deployed), logits(trained), rtol=0, atol=0)
    assert told[-1].quality == result.variants[0].value
    _hand_over(context, tmp_path)


def _hand_over(context: Context, folder: Path) -> None:
    """The folder is loaded by what its card says, and by nothing that would leave the adapters out."""
    storage = Storage(folder / "run")
    spec = {"name": "words", "task": {"kind": "generation", "train": "rows.csv", "metric": "exact_match"}}
    storage.write("spec.yaml", yaml.safe_dump({**spec, "model": {"base": "tiny"}}).encode())
    storage.write_json("context.json", asdict(replace(context, versions={})))
    record = make_record(
        plan=PLAN.to_json(), fingerprint=PLAN.fingerprint, strategy="adapter", quality=0.0, precision="int8"
    )
    export = export_record(Run(storage), record, folder / "export")
    card = (export / "README.md").read_text()
    assert 'open_packed(folder / "packed_int8.safetensors")' in card and "library_name: distune" in card
    assert any(".adapter." in name for name in open_packed(export / "packed_int8.safetensors").state_dict())
    with pytest.raises(OSError, match=r"no file named model.safetensors"):
        AutoModelForCausalLM.from_pretrained(export)
