"""Prefix tuning: PEFT's own answers, what is trained, what is kept of a projection, what is deployed, who cannot."""

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file
from test_adapters import SMALL, tuning
from test_deploy import LABELS, logits_of, torch_logits
from tiny_models import tiny_model
from tiny_search import tiny_spec
from torch import Tensor
from training_task import finetuning, fitting, plan_of, tiny_context
from transformers import AutoConfig

from search.prepare import Prepared, prepare
from search.spec import SpecError, load_spec
from spaces.methods.cut import SelectLayers
from spaces.methods.finetune import Lora
from spaces.methods.prefix import PrefixTuning
from spaces.plan import Plan
from spaces.shape import Shape
from trainers import onnx_graph
from trainers.artifacts import Artifact
from trainers.context import Context
from trainers.deploy import deploy, ensure_export, load_graph
from trainers.families import ENCODERS
from trainers.finetune import add_adapters
from trainers.models import (
    ModelError,
    add_prefix,
    load_classifier,
    new_classifier,
    save_model,
    select_layers,
)
from trainers.past import prefixes
from trainers.prefix import Unfolded, new_encoder
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.roofline import graph_facts
from trainers.run_stage import run_plan
from trainers.storage import Storage

ABLE = sorted(kind for kind, family in ENCODERS.items() if family.attention)
UNABLE = sorted(ENCODERS.keys() - ABLE)
WEIGHTS = "model.adapted.safetensors"


def prefixing(num_tokens: int = 3, *, projection: bool = False, **settings: Any) -> PrefixTuning:
    return PrefixTuning(optimisation=fitting(**settings), num_tokens=num_tokens, projection=projection)


def prefixed(model: Any, num_tokens: int = 3) -> Any:
    """A copy of ``model`` with a new prefix."""
    return add_prefix(copy.deepcopy(model), num_tokens)


def is_prefix(name: str) -> bool:
    return ".prefix." in name


# The model ------------------------------------------------------------------------------------------------------------


def random_classifier(kind: str) -> Any:
    model = new_classifier(AutoConfig.for_model(kind, **SMALL, num_labels=3))
    onnx_graph.randomise(model, seed=1)
    return model


