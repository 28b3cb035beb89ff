"""Students that learn from what they write themselves: whose text it is, how much of it, and by which loss."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generation_task import generation_context, repeating_rows
from tiny_models import VOCABULARY, tiny_causal
from torch import Tensor
from training_task import finetuning, fitting, plan_of

from spaces.methods.cut import SelectLayers
from spaces.methods.distill_reverse_kl import DistillDivergence
from spaces.plan import Plan
from spaces.stages import Chain
from trainers.batches import Batch, collate
from trainers.causal_models import inspect_causal, load_causal
from trainers.context import Context
from trainers.distill_divergence import distill_divergence, divergence_loss, online
from trainers.draws import drawn_classes
from trainers.generate import drawn_by_prompt, written
from trainers.generation_tokens import ResponseTokens, tokenise_exchanges
from trainers.kinds import split_tokens
from trainers.loop import Job, Turn, fit
from trainers.models import select_layers
from trainers.own_text import TEMPERATURE, OwnText
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.run_stage import run_plan
from trainers.trained import trained_teacher

END = VOCABULARY["[SEP]"]
EXPERT = finetuning(epochs=3)
TEACHER = plan_of(EXPERT)
CUT = SelectLayers(layers=(0,))


def silent(_: Progress) -> None:
    pass


def student(**settings: Any) -> Plan:
    options = {"divergence": "jsd", "mix": 0.5, "temperature": 1.0, "alpha": 0.7, "lmbda": 1.0, **settings}
    stage = DistillDivergence(
        optimisation=fitting(learning_rate=1e-3, epochs=2), teacher=Chain(base="base", stages=(EXPERT,)), **options
    )
    return plan_of(CUT, stage)


def job_of(plan: Plan, context: Context) -> Job:
    return Job(plan=plan, context=context, ranks=solo(), report=silent, final=False)


def cut_base(context: Context) -> Any:
    return select_layers(load_causal(Path(context.models["base"])), CUT.layers)


def own_of(plan: Plan, context: Context) -> OwnText:
    return OwnText(train_tokens(context), job_of(plan, context), share=plan.stages[-1].lmbda)


def train_tokens(context: Context) -> ResponseTokens:
    tokens = split_tokens(context, base="base", split="train")
    assert isinstance(tokens, ResponseTokens)
    return tokens


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A context in whose store the teacher is trained."""
    context = generation_context(tmp_path_factory.mktemp("taught"), rows=21)
    run_plan(TEACHER, context, ranks=solo(), report=silent)
    return context


@torch.no_grad()
def drawn_slowly(model: Any, prompt: np.ndarray, luck: np.random.Generator, *, length: int) -> list[int]:
    """A response token by token, without a cache, by the definition of a draw."""
    ids = prompt.tolist()
    for _ in range(length):
        logits = model(torch.tensor([ids])).logits[0, -1].double().numpy() / TEMPERATURE
        shares = np.exp(logits - logits.max())
        ids.append(int(np.searchsorted(np.cumsum(shares / shares.sum()), luck.random(), side="right")))
        if ids[-1] == END:
            break
    return ids[len(prompt) :]


def test_all_that_is_learnt_is_what_the_student_writes_at_that_moment(taught: Context) -> None:
    plan, tokens = student(), train_tokens(taught)
    job, own, texts = job_of(plan, taught), own_of(plan, taught), []

    def watched(model: Any, turn: Turn) -> Batch:
        batch = own(model, turn)
        assert batch.own and batch.count == len(batch.labels_P)
        model.eval()
        expected = [
            drawn_slowly(model, tokens.prompt(row), np.random.default_rng([job.seed("own text", turn.step), row]),
                         length=tokens.max_new_tokens)
            for row in turn.batch.rows.tolist()
        ]  # fmt: skip
        model.train()
        assert batch.labels_P.tolist() == [token for text in expected for token in text]
        rows = zip(turn.batch.rows.tolist(), expected, strict=True)
        assert [batch.input_ids_BL[index, : len(tokens.prompt(row)) + len(text)].tolist()
                for index, (row, text) in enumerate(rows)] == [
            [*tokens.prompt(row).tolist(), *text] for row, text in zip(turn.batch.rows.tolist(), expected, strict=True)
        ]  # fmt: skip
        texts.extend(expected)
        return batch

    teacher = trained_teacher(TEACHER, taught)
    ask = online(teacher, taught)

    def loss(outputs: Any, batch: Batch, share: float) -> Tensor:
        return divergence_loss(plan.stages[-1], batch.at_positions(outputs.logits), ask(batch), batch, share)

    fit(cut_base(taught), loss, job, rewrite=watched)
    assert len(texts) == 2 * len(tokens)
    assert any(text[-1] == END for text in texts) and any(len(text) == tokens.max_new_tokens for text in texts)


def test_gold_responses_never_enter(taught: Context) -> None:
    """Where all text is its own, other responses of the same lengths to the same prompts change no weight."""
    rows = repeating_rows(21, seed=0)
    other = dataclasses.replace(rows, responses=tuple(" ".join(["moon"] * len(r.split())) for r in rows.responses))
    lengths = {"max_tokens": 16, "max_new_tokens": 4}
    name = tokenise_exchanges(other, inspect_causal(taught.models["base"]), taught.store, **lengths).fingerprint
    changed = dataclasses.replace(taught, tokens={"base": {**taught.tokens["base"], "train": name}})
    for lmbda, same in ((1.0, True), (0.5, False)):
        plan = student(lmbda=lmbda)
        found = [distill_divergence(cut_base(c), job_of(plan, c))[0].state_dict() for c in (taught, changed)]
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0]) is same, lmbda


