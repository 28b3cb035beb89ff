"""A mixture of experts as the teacher: parts of the rows, adapters on one base, weights, and what a student gets."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from training_task import LABELS, fitting, plan_of, tiny_context

from spaces.methods.cut import SelectLayers
from spaces.methods.experts import DistillExperts, Expert, ExpertSplit, ExpertWeights, Gate, Part
from spaces.methods.finetune import Lora
from spaces.plan import Plan
from spaces.stages import Chain
from trainers.context import Context
from trainers.datasets import Rows
from trainers.distill import against, soft_loss
from trainers.experts.adapters import SharedBase, expert_outputs
from trainers.experts.answers import row_losses
from trainers.experts.gate import gate_log_weights, gate_loss
from trainers.experts.mixture import mixture_outputs
from trainers.experts.parts import keep_domains, part_rows, shared_out
from trainers.kinds import split_tokens
from trainers.loop import Job, TrainingError, fit
from trainers.losses import camkd_weights, load_balance, mixture_log_probs
from trainers.models import inspect_model, load_classifier, select_layers
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.run_stage import missing_prefixes, plan_seconds, run_plan
from trainers.tokens import tokenise

LORA = Lora(rank=2, alpha=4)
CUT = SelectLayers(layers=(0,))


def silent(_: Progress) -> None:
    pass


def experts_of(count: int, split: ExpertSplit = "cluster") -> tuple[Chain, ...]:
    parts = [Part(split=split, index=i, num_parts=None if split == "seed" else count) for i in range(count)]
    stages = [Expert(optimisation=fitting(epochs=2), lora=LORA, part=part) for part in parts]
    return tuple(Chain(base="base", stages=(stage,)) for stage in stages)


def gate_of(experts: tuple[Chain, ...], *, balance: float = 0.1) -> Gate:
    how = fitting(learning_rate=5e-2, epochs=30)
    return Gate(optimisation=how, experts=experts, temperature=2.0, balance=balance)


def taught_by(experts: tuple[Chain, ...], weights: ExpertWeights = "uniform") -> DistillExperts:
    gate = Chain(base="base", stages=(gate_of(experts),)) if weights == "gate" else None
    settings = {"temperature": 2.0, "alpha": 0.5, "alpha_end": 0.5}
    return DistillExperts(optimisation=fitting(epochs=1), experts=experts, weights=weights, gate=gate, **settings)


def job_of(plan: Plan, context: Context) -> Job:
    return Job(plan=plan, context=context, ranks=solo(), report=silent)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A context in whose store two experts by cluster, their gate and a student are trained."""
    context = tiny_context(tmp_path_factory.mktemp("experts"))
    run_plan(plan_of(CUT, taught_by(experts_of(2), "gate")), context, ranks=solo(), report=silent)
    return context


# Formulas -------------------------------------------------------------------------------------------------------


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(scale=2.0, size=shape)


@pytest.mark.parametrize("num_experts", [1, 2, 4])
def test_a_mixture_is_the_weighted_sum_of_softened_distributions(num_experts: int) -> None:
    logits, weights = _random(num_experts, 7, 5), _softmax(_random(7, num_experts))
    expected = np.einsum("pk,kpc->pc", weights, _softmax(logits / 3.0))
    found = mixture_log_probs(torch.tensor(logits), torch.tensor(weights).log(), temperature=3.0)
    np.testing.assert_allclose(found.exp().numpy(), expected, rtol=1e-12)


def test_an_expert_without_weight_does_not_count() -> None:
    logits = torch.tensor(_random(2, 3, 4)) * 1e4
    log_weights = torch.tensor([[0.0, -torch.inf]] * 3)
    found = mixture_log_probs(logits, log_weights)
    torch.testing.assert_close(found, logits[0].log_softmax(-1))