def through_peft(model: Any, num_tokens: int) -> tuple[Any, Tensor]:
    """A copy of ``model`` with a random prefix of PEFT's, and its keys and values, layers × 2 × 1 × heads × tokens ×
    head size, cut out of its table as ``PeftModel.get_prompt`` does.
    """
    copied = copy.deepcopy(model)
    # GPT-2, GPT-NeoX and OPT do not read it, but PEFT does.
    copied.config.num_key_value_heads = next(prefixes(prefixed(model))).key.shape[1]
    task = "SEQ_CLS" if model.get_output_embeddings() is None else "CAUSAL_LM"
    with warnings.catch_warnings():
        # PEFT still asks transformers for a property by its old name.
        warnings.simplefilter("ignore", FutureWarning)
        found = get_peft_model(copied, PrefixTuningConfig(task_type=task, num_virtual_tokens=num_tokens))
    settings = found.active_peft_config
    heads = (settings.num_attention_heads, settings.token_dim // settings.num_attention_heads)
    table = found.prompt_encoder["default"].embedding.weight.detach()
    pairs = table.view(num_tokens, settings.num_layers, 2, 1, *heads).permute(1, 2, 3, 4, 0, 5)
    return found.eval(), pairs


def positions_of(kind: str, ids: Tensor, mask: Tensor) -> Tensor:
    """Where the tokens stand without a prefix."""
    return mask.cumsum(dim=1) * mask if ENCODERS[kind].padded_positions else torch.arange(ids.shape[1]).expand_as(ids)


@pytest.mark.parametrize("kind", ABLE)
def test_every_family_answers_as_with_pefts_prefix(kind: str) -> None:
    model, num_tokens = random_classifier(kind), 3
    ours = prefixed(model, num_tokens)
    theirs, pairs = through_peft(model, num_tokens)
    for prefix, pair in zip(prefixes(ours), pairs, strict=True):
        prefix.keep(pair)
    for rows in (1, 3):
        ids, mask = onnx_graph.example_inputs(model, rows=rows, length=9)
        with torch.no_grad():
            found = ours(input_ids=ids, attention_mask=mask).logits
            # PEFT moves positions behind the prefix; ours stay.
            positions = positions_of(kind, ids, mask) - num_tokens
            expected = theirs(input_ids=ids, attention_mask=mask, position_ids=positions).logits
            without = model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        assert (found - without).abs().max() > 1e-3


@pytest.mark.parametrize("kind", UNABLE)
def test_families_that_peft_cannot_prefix_are_refused(kind: str) -> None:
    model = random_classifier(kind)
    with pytest.raises(ModelError, match=f"{kind}: its attention takes no keys and values from before"):
        prefixed(model)
    ids, mask = onnx_graph.example_inputs(model, rows=1, length=5)
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        through_peft(model, 3)[0](input_ids=ids, attention_mask=mask)


def test_a_row_may_be_as_long_as_without_a_prefix(tmp_path: Path) -> None:
    model = prefixed(load_classifier(tiny_model(tmp_path), labels=LABELS), 16)
    ids = torch.ones(1, model.config.max_position_embeddings, dtype=torch.long)
    assert model(input_ids=ids, attention_mask=ids).logits.isfinite().all()


@pytest.mark.parametrize("projection", [False, True], ids=["table", "projected"])
def test_folded_it_is_what_it_was(projection: bool, tmp_path: Path) -> None:
    model = prefixed(load_classifier(tiny_model(tmp_path), labels=LABELS))
    names = set(model.state_dict())
    unfolded = Unfolded(model, new_encoder(model, projection=projection))
    model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    assert all(parameter.grad.any() for parameter in unfolded.encoder.parameters())
    before = torch_logits(model)
    unfolded.fold()
    assert set(model.state_dict()) == names
    assert (torch_logits(model) == before).all()


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_saved_loaded_and_cut_it_is_the_same_model(kind: str, tmp_path: Path) -> None:
    model = prefixed(load_classifier(tiny_model(tmp_path / "base", kind), labels=LABELS))
    onnx_graph.randomise(model, seed=2)
    save_model(model, tmp_path / "saved")
    again = load_classifier(tmp_path / "saved", labels=LABELS, seed=9)
    assert (torch_logits(again) == torch_logits(model)).all()
    kept, whole = list(prefixes(select_layers(model, (0, 2)))), list(prefixes(model))
    assert torch.equal(kept[1].key, whole[2].key) and torch.equal(kept[1].value, whole[2].value)


def test_low_rank_adapters_are_merged_beside_a_prefix(tmp_path: Path) -> None:
    model = prefixed(load_classifier(tiny_model(tmp_path), labels=LABELS))
    onnx_graph.randomise(model, seed=2)
    adapted = add_adapters(model, Lora(rank=2, alpha=4)).eval()
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    before = torch_logits(adapted)
    np.testing.assert_allclose(torch_logits(adapted.merge_and_unload()), before, atol=1e-5)


def test_a_base_that_has_a_prefix_gets_no_other(tmp_path: Path) -> None:
    model = prefixed(load_classifier(tiny_model(tmp_path), labels=LABELS))
    with pytest.raises(ModelError, match="has a prefix already"):
        prefixed(model)


# Training -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return tiny_context(tmp_path_factory.mktemp("prefix"))


def train(plan: Plan, context: Context) -> Artifact:
    return run_plan(plan, context, ranks=solo(), report=lambda _: None)


@pytest.mark.parametrize("projection", [False, True], ids=["table", "projected"])
def test_prefix_head_and_pooler_alone_are_trained(projection: bool, context: Context) -> None:
    found = train(plan_of(prefixing(projection=projection)), context)
    history = found.about["history"]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    base = load_classifier(context.base_folder("base"), labels=LABELS).state_dict()
    weights = load_file(found.folder / WEIGHTS)
    assert sum(map(is_prefix, weights)) == 2 * 2
    assert {name for name in weights if not is_prefix(name)} == base.keys()
    for name, tensor in weights.items():
        if is_prefix(name) or "pooler" in name:
            assert tensor.any()
        elif not name.startswith("classifier"):
            assert torch.equal(tensor, base[name]), name


def test_an_interrupted_stage_goes_on(context: Context, tmp_path: Path) -> None:
    plan, again = plan_of(prefixing(projection=True)), replace(tiny_context(tmp_path), checkpoint_every_s=0.0)

    def interrupt(progress: Progress) -> None:
        if progress.fidelity < 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, again, ranks=solo(), report=interrupt)
    expected = load_file(train(plan, context).folder / WEIGHTS)
    for name, tensor in load_file(train(plan, again).folder / WEIGHTS).items():
        assert torch.equal(tensor, expected[name]), name


