"""Bottleneck adapters: nothing at the start, the formula, what is trained, what is deployed, what may follow them."""

import copy
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ledgers import make_record, make_space
from pydantic import ValidationError
from safetensors.torch import load_file
from test_deploy import LABELS, logits_of, torch_logits, weight_bytes
from tiny_models import KINDS, tiny_model
from torch import Tensor, nn
from torch.nn import functional
from training_task import finetuning, fitting, plan_of, tiny_context
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, pipeline

from search.clerk import Clerk
from search.export import export_record
from search.goals import Goals
from search.ledger import Ledger
from search.run import Run
from spaces.choosers import RandomChooser
from spaces.draw import draw, restrict, shapes
from spaces.methods.adapter import ADAPTER, AdapterTuning
from spaces.methods.cut import SelectLayers
from spaces.methods.distill import Distill
from spaces.methods.finetune import Lora
from spaces.objectives import parse_constraint
from spaces.plan import Plan
from spaces.shape import Adapters, Placement, Shape
from spaces.stages import Chain
from trainers import onnx_graph
from trainers.artifacts import Artifact
from trainers.context import Context
from trainers.deploy import deploy, ensure_export
from trainers.families import ENCODERS, FAMILIES
from trainers.models import (
    ADAPTERS,
    ModelError,
    complete,
    load_classifier,
    new_classifier,
    save_model,
    select_layers,
)
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.run_stage import run_plan
from trainers.storage import Storage

PLACEMENTS: tuple[Placement, ...] = ("pfeiffer", "houlsby")
SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "embedding_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "cls_token_id": 2,
    "sep_token_id": 3,
}


def tuning(placement: Placement = "pfeiffer", **settings: Any) -> AdapterTuning:
    return AdapterTuning(optimisation=fitting(**settings), adapters=Adapters(placement=placement, reduction=4))


def adapted(model: Any, placement: Placement, reduction: int = 4) -> Any:
    """A copy of ``model`` with new adapters."""
    copied = copy.deepcopy(model)
    setattr(copied.config, ADAPTERS, {"placement": placement, "reduction": reduction})
    return complete(copied)


def is_adapter(name: str) -> bool:
    return ".adapter." in name


# The model ------------------------------------------------------------------------------------------------------------


def new_model(kind: str) -> Any:
    torch.manual_seed(0)
    if kind in ENCODERS:
        return new_classifier(AutoConfig.for_model(kind, **SMALL, num_labels=3))
    config = AutoConfig.for_model(kind, **SMALL, num_key_value_heads=4, head_dim=4)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", sorted(FAMILIES))
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_family_starts_exactly_as_it_was(kind: str, placement: Placement) -> None:
    model = new_model(kind)
    with_adapters = adapted(model, placement)
    before, after = model.state_dict(), with_adapters.state_dict()
    assert {name for name in after if not is_adapter(name)} == before.keys()
    each = 2 if placement == "houlsby" else 1
    assert sum(name.endswith("adapter.down.weight") for name in after) == each * 2
    assert torch.equal(torch.tensor(torch_logits(with_adapters)), torch.tensor(torch_logits(model)))
    onnx_graph.randomise(with_adapters, seed=1)
    model.load_state_dict({name: tensor for name, tensor in with_adapters.state_dict().items() if name in before})
    assert np.abs(torch_logits(with_adapters) - torch_logits(model)).max() > 1e-3


