"""Students by width: a narrow model is the whole one with the rest switched off; what is kept; how it is served."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from generation_task import generation_context
from ledgers import make_space
from pydantic import ValidationError
from tiny_models import KINDS, tiny_causal, tiny_model
from tiny_search import tiny_spec
from torch import Tensor
from torch.nn import functional
from training_task import finetuning, plan_of, tiny_context

from search.prepare import prepare
from search.spec import SpecError, load_spec
from search.words import say_shape
from spaces.choosers import FixedChooser
from spaces.draw import draw, opening, restrict
from spaces.methods.cut import SelectLayers
from spaces.methods.width import SelectWidth
from spaces.shape import Shape
from trainers.carry_out import carry_out
from trainers.causal_models import inspect_causal, load_causal
from trainers.cost import probe, read_cost_table, write_cost_table
from trainers.families import DECODERS, ENCODERS, FAMILIES
from trainers.kinds import split_tokens
from trainers.model_files import ModelError
from trainers.models import inspect_model, load_classifier, new_classifier
from trainers.ranks import solo
from trainers.run_stage import run_plan
from trainers.storage import Storage, StorageError
from trainers.width import NARROWED, check_width, narrow, narrow_config
from trainers.width_scores import score_width, scores_of

LABELS = ("cat", "dog", "sun")
IDS = torch.tensor([[2, 5, 6, 7, 11, 12, 3], [2, 8, 10, 3, 0, 0, 0]])
MASK = (IDS != 0).long()
HIDDEN, HEADS, HEAD_SIZE, NEURONS, LAYERS = 32, 4, 8, 64, 2


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, attention_mask=MASK).logits
    return found


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A tiny model of a family, every weight of it random."""
    root = tmp_path_factory.mktemp("wide")

    def loaded(kind: str) -> Any:
        folder = root / kind
        if kind in DECODERS:
            model = load_causal(folder if folder.exists() else tiny_causal(folder, kind))
        elif kind in KINDS:
            folder = folder if folder.exists() else tiny_model(folder, kind, num_layers=LAYERS)
            model = load_classifier(folder, labels=LABELS)
        else:
            torch.manual_seed(0)
            model = new_classifier(small_config(kind))
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        return model

    return loaded


def small_config(kind: str) -> Any:
    from transformers import AutoConfig

    sizes = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "intermediate_size": NEURONS}
    return AutoConfig.for_model(
        kind, **sizes, vocab_size=60, num_hidden_layers=LAYERS, max_position_embeddings=40, pad_token_id=0, num_labels=3
    )


def random_scores(groups: int) -> dict[str, Tensor]:
    """No two alike."""
    generator = torch.Generator().manual_seed(2)
    sizes = {"channels": (HIDDEN,), "heads": (LAYERS, groups), "neurons": (LAYERS, NEURONS)}
    return {name: torch.rand(size, generator=generator) for name, size in sizes.items()}