def test_it_is_trained_further_with_adapters_and_cut(context: Context) -> None:
    plan = plan_of(prefixing(), tuning(epochs=1), SelectLayers(layers=(1,)), finetuning(epochs=1))
    assert plan.shape.details == ("pfeiffer-4", "prefix-3")
    parts = [prefix.fingerprint for prefix in plan.trained_prefixes()]
    train(plan, context)
    first, second, last = (load_file(Path(context.store.find(part).folder) / WEIGHTS) for part in parts)
    learnt = "bert.encoder.layer.{}.attention.self.prefix.key"
    assert torch.equal(second[learnt.format(1)], first[learnt.format(1)])
    moved = (last[learnt.format(0)] - first[learnt.format(1)]).abs().max()
    assert 0 < moved < 0.5


def test_a_second_prefix_is_refused_when_a_plan_is_made() -> None:
    with pytest.raises(ValidationError, match="a prefix of 4 tokens cannot go before one of 3"):
        plan_of(prefixing(3), prefixing(4))


# Deployment and search ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_it_is_deployed_as_torch_answers(kind: str, tmp_path: Path) -> None:
    models = {kind: str(tiny_model(tmp_path / kind, kind, num_layers=1))}
    context = Context(
        artifacts=str(tmp_path / "artifacts"), cache=str(tmp_path / "cache"), models=models, tokens={}, labels=LABELS
    )
    plan = Plan(base=kind, stages=(prefixing(),), data="rows", seed=0)
    model = prefixed(load_classifier(Path(models[kind]), labels=LABELS))
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
    assert sum(is_prefix(tensor) for tensor, _ in export.about["sources"].values()) == 2
    np.testing.assert_allclose(logits_of(fp32), torch_logits(model), atol=1e-4, rtol=1e-4)
    assert np.abs(logits_of(int8) - torch_logits(model)).max() < 0.5


def test_what_is_measured_has_the_prefix_in_it(context: Context) -> None:
    def flops(shape: Shape) -> float:
        graph, sources = load_graph(ensure_export(shape, context))
        return graph_facts(onnx_graph.fill_randomly(graph, sources), sequence_length=10).flops

    plain = Shape(base="base", num_layers=1)
    # Queries by keys and shares by values: 2 operations for each of 10 tokens, 16 of the prefix, and 32 numbers.
    more = 2 * 2 * 10 * 16 * 32
    assert flops(plain.model_copy(update={"prefix_tokens": 16})) - flops(plain) == more


def prepared(folder: Path, strategies: list[str] | str) -> tuple[Prepared, list[str]]:
    """A search on a base that cannot have a prefix."""
    path = tiny_spec(folder, search={"strategies": strategies})
    tiny_model(folder / "model", "distilbert")
    said: list[str] = []
    return prepare(load_spec(path), Storage(folder / "run"), threads=1, say=said.append), said


def test_all_leaves_it_out_where_the_base_cannot(tmp_path: Path) -> None:
    found, said = prepared(tmp_path, "all")
    assert "prefix" not in found.space.strategies and "adapter" in found.space.strategies
    (line,) = (line for line in said if "prefix" in line)
    assert f"that of {tmp_path / 'model'}, of type distilbert, does not" in line


def test_named_it_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as refused:
        prepared(tmp_path, ["full", "prefix"])
    (problem,) = refused.value.problems
    assert problem.startswith("search.strategies: prefix needs attention that reads keys and values before a text's")
    assert "leave the strategy out, or name a base of type bert, camembert, " in problem