@pytest.mark.parametrize("num_experts", [2, 3, 4])
def test_confidence_weighs_as_in_the_paper(num_experts: int) -> None:
    losses = np.abs(_random(6, num_experts))
    powers = np.exp(losses)
    expected = (1 - powers / powers.sum(axis=1, keepdims=True)) / (num_experts - 1)
    found = camkd_weights(torch.tensor(losses)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert (found.argmax(axis=1) == losses.argmin(axis=1)).all()


def test_confidence_gives_one_expert_everything() -> None:
    assert camkd_weights(torch.tensor([[3.0], [0.0]])).tolist() == [[1.0], [1.0]]


def test_balance_is_the_squared_coefficient_of_variation_of_the_usage() -> None:
    weights = _softmax(_random(9, 3))
    usage = weights.sum(axis=0)
    assert float(load_balance(torch.tensor(weights))) == pytest.approx((usage.std() / usage.mean()) ** 2)
    assert float(load_balance(torch.full((4, 2), 0.5))) == 0.0
    assert float(load_balance(torch.tensor([[1.0, 0.0]] * 5))) == pytest.approx(1.0)


def test_the_gates_loss_is_the_mixtures_cross_entropy_and_the_balance() -> None:
    weights, gold = _softmax(_random(6, 3)), np.log(_softmax(_random(6, 3)))
    mixture = -np.log((weights * np.exp(gold)).sum(axis=1)).mean()
    usage = weights.sum(axis=0)
    found = gate_loss(torch.tensor(weights).log(), torch.tensor(gold), balance=0.3)
    assert float(found) == pytest.approx(mixture + 0.3 * (usage.std() / usage.mean()) ** 2)


def test_the_loss_of_a_row_is_the_mean_over_its_positions() -> None:
    gold = torch.tensor([[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]])
    assert row_losses(gold, torch.tensor([0, 0, 2])).tolist() == [[2.0, 3.0], [0.0, 0.0], [5.0, 6.0]]


# Parts ----------------------------------------------------------------------------------------------------------


def rows_of(part: Part, context: Context) -> np.ndarray:
    plan = plan_of(Expert(optimisation=fitting(), lora=LORA, part=part))
    model = load_classifier(Path(context.models["base"]), labels=LABELS)
    return part_rows(part, model, job_of(plan, context))


def test_clusters_share_out_all_rows_by_what_the_base_makes_of_them(taught: Context) -> None:
    parts = [rows_of(Part(split="cluster", index=index, num_parts=3), taught) for index in range(3)]
    assert sorted(np.concatenate(parts)) == list(range(45))
    model = load_classifier(Path(taught.models["base"]), labels=LABELS)
    tokens = split_tokens(taught, base="base", split="train")
    with torch.no_grad():
        means = [
            model.bert(torch.from_numpy(tokens.ids(row))[None]).last_hidden_state.mean(dim=1)
            for row in range(len(tokens))
        ]
    features = torch.cat(means).numpy()
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    centres = np.stack([features[part].mean(axis=0) for part in parts])
    nearest = np.linalg.norm(features[:, None] - centres, axis=-1).argmin(axis=1)
    for index, part in enumerate(parts):
        assert (nearest[part] == index).all()


def test_a_split_by_seed_gives_every_expert_all_rows_in_its_own_order(taught: Context) -> None:
    one, other = (rows_of(Part(split="seed", index=index), taught) for index in range(2))
    assert sorted(one) == sorted(other) == list(range(45)) and one.tolist() != other.tolist()
    assert experts_of(2, "seed") == experts_of(3, "seed")[:2]  # an expert is the same however many are beside it


def test_an_expert_without_data_is_an_error_that_names_its_part(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, rows=2)
    plan = plan_of(CUT, taught_by(experts_of(4)))
    with pytest.raises(TrainingError, match="expert without data: part 3 of 4 by cluster has no training rows"):
        run_plan(plan, context, ranks=solo(), report=silent)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"split": "seed", "index": 0, "num_parts": 2}, "not for seed"),
        ({"split": "cluster", "index": 0}, "not for seed"),
        ({"split": "cluster", "index": 2, "num_parts": 2}, "index < num_parts"),
        ({"split": "domain", "index": 0, "num_parts": 2}, "which needs them"),
        ({"split": "cluster", "index": 0, "num_parts": 2, "domains": "d"}, "which needs them"),
    ],
)
def test_a_part_must_be_one_of_the_parts(settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Part(**settings)


# Experts on one base --------------------------------------------------------------------------------------------


def test_of_an_expert_only_adapters_and_head_are_kept(taught: Context) -> None:
    names = set()
    for chain in experts_of(2):
        artifact = taught.store.find(plan_of(*chain.stages).fingerprint)
        assert artifact is not None
        assert [path.name for path in artifact.folder.glob("*.safetensors")] == ["tensors.safetensors"]
        names |= set(load_file(artifact.folder / "tensors.safetensors"))
    assert names and all("lora_" in name or "classifier" in name or "pooler" in name for name in names)


def test_experts_take_turns_on_one_frozen_base(taught: Context) -> None:
    plans = [plan_of(*chain.stages) for chain in experts_of(2)]
    shared = SharedBase(plans[0], taught)
    frozen = {n: (p.data_ptr(), p.clone()) for n, p in shared.model.named_parameters() if not p.requires_grad}
    base = load_classifier(Path(taught.models["base"]), labels=LABELS)
    tokens = split_tokens(taught, base="base", split="train")
    heads = []
    for plan, outputs in zip(plans, expert_outputs(plans, taught, ranks=solo()), strict=True):
        shared.wear(plan)
        heads.append(shared.model.base_model.model.classifier.weight.clone())
        with torch.no_grad():
            logits = shared.model(torch.from_numpy(tokens.ids(5))[None]).logits
        np.testing.assert_allclose(logits.log_softmax(-1)[0].numpy(), outputs.log_probs[5], atol=1e-5)
    assert not torch.equal(*heads)
    for name, parameter in shared.model.named_parameters():
        if name in frozen:
            assert parameter.data_ptr() == frozen[name][0] and torch.equal(parameter, frozen[name][1])
    word = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(shared.model.base_model.model.get_parameter(word), base.get_parameter(word))


def test_plans_share_experts_gate_and_mixture(taught: Context) -> None:
    experts = experts_of(2)
    other = taught_by(experts, "gate").model_copy(update={"alpha": 0.9})
    assert [plan.stages[-1].kind for plan in missing_prefixes(plan_of(CUT, other), taught.store)] == ["distill_experts"]
    uniform = plan_of(CUT, taught_by(experts))
    assert [plan.stages[-1].kind for plan in missing_prefixes(uniform, taught.store)] == ["distill_experts"]
    whole = plan_of(CUT, taught_by(experts, "gate"))
    kinds = [
        plan.stages[-1].kind
        for plan in missing_prefixes(whole, replace(taught, artifacts=f"{taught.artifacts}-empty").store)
    ]
    assert kinds == ["expert", "expert", "gate", "distill_experts"]
    parts = {prefix.fingerprint for prefix in whole.trained_prefixes()}
    outputs = expert_outputs([plan_of(*chain.stages) for chain in experts], taught, ranks=solo())
    trained = [taught.store.about(part) for part in parts]
    assert plan_seconds(whole, taught.store) == pytest.approx(sum(about["seconds"] for about in trained if about))
    last = taught.store.about(whole.fingerprint)
    assert last is not None and last["seconds"] > sum(output.seconds for output in outputs)


# The mixture ----------------------------------------------------------------------------------------------------


def _reference(experts: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    return np.einsum("pk,kpc->pc", weights, _softmax(np.stack(experts).astype(np.float64) / 2.0))


@pytest.mark.parametrize("weights", ["gate", "camkd", "uniform"])
def test_a_student_is_taught_the_mixture(weights: ExpertWeights, taught: Context) -> None:
    stage = taught_by(experts_of(2), weights)
    plan = plan_of(CUT, stage)
    run_plan(plan, taught, ranks=solo(), report=silent)
    outputs = [o.log_probs for o in expert_outputs([plan_of(*c.stages) for c in stage.experts], taught, ranks=solo())]
    labels = split_tokens(taught, base="base", split="train").labels
    if weights == "gate":
        assert stage.gate is not None
        expected = gate_log_weights(plan_of(*stage.gate.stages), taught).exp().double().numpy()
        assert np.abs(expected - 0.5).max() > 0.01
    elif weights == "camkd":
        odds = np.exp([-found[np.arange(45), labels] for found in outputs]).T.astype(np.float64)
        expected = 1 - odds / odds.sum(axis=1, keepdims=True)
    else:
        expected = np.full((45, 2), 0.5)
    np.testing.assert_allclose(expected.sum(axis=1), 1.0, atol=1e-6)
    mixed = mixture_outputs(stage, plan, taught, ranks=solo())
    np.testing.assert_allclose(_softmax(mixed.log_probs / 2.0), _reference(outputs, expected), atol=1e-6)
    assert not mixed.log_probs.flags.owndata  # mapped from the file: it was kept


def test_a_mixture_of_one_is_that_teacher(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    stage = taught_by(experts_of(1, "seed"), "camkd")
    plan = plan_of(CUT, stage)
    run_plan(plan, context, ranks=solo(), report=silent)
    (alone,) = expert_outputs([plan_of(*stage.experts[0].stages)], context, ranks=solo())
    mixed = mixture_outputs(stage, plan, context, ranks=solo())
    np.testing.assert_allclose(mixed.log_probs, alone.log_probs, atol=1e-6)
    students = []
    for taught in (mixed, alone):
        model = select_layers(load_classifier(Path(context.models["base"]), labels=LABELS), CUT.layers)
        fit(model, against(taught.at, partial(soft_loss, stage)), job_of(plan, context))
        students.append(model.state_dict())
    for name, weights in students[0].items():
        torch.testing.assert_close(weights, students[1][name], atol=1e-5, rtol=0)


# Domains --------------------------------------------------------------------------------------------------------


def two_domains(folder: Path) -> tuple[Context, np.ndarray]:
    """Rows of two domains, told apart by a word, in which the same three words mean other labels; which is which."""
    empty = tiny_context(folder)
    rng = np.random.default_rng(0)
    domains, words = rng.integers(2, size=160), rng.integers(3, size=160)
    signs = [("red", "big"), ("blue", "small")]
    texts = [" ".join(rng.permutation([*signs[d], LABELS[w]])) for d, w in zip(domains, words, strict=True)]
    rows = Rows(texts=tuple(texts), labels=np.where(domains == 0, words, (words + 1) % 3))
    train = tokenise(rows, inspect_model(empty.models["base"]), empty.store, max_tokens=16).fingerprint
    return replace(empty, tokens={"base": {**empty.tokens["base"], "train": train}}), domains


def test_the_gate_moves_to_the_expert_of_a_rows_domain(tmp_path: Path) -> None:
    context, domains = two_domains(tmp_path)
    kept = keep_domains([("shop", "bank")[domain] for domain in domains], context.store)
    parts = [Part(split="domain", index=index, num_parts=2, domains=kept) for index in range(2)]
    for index, part in enumerate(parts):
        alike = set(domains[rows_of(part, context)])
        assert len(alike) == 1 and len(rows_of(part, context)) == (domains == alike.pop()).sum(), index
    stages = [Expert(optimisation=fitting(epochs=15), lora=LORA, part=part) for part in parts]
    experts = tuple(Chain(base="base", stages=(stage,)) for stage in stages)
    plan = plan_of(gate_of(experts))
    run_plan(plan, context, ranks=solo(), report=silent)
    weights_BK = gate_log_weights(plan, context).exp()
    torch.testing.assert_close(weights_BK.sum(dim=1), torch.ones(160))
    # The larger domain is the first expert's.
    own = np.where(domains == np.bincount(domains).argmax(), 0, 1)
    assert float(weights_BK[torch.arange(160), torch.from_numpy(own)].min()) > 0.8
    labels = split_tokens(context, base="base", split="train").labels
    losses = {}
    for weights in ("gate", "camkd", "uniform"):
        gate = Chain(base="base", stages=plan.stages) if weights == "gate" else None
        stage = taught_by(experts).model_copy(update={"weights": weights, "gate": gate})
        mixed = mixture_outputs(stage, plan, context, ranks=solo()).log_probs
        losses[weights] = -np.log(_softmax(mixed / 2.0))[np.arange(160), labels].mean()
    assert max(losses["gate"], losses["camkd"]) < losses["uniform"]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 4))
def test_domains_are_shared_out_evenly_and_no_expert_goes_without(sizes: list[int], num_parts: int) -> None:
    parts = shared_out(sizes, num_parts)
    loads = np.bincount(parts, weights=sizes, minlength=num_parts)
    assert loads.max() - loads.min() <= max(sizes)
    assert len(set(parts)) == min(num_parts, len(sizes))


def test_fewer_domains_than_experts_is_an_error_that_names_the_part(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    part = Part(split="domain", index=1, num_parts=2, domains=keep_domains(["shop"] * 45, context.store))
    with pytest.raises(TrainingError, match="part 2 of 2 by domain has no training rows"):
        rows_of(part, context)