def test_without_text_of_its_own_it_is_taught_as_from_kept_outputs(taught: Context) -> None:
    weights = []
    for lmbda in (0.0, 1e-9):
        plan = student(lmbda=lmbda)
        weights.append(distill_divergence(cut_base(taught), job_of(plan, taught))[0].state_dict())
    for name, kept in weights[0].items():
        torch.testing.assert_close(weights[1][name], kept, atol=1e-5, rtol=1e-4)


def test_the_share_of_own_batches_is_lmbda_and_the_same_each_time(taught: Context) -> None:
    steps, share = 2000, 0.3
    own = own_of(student(lmbda=share), taught)
    found = [own.is_own(step) for step in range(steps)]
    assert abs(np.mean(found) - share) < 4 * (share * (1 - share) / steps) ** 0.5
    assert found == [own_of(student(lmbda=share), taught).is_own(step) for step in range(steps)]
    for certain in (0.0, 1.0):
        never_or_always = OwnText(train_tokens(taught), job_of(student(), taught), share=certain)
        assert {never_or_always.is_own(step) for step in range(200)} == {bool(certain)}


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_loss_on_own_text_is_that_of_the_paper(beta: float, taught: Context) -> None:
    """Row by row, without padding, by probabilities in float64; no part of it is a gold label's."""
    plan, model = student(mix=beta), cut_base(taught)
    teacher, own = trained_teacher(TEACHER, taught), own_of(plan, taught)
    gold = collate(train_tokens(taught), [4, 9, 2], pad_id=0)
    batch = own(model, Turn(batch=gold, weight=1.0, step=0, rate_share=1.0))
    outputs = model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL)
    told = online(teacher, taught)(batch)
    found = divergence_loss(plan.stages[-1], batch.at_positions(outputs.logits), told, batch, 0.0)

    def shares(network: Any, prompt: np.ndarray, text: np.ndarray) -> np.ndarray:
        logits = network(torch.from_numpy(np.concatenate([prompt, text]))[None]).logits[0, len(prompt) - 1 : -1]
        return logits.double().softmax(-1).detach().numpy()

    tokens, values = train_tokens(taught), []
    for row, text in zip([4, 9, 2], own.responses(model, gold.rows, step=0), strict=True):
        p, q = (shares(network, tokens.prompt(row), text) for network in (teacher, model))
        mixed = beta * p + (1 - beta) * q
        both = beta * (p * np.log(p / mixed)).sum(-1) + (1 - beta) * (q * np.log(q / mixed)).sum(-1)
        ends = {0.0: (p * np.log(p / q)).sum(-1), 1.0: (q * np.log(q / p)).sum(-1)}
        values += ends.get(beta, both).tolist()
    assert found.item() == pytest.approx(np.mean(values), rel=1e-4)


def test_a_prompts_text_does_not_depend_on_its_neighbours(taught: Context) -> None:
    model, tokens = load_causal(Path(taught.models["base"])), train_tokens(taught)

    def text(rows: list[int]) -> list[list[int]]:
        found = written(
            model,
            [tokens.prompt(row) for row in rows],
            max_new_tokens=12,
            end_ids={END, *range(5, 60)},  # so that rows leave the batch one after another
            pad_id=0,
            pick=lambda logits, prompts: drawn_by_prompt(
                logits, prompts, temperature=1.0, luck=[luck[row] for row in rows]
            ),
        )
        return [ids.tolist() for ids in found]

    luck = {row: np.random.default_rng(row) for row in range(21)}
    together = text(list(range(21)))
    luck = {row: np.random.default_rng(row) for row in range(21)}
    assert [text([row])[0] for row in range(21)] == together
    assert len({len(one) for one in together}) > 3


def test_draws_have_the_shares_of_their_classes() -> None:
    logits, luck = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]]), np.random.default_rng(0).random((1, 40_000))
    found = drawn_classes(logits, torch.from_numpy(luck), temperature=0.9)[0].bincount(minlength=4) / 40_000
    wanted = np.exp(np.array([0.0, 1.0, 2.0, -np.inf]) / 0.9)
    np.testing.assert_allclose(found.numpy(), wanted / wanted.sum(), atol=0.01)
    ends = torch.tensor([[0.0, np.nextafter(1.0, 0.0)]], dtype=torch.float64)
    assert drawn_classes(logits, ends, temperature=0.9).tolist() == [[0, 2]]


def test_what_it_writes_may_hold_tokens_that_no_row_has(tmp_path: Path) -> None:
    """Only the rows of the embedding that the data uses are trained elsewhere."""
    context = generation_context(tmp_path, rows=16)
    folder = tiny_causal(tmp_path / "untied", tied=False)
    context = dataclasses.replace(context, models={"base": str(folder)})
    run_plan(TEACHER, context, ranks=solo(), report=silent)
    before = cut_base(context).get_input_embeddings().weight
    after = distill_divergence(cut_base(context), job_of(student(), context))[0].get_input_embeddings().weight
    tokens = train_tokens(context)
    unseen = np.setdiff1d(np.arange(len(before)), np.concatenate([tokens.ids(row) for row in range(len(tokens))]))
    assert (before[unseen] != after[unseen]).any()
