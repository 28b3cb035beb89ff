"""Feature alignment: what is compared in every family, what is trained, what a run leaves."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from generation_task import generation_context
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_models import KINDS, VOCABULARY, tiny_causal, tiny_model
from torch import Tensor
from training_task import LABELS, finetuning, fitting, plan_of, task_rows, tiny_context
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from spaces.methods.cut import SelectLayers
from spaces.methods.distill import Distill
from spaces.methods.distill_feature import DistillFeature
from spaces.methods.features import Feature
from spaces.plan import Plan
from spaces.stages import Chain
from trainers.alignment import Alignment, alignment, common_heads, compare_relations, is_causal, uniform_map
from trainers.batches import Batch, collate
from trainers.causal_models import load_causal
from trainers.checkpoints import Checkpoint
from trainers.context import Context
from trainers.families import DECODERS, ENCODERS, FAMILIES
from trainers.kinds import split_tokens
from trainers.loop import Job
from trainers.model_files import ModelError
from trainers.models import inspect_model, load_classifier, new_classifier, select_layers
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.run_stage import run_plan
from trainers.taps import Tap, last_layer_tap
from trainers.tokens import tokenise

EXPERT = finetuning(epochs=1)
FEATURES = {
    "hidden": Feature(kind="hidden"),
    "attention": Feature(kind="attention"),
    "relation": Feature(kind="relation", num_relation_heads=6),
}
every_feature = pytest.mark.parametrize("feature", FEATURES.values(), ids=FEATURES)


def silent(_: Progress) -> None:
    pass


def aligning(feature: Feature, *, base: str = "base", **settings: Any) -> DistillFeature:
    return DistillFeature(
        optimisation=fitting(learning_rate=3e-3, **settings),
        teacher=Chain(base=base, stages=(EXPERT,)),
        feature=feature,
    )


def train(plan: Plan, context: Context) -> tuple[Any, list[Progress]]:
    told: list[Progress] = []
    return run_plan(plan, context, ranks=solo(), report=told.append), told


def with_teacher(context: Context, folder: Path, kind: str = "bert", **settings: Any) -> Context:
    """``context`` and a second base model, ``other``, whose rows are tokenised as its own tokenizer does."""
    found = inspect_model(str(tiny_model(folder, kind, seed=7, **settings)))
    rows = {"train": task_rows(45, seed=0), "validation": task_rows(20, seed=1)}
    tokens = {split: tokenise(these, found, context.store, max_tokens=16).fingerprint for split, these in rows.items()}
    return dataclasses.replace(
        context,
        models={**context.models, "other": str(found.folder)},
        tokens={**context.tokens, "other": tokens},
    )


class Setting:
    """A trained teacher, a student cut from it, and a batch."""

    def __init__(self, context: Context, *, teacher: str = "base") -> None:
        self.teacher = Plan(base=teacher, stages=(EXPERT,), data="rows")
        artifact, _ = train(self.teacher, context)
        self.expert = load_classifier(artifact.folder, labels=LABELS)
        self.context = context
        self.batch = collate(split_tokens(context, base="base", split="train"), range(6), pad_id=VOCABULARY["[PAD]"])

    def loss(self, student: Any, feature: Feature) -> tuple[Tensor, Alignment]:
        job = Job(plan=plan_of(aligning(feature)), context=self.context, ranks=solo(), report=silent)
        with alignment(student, feature, self.teacher, job) as loss:
            asked = {f"output_{name}": True for name in loss.outputs}
            outputs = student(self.batch.input_ids_BL, self.batch.attention_mask_BL, **asked)
            return loss(outputs, self.batch, 0.0), loss


@pytest.fixture(scope="module", params=KINDS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tiny_context(tmp_path_factory.mktemp(request.param), kind=request.param, num_layers=4))


# The loss -------------------------------------------------------------------------------------------------------------


@every_feature
def test_a_student_that_is_its_teacher_has_nothing_to_learn(family: Setting, feature: Feature) -> None:
    loss, _ = family.loss(family.expert, feature)
    assert loss.item() == pytest.approx(0, abs=1e-9)


@every_feature
def test_the_gradient_reaches_student_and_projection_but_not_the_teacher(family: Setting, feature: Feature) -> None:
    student = select_layers(family.expert, [0, 3]).train()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(
                0.05 * torch.randn_like(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    loss, module = family.loss(student, feature)
    loss.backward()
    assert loss > 0
    learning = {name for name, p in student.base_model.named_parameters() if p.grad is not None and p.grad.any()}
    layers = FAMILIES[student.config.model_type].layers
    assert any(name.startswith(f"{layers}.0.") for name in learning)
    assert any(name.startswith(f"{layers}.1.") for name in learning)
    assert len(list(module.parameters())) == (2 if feature.kind == "hidden" else 0)
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


@every_feature
def test_asking_twice_leaves_nothing_of_the_pass_before(family: Setting, feature: Feature) -> None:
    student = select_layers(family.expert, [0, 3])
    before = student.config._attn_implementation
    losses, hooks = [], []
    for _ in range(2):
        losses.append(family.loss(student, feature)[0])
        # transformers leaves hooks of its own, once.
        hooks.append(sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in student.modules()))
    assert losses[0] == losses[1] and hooks[0] == hooks[1]
    assert student.config._attn_implementation == before


@every_feature
@pytest.mark.parametrize("shape", [{"hidden_size": 48}, {"num_attention_heads": 2}, {"num_layers": 3}], ids=str)
def test_a_teacher_of_another_shape_teaches(shape: dict[str, int], feature: Feature, tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    folder = tiny_model(tmp_path / "other", seed=7, **{k: v for k, v in shape.items() if k != "num_attention_heads"})
    if heads := shape.get("num_attention_heads"):
        config = AutoConfig.from_pretrained(folder)
        config.num_attention_heads = heads
        config.save_pretrained(folder)
    context = dataclasses.replace(
        context,
        models={**context.models, "other": str(folder)},
        tokens={**context.tokens, "other": context.tokens["base"]},
    )
    _, told = train(plan_of(SelectLayers(layers=(0,)), aligning(feature, base="other", epochs=4)), context)
    mine = [p.train_loss for p in told if p.kind == "distill_feature"]
    assert 0 < mine[-1] < mine[0]


def test_padding_and_other_rows_do_not_change_a_rows_features(family: Setting) -> None:
    student = select_layers(family.expert, [0, 3])
    for feature in FEATURES.values():
        whole, _ = family.loss(student, feature)
        alone = Setting.__new__(Setting)
        alone.__dict__ = {**family.__dict__}
        parts = []
        for row in range(6):
            tokens = split_tokens(family.context, base="base", split="train")
            alone.batch = collate(tokens, [row], pad_id=VOCABULARY["[PAD]"], whole=range(6))
            parts.append(alone.loss(student, feature)[0])
        torch.testing.assert_close(sum(parts), whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "places"),
    [(4, 12, (3, 6, 9, 12)), (6, 6, (1, 2, 3, 4, 5, 6)), (4, 6, (2, 3, 5, 6)), (1, 6, (6,)), (4, 1, (1, 1, 1, 1))],
)
def test_layers_are_compared_evenly(student: int, teacher: int, places: tuple[int, ...]) -> None:
    assert uniform_map(student, teacher) == places  # 4 of 12 are TinyBERT's


@pytest.mark.parametrize(("wanted", "widths", "heads"), [(48, (384, 768), 48), (12, (32, 48), 8), (5, (7, 9), 1)])
def test_relation_heads_divide_every_width(wanted: int, widths: tuple[int, ...], heads: int) -> None:
    assert common_heads(wanted, *widths) == heads


# Queries, keys and values ---------------------------------------------------------------------------------------------

_POSITIONLESS = {
    "bert",
    "camembert",
    "deberta",
    "distilbert",
    "electra",
    "ernie",
    "megatron-bert",
    "roberta",
    "xlm-roberta",
}
"""Families whose attention adds nothing to the product of queries and keys."""


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_what_is_tapped_is_what_attention_is_made_of(kind: str) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
    if kind == "distilbert":
        sizes = {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "pad_token_id": 0}
    extra = {"position_buckets": 8, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True}
    model = new_classifier(AutoConfig.for_model(kind, **sizes, **(extra if kind == "deberta-v2" else {})))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.set_attn_implementation("eager")
    layer = model.base_model.get_submodule(FAMILIES[kind].layers)[-1]
    seen: list[Tensor] = []
    for linear in (module for module in layer.modules() if isinstance(module, torch.nn.Linear)):
        linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with last_layer_tap(model) as tap, torch.no_grad():
        shares_BALL = model(torch.arange(3, 17).view(2, 7), output_attentions=True).attentions[-1]
        queries, keys, values = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in tap.take())
    assert queries.shape == keys.shape == values.shape == (2, 4, 7, 8)
    # What the heads give, side by side, is what the layer's output projection gets.
    mixed_BLH = (shares_BALL @ values).transpose(1, 2).flatten(-2)
    assert any(one.shape == mixed_BLH.shape and torch.allclose(one, mixed_BLH, atol=1e-5) for one in seen)
    if kind in _POSITIONLESS:
        expected = (queries @ keys.transpose(-1, -2) / 8**0.5).softmax(dim=-1)
        torch.testing.assert_close(shares_BALL, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_a_causal_model_is_tapped_too_with_fewer_keys_and_values(kind: str, tmp_path: Path) -> None:
    model = load_causal(tiny_causal(tmp_path, kind))
    model.set_attn_implementation("eager")
    layer = model.base_model.get_submodule(FAMILIES[kind].layers)[-1]
    seen: list[Tensor] = []
    for linear in (module for module in layer.modules() if isinstance(module, torch.nn.Linear | Conv1D)):
        linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with last_layer_tap(model) as tap, torch.no_grad():
        shares_BALL = model(torch.arange(6, 20).view(2, 7), output_attentions=True).attentions[-1]
        queries, keys, values = tap.take()
    assert queries.shape == (2, 7, 32) and keys.shape == values.shape
    heads = values.unflatten(-1, (-1, 8)).transpose(1, 2)
    mixed = (shares_BALL @ heads.repeat_interleave(4 // heads.shape[1], dim=1)).transpose(1, 2).flatten(-2)
    assert any(one.shape == mixed.shape and torch.allclose(one, mixed, atol=1e-5) for one in seen)


def test_an_attention_that_is_not_known_is_named() -> None:
    with pytest.raises(ModelError, match="Linear: its queries, keys and values are not found; take another feature"):
        Tap(torch.nn.Linear(2, 2))


# The stage ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return tiny_context(tmp_path_factory.mktemp("aligned"))


@every_feature
def test_a_stage_leaves_an_aligned_student_and_nothing_of_the_projection(context: Context, feature: Feature) -> None:
    teacher, _ = train(plan_of(EXPERT), context)
    before = (teacher.folder / "model.safetensors").read_bytes()
    artifact, told = train(plan_of(EXPERT, SelectLayers(layers=(0,)), aligning(feature, epochs=6)), context)
    assert told[-1].train_loss < 0.8 * told[0].train_loss
    assert (teacher.folder / "model.safetensors").read_bytes() == before
    student = select_layers(load_classifier(teacher.folder, labels=LABELS), [0]).state_dict()
    trained = load_file(artifact.folder / "model.safetensors")
    assert trained.keys() == student.keys()
    assert not torch.equal(
        *(weights["bert.encoder.layer.0.attention.self.key.weight"] for weights in (trained, student))
    )
    assert torch.equal(trained["classifier.weight"], student["classifier.weight"])
    assert json.loads((artifact.folder / "config.json").read_text()).get("output_hidden_states") is not True


@every_feature
def test_an_interrupted_alignment_ends_as_if_it_had_not_been(feature: Feature, tmp_path: Path) -> None:
    plan = plan_of(SelectLayers(layers=(0,)), aligning(feature, epochs=3))
    undisturbed, all_told = train(plan, tiny_context(tmp_path / "one"))
    context = tiny_context(tmp_path / "two", checkpoint_every_s=0.0)

    def interrupt(progress: Progress) -> None:
        if progress.final and progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, context, ranks=solo(), report=interrupt)
    standing = Checkpoint(context, plan.fingerprint).read()
    assert standing is not None and standing.steps == 6
    projections = [name for name in standing.tensors if name.startswith("weight/loss.")]
    assert len(projections) == (2 if feature.kind == "hidden" else 0)
    artifact, told = train(plan, context)
    weights = [(found.folder / "model.safetensors").read_bytes() for found in (undisturbed, artifact)]
    assert weights[0] == weights[1]
    assert [p.train_loss for p in told] == [p.train_loss for p in all_told if p.final]


@pytest.mark.parametrize("kind", ["hidden", "relation"])
def test_soft_labels_and_a_feature_add_up(context: Context, kind: str) -> None:
    stage = Distill(
        optimisation=fitting(epochs=1, learning_rate=1e-9),
        teacher=Chain(base="base", stages=(EXPERT,)),
        temperature=2.0,
        alpha=0.5,
        alpha_end=0.5,
    )
    feature = FEATURES[kind]
    stages = (
        stage,
        *(stage.model_copy(update={"feature": feature, "gamma": gamma}) for gamma in (1.0, 3.0)),
        aligning(feature, epochs=1).model_copy(update={"optimisation": stage.optimisation}),
    )
    losses = []
    for found in stages:
        _, told = train(plan_of(SelectLayers(layers=(0,)), found, seed=len(kind)), context)
        losses.append(told[-1].train_loss)
    plain, once, thrice, _ = losses
    assert once > plain
    assert thrice - plain == pytest.approx(3 * (once - plain), rel=1e-3)
    # A feature's mean is over tokens, an epoch's over rows: nearly the same.
    assert once - plain == pytest.approx(losses[3], rel=1e-3)


@every_feature
def test_a_causal_student_is_aligned_with_what_it_sees(feature: Feature, tmp_path: Path) -> None:
    context = generation_context(tmp_path)
    artifact, told = train(plan_of(SelectLayers(layers=(0,)), aligning(feature, epochs=4)), context)
    mine = [p.train_loss for p in told if p.kind == "distill_feature"]
    assert 0 < mine[-1] < mine[0]
    assert is_causal(load_causal(artifact.folder))


def test_no_relation_of_a_causal_model_is_to_a_later_token() -> None:
    batch = fake_batch(torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]))
    states = torch.randn(2, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    student, teacher = (states[0],) * 3, (states[1],) * 3
    found = compare_relations(student, teacher, batch, num_relation_heads=2, causal=True)
    expected = torch.zeros(())
    for row, length in ((0, 4), (1, 2)):
        for query in range(length):
            logs = []
            for one in states[:, row, : query + 1].unflatten(-1, (2, 4)).unbind(0):
                logs.append((torch.einsum("lad,ad->al", one, one[query]) / 2).log_softmax(-1))
            expected += 3 * torch.nn.functional.kl_div(logs[0], logs[1], log_target=True, reduction="sum") / 2
    torch.testing.assert_close(found, expected / 6)


def fake_batch(mask_BL: Tensor) -> Batch:
    nothing = torch.zeros(0, dtype=torch.int64)
    return Batch(
        rows=nothing.numpy(),
        input_ids_BL=mask_BL,
        attention_mask_BL=mask_BL,
        labels_P=nothing,
        positions_P=nothing.numpy(),
        places_P=None,
        count=1,
        num_rows=len(mask_BL),
        num_tokens=int(mask_BL.sum()),
    )


# Whom a student can be aligned with -----------------------------------------------------------------------------------


@every_feature
def test_a_teacher_of_another_family_that_reads_the_same_tokens_teaches(feature: Feature, tmp_path: Path) -> None:
    context = with_teacher(tiny_context(tmp_path), tmp_path / "other", "distilbert", hidden_size=48, num_layers=3)
    _, told = train(plan_of(SelectLayers(layers=(0,)), aligning(feature, base="other", epochs=4)), context)
    mine = [p.train_loss for p in told if p.kind == "distill_feature"]
    assert 0 < mine[-1] < mine[0]


def test_a_teacher_that_reads_other_tokens_is_refused(tmp_path: Path) -> None:
    context = with_teacher(tiny_context(tmp_path), tmp_path / "other")
    longer = tokenise(task_rows(45, seed=0), inspect_model(context.models["other"]), context.store, max_tokens=5)
    context = dataclasses.replace(
        context, tokens={**context.tokens, "other": {**context.tokens["other"], "train": longer.fingerprint}}
    )
    with pytest.raises(ModelError, match=r"cannot be aligned .* training row \d+ is \d+ tokens .* for the student, 5 "):
        train(plan_of(SelectLayers(layers=(0,)), aligning(FEATURES["hidden"], base="other")), context)


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"kind": "relation"}, {"kind": "hidden", "num_relation_heads": 4}], ids=str)
def test_relation_heads_belong_to_relations(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="belongs to `relation` alone"):
        Feature(**settings)


@pytest.mark.parametrize("settings", [{"gamma": 1.0}, {"feature": FEATURES["hidden"]}], ids=["gamma", "feature"])
def test_a_feature_and_its_weight_come_together(settings: dict[str, Any]) -> None:
    teacher = Chain(base="base", stages=(EXPERT,))
    with pytest.raises(ValidationError, match="come together"):
        Distill(optimisation=fitting(), teacher=teacher, temperature=1, alpha=1, alpha_end=1, **settings)