def bert_layer(layer: Any, states: Tensor, *, adapters: Callable[[Tensor, str], Tensor], num_heads: int) -> Tensor:
    """A BERT layer written out [Houlsby2019, Fig. 2]: adapters stand before each skip connection."""
    weights = dict(layer.named_parameters())

    def linear(name: str, of: Tensor) -> Tensor:
        return of @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, of: Tensor) -> Tensor:
        return functional.layer_norm(of, of.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-12)

    def heads(of: Tensor) -> Tensor:
        return of.unflatten(-1, (num_heads, -1)).transpose(-2, -3)

    query, key, value = (heads(linear(f"attention.self.{name}", states)) for name in ("query", "key", "value"))
    attention = functional.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, dim=-1) @ value
    attended = linear("attention.output.dense", attention.transpose(-2, -3).flatten(-2))
    states = norm("attention.output.LayerNorm", adapters(attended, "attention.output.dense") + states)
    inner = functional.gelu(linear("intermediate.dense", states))
    return norm("output.LayerNorm", adapters(linear("output.dense", inner), "output.dense") + states)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_layer_computes_the_formula(placement: Placement, tmp_path: Path) -> None:
    model = adapted(load_classifier(tiny_model(tmp_path), labels=LABELS), placement)
    onnx_graph.randomise(model, seed=3)
    layer = model.bert.encoder.layer[1]
    weights = dict(layer.named_parameters())
    placed = {"output.dense"} if placement == "pfeiffer" else {"attention.output.dense", "output.dense"}

    def adapter(of: Tensor, name: str) -> Tensor:
        if name not in placed:
            return of
        down, up = (weights[f"{name}.adapter.{part}.weight"] for part in ("down", "up"))
        assert down.shape == (8, 32) and up.shape == (32, 8)
        inner = (of @ down.T + weights[f"{name}.adapter.down.bias"]).clamp(min=0)
        return of + inner @ up.T + weights[f"{name}.adapter.up.bias"]

    states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = bert_layer(layer, states, adapters=adapter, num_heads=4)
        torch.testing.assert_close(layer(states), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_loaded_and_cut_it_is_the_same_model(kind: str, tmp_path: Path) -> None:
    model = adapted(load_classifier(tiny_model(tmp_path / "base", kind), labels=LABELS), "houlsby")
    onnx_graph.randomise(model, seed=2)
    save_model(model, tmp_path / "saved")
    again = load_classifier(tmp_path / "saved", labels=LABELS, seed=9)
    assert (torch_logits(again) == torch_logits(model)).all()
    torch.testing.assert_close(torch_logits(select_layers(model, range(4))), torch_logits(model), rtol=0, atol=0)
    student = select_layers(model, (0, 2))
    second = [tensor for name, tensor in model.state_dict().items() if ".2." in name and is_adapter(name)]
    kept = [tensor for name, tensor in student.state_dict().items() if ".1." in name and is_adapter(name)]
    assert len(second) == 8 and all(torch.equal(one, other) for one, other in zip(second, kept, strict=True))


def test_transformers_alone_refuses_the_folder(tmp_path: Path) -> None:
    """It would drop the adapters with no more than a warning."""
    save_model(adapted(load_classifier(tiny_model(tmp_path / "base"), labels=LABELS), "pfeiffer"), tmp_path / "saved")
    with pytest.raises(OSError, match=r"no file named model.safetensors"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")


def test_lost_adapters_are_noticed(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_model(adapted(load_classifier(tiny_model(tmp_path / "base"), labels=LABELS), "pfeiffer"), tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.safetensors")
    weights = {name: tensor for name, tensor in load_file(file).items() if not name.endswith("adapter.up.bias")}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"4 tensors that were added to the model are not in the weights, such as .*up.bias"
    ):
        load_classifier(tmp_path / "saved", labels=LABELS)


def test_a_base_that_has_adapters_gets_no_more(tmp_path: Path) -> None:
    model = adapted(load_classifier(tiny_model(tmp_path), labels=LABELS), "pfeiffer")
    with pytest.raises(ModelError, match="has adapters already"):
        adapted(model, "houlsby")


# Training -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return tiny_context(tmp_path_factory.mktemp("adapters"))


def train(plan: Plan, context: Context) -> Artifact:
    return run_plan(plan, context, ranks=solo(), report=lambda _: None)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_adapters_head_and_pooler_alone_are_trained(placement: Placement, context: Context) -> None:
    found = train(plan_of(tuning(placement)), context)
    history = found.about["history"]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    base = load_classifier(context.base_folder("base"), labels=LABELS).state_dict()
    for name, weights in load_file(found.folder / "model.adapted.safetensors").items():
        if is_adapter(name) or "pooler" in name:
            assert weights.any()
        elif not name.startswith("classifier"):
            assert torch.equal(weights, base[name]), name


def test_an_interrupted_stage_goes_on_and_a_finished_one_is_found(context: Context, tmp_path: Path) -> None:
    plan, whole = plan_of(tuning("houlsby")), tiny_context(tmp_path)
    expected = load_file(train(plan, context).folder / "model.adapted.safetensors")

    def interrupt(progress: Progress) -> None:
        if progress.fidelity < 1:
            raise KeyboardInterrupt

    again = replace(whole, checkpoint_every_s=0.0)
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, again, ranks=solo(), report=interrupt)
    artifact = train(plan, again)
    for name, weights in load_file(artifact.folder / "model.adapted.safetensors").items():
        assert torch.equal(weights, expected[name]), name
    written = (artifact.folder / "artifact.json").stat().st_mtime_ns
    assert (train(plan, again).folder / "artifact.json").stat().st_mtime_ns == written


def test_it_teaches_and_is_trained_further_and_cut(context: Context, tmp_path: Path) -> None:
    teacher = Chain(base="base", stages=(tuning(),))
    distil = Distill(optimisation=fitting(epochs=1), teacher=teacher, temperature=2.0, alpha=0.5, alpha_end=0.5)
    taught = train(plan_of(SelectLayers(layers=(0,)), distil), context)
    assert not any(map(is_adapter, load_file(taught.folder / "model.safetensors")))
    plan = plan_of(tuning(), SelectLayers(layers=(1,)), finetuning(epochs=1))
    model = load_classifier(train(plan, context).folder, labels=LABELS)
    assert plan.shape == Shape(base="base", num_layers=1, adapters=Adapters(placement="pfeiffer", reduction=4))
    file = deploy(train(plan, context), plan=plan, precision="fp32", context=context, folder=tmp_path)
    np.testing.assert_allclose(logits_of(file), torch_logits(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ((tuning(), tuning("houlsby")), "adapters houlsby-4 cannot go into a model that has pfeiffer-4 already"),
        ((tuning(), finetuning(Lora(rank=2, alpha=4))), "LoRA rank 2 cannot be merged into a model with pfeiffer-4"),
    ],
)
def test_what_cannot_follow_is_refused_when_a_plan_is_made(stages: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        plan_of(*stages)


# Deployment and search ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_is_deployed_as_torch_answers(kind: str, tmp_path: Path) -> None:
    models = {kind: str(tiny_model(tmp_path / kind, kind, num_layers=2))}
    context = Context(
        artifacts=str(tmp_path / "artifacts"), cache=str(tmp_path / "cache"), models=models, tokens={}, labels=LABELS
    )
    plan = Plan(base=kind, stages=(tuning("houlsby"),), data="rows", seed=0)
    model = adapted(load_classifier(Path(models[kind]), labels=LABELS), "houlsby")
    onnx_graph.randomise(model, seed=5)
    with context.store.publish(plan.fingerprint, {"kind": "model"}) as folder:
        save_model(model, folder)
    artifact = context.store.find(plan.fingerprint)
    assert artifact is not None
    fp32, int8 = (
        deploy(artifact, plan=plan, precision=precision, context=context, folder=tmp_path)
        for precision in ("fp32", "int8")
    )
    export = ensure_export(plan.shape, context)
    assert export.about["swappable"]
    assert sum(is_adapter(tensor) for tensor, _ in export.about["sources"].values()) == 2 * 2 * 4
    np.testing.assert_allclose(logits_of(fp32), torch_logits(model), atol=1e-4, rtol=1e-4)
    assert np.abs(logits_of(int8) - torch_logits(model)).max() < 0.5
    assert weight_bytes(int8) < weight_bytes(fp32) / 3


def test_the_space_knows_every_shape_and_keeps_the_feasible_ones() -> None:
    space = replace(make_space(), strategies=("adapter",))
    ends = [shape.adapters for shape in shapes(space) if shape.adapters]
    assert [adapters.say() for adapters in ends] == ["pfeiffer-16", "pfeiffer-4", "houlsby-16", "houlsby-4"]

    def feasible(shape: Shape) -> bool:
        return shape.adapters is None or shape.adapters.say() != "houlsby-4"

    left = restrict(space, feasible)
    assert left.strategies == ("adapter",)
    assert len(ADAPTER.ends_in(left)) == 2
    assert all(feasible(draw(left, RandomChooser(random.Random(seed))).plan.shape) for seed in range(20))
    none_left = restrict(space, lambda shape: shape.adapters is None)
    assert none_left.strategies == () and none_left.narrowed == {}


def test_only_one_placement_where_the_user_wants_one() -> None:
    from spaces.methods.adapter import ADAPTER_PLACEMENT

    narrowed = {"adapter_placement": replace(ADAPTER_PLACEMENT, options=("houlsby",))}
    assert len(ADAPTER.ends_in(replace(make_space(), narrowed=narrowed))) == 2


def test_a_bottleneck_is_at_least_one_wide(tmp_path: Path) -> None:
    model = adapted(load_classifier(tiny_model(tmp_path), labels=LABELS), "pfeiffer", reduction=64)
    assert {m.out_features for name, m in model.named_modules() if name.endswith("adapter.down")} == {1}
    assert all(isinstance(module, nn.Linear) for name, module in model.named_modules() if name.endswith("adapter.up"))


def test_every_shape_that_is_ruled_out_has_a_record_of_its_own(tmp_path: Path) -> None:
    space = replace(make_space(), strategies=("adapter",))
    costs = {(shape, "fp32", "cpu"): {"latency_ms": 20.0} for shape in shapes(space)}
    constraints = (parse_constraint("latency_ms <= 12"),)
    goals = Goals(metric="accuracy", objectives=("accuracy", "latency_ms"), constraints=constraints, targets=("cpu",))
    ledger = Ledger(Storage(tmp_path), metric="accuracy")
    settings: dict[str, Any] = {"estimated": frozenset(), "versions": {}, "clock": lambda: 0.0}
    Clerk(ledger=ledger, goals=goals, costs=costs, base_layers=6, names={}, **settings).rule_out(
        shapes(space), began=0.0
    )
    assert sorted((record.record_id, record.params["size"]) for record in ledger.records) == [
        ("shape-6-fp32-cpu", "6 layers"),
        ("shape-6-houlsby-16-fp32-cpu", "6 layers + houlsby-16"),
        ("shape-6-houlsby-4-fp32-cpu", "6 layers + houlsby-4"),
        ("shape-6-pfeiffer-16-fp32-cpu", "6 layers + pfeiffer-16"),
        ("shape-6-pfeiffer-4-fp32-cpu", "6 layers + pfeiffer-4"),
    ]


def test_what_is_handed_over_is_the_model_and_says_how_to_load_it(context: Context, tmp_path: Path) -> None:
    plan, storage = plan_of(tuning()), Storage(tmp_path / "run")
    spec = {"name": "words", "task": {"train": "rows.csv", "metric": "accuracy"}, "model": {"base": "tiny"}}
    storage.write("spec.yaml", yaml.safe_dump(spec).encode())
    storage.write_json("context.json", asdict(context))
    artifact = train(plan, context)
    record = make_record(
        plan=plan.to_json(), fingerprint=plan.fingerprint, strategy="adapter", quality=0.0, precision="int8"
    )
    folder = export_record(Run(storage), record, tmp_path / "export")
    model, handed = (load_classifier(place, labels=LABELS) for place in (artifact.folder, folder))
    assert (torch_logits(model) == torch_logits(handed)).all()
    assert np.abs(logits_of(folder / "model_int8.onnx") - torch_logits(model)).max() < 0.1
    card = (folder / "README.md").read_text()
    assert "transformers has no modules for pfeiffer-4" in card and "model_int8.onnx" in card
    assert "pipeline(" not in card and "library_name: onnx" in card
    with pytest.raises(ValueError, match=r"no file named model.safetensors"):
        pipeline("text-classification", model=str(folder))