def best(scores: Tensor) -> Tensor:
    """Mask of the upper half."""
    return scores > scores.median() if len(scores) % 2 else scores >= scores.sort().values[len(scores) // 2]


def switch_off(model: Any, scores: dict[str, Tensor], groups: int) -> None:
    """The same by other means: the lower half of heads and neurons give zero where they are read, norms see the upper
    half of the channels alone and give zero for the others.
    """
    family, channels = FAMILIES[model.config.model_type], best(scores["channels"])
    for index, layer in enumerate(model.base_model.get_submodule(family.layers)):
        heads = best(scores["heads"][index]).repeat_interleave(HEADS // groups * HEAD_SIZE)
        for name, kept in ((family.attention_output, heads), (family.ffn_output, best(scores["neurons"][index]))):
            layer.get_submodule(name).register_forward_pre_hook(lambda _, inputs, kept=kept: (inputs[0] * kept,))
    for name, module in model.named_modules():
        if type(module).__name__.endswith("Norm") and module.weight.shape == channels.shape:
            module.forward = partial_norm(module, channels)
        elif name.endswith(("pooler.dense", "classifier.dense", "pre_classifier")):
            module.register_forward_hook(lambda _m, _i, output: output * channels)


def partial_norm(norm: Any, kept: Tensor) -> Callable[[Tensor], Tensor]:
    def forward(values: Tensor) -> Tensor:
        some, weight = values[..., kept], norm.weight[kept]
        if "RMS" in type(norm).__name__:
            eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
            found = some * torch.rsqrt(some.pow(2).mean(dim=-1, keepdim=True) + eps) * weight
        else:
            found = functional.layer_norm(some, (int(kept.sum()),), weight, norm.bias[kept], norm.eps)
        return torch.zeros_like(values).masked_scatter(kept.expand_as(values), found)

    return forward


@pytest.mark.parametrize("kind", NARROWED)
def test_a_narrow_model_is_the_whole_one_with_the_rest_switched_off(kind: str, load: Callable[[str], Any]) -> None:
    model = load(kind)
    groups = getattr(model.config, "num_key_value_heads", None) or HEADS
    torch.testing.assert_close(logits(narrow(model, 1.0)), logits(model), rtol=0, atol=0)
    scores = random_scores(groups)
    small = narrow(model, 0.5, scores)
    config = small.config
    assert (config.hidden_size, config.num_attention_heads) == (HIDDEN // 2, HEADS // 2)
    assert config.to_dict() == narrow_config(model.config, 0.5).to_dict()
    whole = logits(model)
    switch_off(model, scores, groups)
    assert (logits(model) - whole).abs().max() > 1e-2
    torch.testing.assert_close(logits(small), logits(model), rtol=1e-4, atol=1e-4)


# What is kept --------------------------------------------------------------------------------------------------------


def silence(model: Any, groups: int) -> dict[str, Tensor]:
    """Make a random half of all channels, heads and neurons silent. Masks of the others, by the names of scores."""
    scores = random_scores(groups)
    alive = {
        name: torch.stack([best(row) for row in found.view(-1, found.shape[-1])]) for name, found in scores.items()
    }
    for index, layer in enumerate(model.base_model.layers):
        layer.self_attn.v_proj.weight.data *= alive["heads"][index].repeat_interleave(HEAD_SIZE)[:, None]
        layer.mlp.up_proj.weight.data *= alive["neurons"][index][:, None]
    for module in model.base_model.modules():
        if type(module).__name__.endswith("Norm"):
            module.weight.data *= alive["channels"][0]
    return alive


def test_what_is_silent_on_the_rows_goes(load: Callable[[str], Any], tmp_path: Path) -> None:
    model = load("llama")
    alive = silence(model, 2)
    scores = scores_of(model, split_tokens(generation_context(tmp_path), base="base", split="train"))
    for name, found in scores.items():
        assert torch.equal(found.view(alive[name].shape) > 0, alive[name]), name
    name = "model.layers.1.mlp.down_proj.weight"
    kept = model.state_dict()[name][alive["channels"][0]][:, alive["neurons"][1]]
    assert torch.equal(narrow(model, 0.5, scores).state_dict()[name], kept)


def test_scores_are_means_over_tokens(load: Callable[[str], Any], tmp_path: Path) -> None:
    """Of rows that are padded together as of rows one by one; BERT's norms are what it returns as hidden states, and
    what is behind attention.
    """
    model = load("bert")
    tokens = split_tokens(tiny_context(tmp_path), base="base", split="validation")
    found, layers = scores_of(model, tokens), model.bert.encoder.layer
    seen: dict[str, list[Tensor]] = {"heads": [], "neurons": [], "norms": []}
    layers[1].attention.output.dense.register_forward_pre_hook(lambda _, given: seen["heads"].append(given[0][0]))
    layers[1].output.dense.register_forward_pre_hook(lambda _, given: seen["neurons"].append(given[0][0]))
    for layer in layers:
        layer.attention.register_forward_hook(lambda _m, _i, given: seen["norms"].append(given[0][0]))
    for row in range(len(tokens)):
        with torch.no_grad():
            ids = torch.from_numpy(tokens.ids(row))[None]
            states = model.bert(input_ids=ids, output_hidden_states=True).hidden_states
        seen["norms"] += [one[0] for one in states]
    heads, neurons, norms = (torch.cat(found).detach() for found in seen.values())
    lengths = heads.view(-1, HEADS, HEAD_SIZE).square().sum(dim=-1).sqrt()
    torch.testing.assert_close(found["heads"][1], lengths.mean(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["neurons"][1], neurons.abs().mean(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["channels"], norms.abs().sum(dim=0) / len(heads), rtol=1e-4, atol=1e-5)


def test_scores_are_kept_and_depend_on_the_rows(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    model = replace(inspect_model(context.models["base"]), fingerprint="base")
    first, again = (score_width(model, context) for _ in range(2))
    other = replace(context, tokens={"base": {**context.tokens["base"], "train": context.tokens["base"]["validation"]}})
    assert first == again != score_width(model, other)
    plan = plan_of(SelectWidth(share=0.5, scores=first), SelectLayers(layers=(1,)), finetuning())
    small = run_plan(plan, context, ranks=solo(), report=lambda _: None)
    config = json.loads((small.folder / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (HIDDEN // 2, 1)
    gone = plan_of(SelectWidth(share=0.5, scores="0" * 64), finetuning())
    with pytest.raises(StorageError, match="the scores 000000000000… of the base's width are gone"):
        run_plan(gone, context, ranks=solo(), report=lambda _: None)


# What is refused -----------------------------------------------------------------------------------------------------


def test_layers_are_taken_out_later() -> None:
    width = SelectWidth(share=0.5, scores="s")
    assert plan_of(width, SelectLayers(layers=(0,)), finetuning()).shape == Shape(base="base", num_layers=1, width=0.5)
    for stages in ((SelectLayers(layers=(0,)), width), (width, width)):
        with pytest.raises(ValidationError, match="must come before layers are taken out or put in, and only once"):
            plan_of(*stages, finetuning())


def test_shares_that_leave_no_whole_heads(tmp_path: Path) -> None:
    spec = load_spec(tiny_spec(tmp_path, model={"student_widths": [1, 0.6]}))
    with pytest.raises(SpecError, match=r"model.student_widths: found 0.6; .*4 heads.*that do: 0.25, 0.5, 0.75, 1"):
        prepare(spec, Storage(tmp_path / "run"), threads=1, say=lambda _: None)
    model = inspect_causal(str(tiny_causal(tmp_path / "grouped")))
    check_width(model, 0.5)
    with pytest.raises(ModelError, match=r"0.25 of the width .* 2 of keys and values; shares that do: 0.5, 1"):
        check_width(model, 0.25)


def test_families_that_cannot_be_narrowed(tmp_path: Path) -> None:
    model = inspect_causal(str(tiny_causal(tmp_path, "gpt2")))
    with pytest.raises(ModelError, match="is of type gpt2, which cannot be narrowed; those that can: bert"):
        check_width(model, 0.5)
    assert set(NARROWED) <= set(ENCODERS | DECODERS)


# Drawn, trained, served ----------------------------------------------------------------------------------------------


def test_a_search_draws_trains_and_serves_narrow_students(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = {"student_widths": [0.5, 1.0], "student_layers": [1, 2], "vocabulary": "task"}
    search = {"strategies": ["distill_feature", "small_finetune"], "space": {"epochs": 1}}
    found = prepare(
        load_spec(tiny_spec(tmp_path, model=model, search=search)),
        Storage(tmp_path / "run"),
        threads=1,
        say=lambda _: None,
    )
    space, context = found.space, found.context
    assert space.student_widths == (1.0, 0.5) and space.width_scores is not None
    assert {(shape.num_layers, shape.width) for shape in space.student_shapes} == {
        (1, None),
        (None, None),
        (1, 0.5),
        (None, 0.5),
    }
    picks = {**next(opening(space)).params, "strategy": "distill_feature", "student_layers": 1, "student_width": 0.5}
    drawn = draw(space, FixedChooser(picks))
    assert [stage.kind for stage in drawn.plan.stages][:4] == [
        "finetune",
        "keep_vocabulary",
        "select_width",
        "select_layers",
    ]
    result = carry_out(drawn.plan, ["fp32"], context, ranks=solo(), report=lambda _: None)
    assert result is not None and result.variants[0].value > 0 and "exported by itself" not in caplog.text
    row = probe(drawn.plan.shape, "fp32", context, reference=drawn.plan.shape, sequence_length=8)
    artifact = context.store.find(drawn.plan.fingerprint)
    assert artifact is not None
    trained = load_classifier(artifact.folder, labels=context.labels)
    embeddings = sum(tensor.numel() for name, tensor in trained.named_parameters() if "_embeddings" in name)
    assert trained.config.hidden_size == 16
    assert row.weights == pytest.approx(trained.num_parameters() - embeddings, rel=0.05)
    storage = Storage(tmp_path / "costs")
    write_cost_table([row], storage, "costs.parquet")
    assert read_cost_table(storage, "costs.parquet") == [row]
    assert say_shape(row.shape).startswith("1 layer at 0.5 of the width, ")


def test_what_a_narrow_model_that_writes_costs(tmp_path: Path) -> None:
    context = generation_context(tmp_path)
    shapes = [Shape(base="base", width=width) for width in (None, 0.5)]
    whole, half = (probe(shape, "fp32", context, reference=shapes[1], sequence_length=4) for shape in shapes)
    assert half.size_mb < 0.6 * whole.size_mb and half.flops < 0.5 * whole.flops


def test_what_is_feasible_is_a_block() -> None:
    space = replace(make_space(), strategies=("small_finetune",), student_widths=(1.0, 0.5), width_scores="s")
    left = restrict(space, lambda shape: space.num_layers(shape) * (shape.width or 1.0) <= 1.5)
    assert (left.student_widths, left.student_layers) == ((0.5,), (1, 2, 3))
    left = restrict(space, lambda shape: space.num_layers(shape) * (shape.width or 1.0) <= 3)
    assert (left.student_widths, left.student_layers) == ((1.0, 0.5), (1, 2, 3))
