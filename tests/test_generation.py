"""Generation: tokens and positions, the loss on responses alone, scores of what is written, plans carried out."""

import copy
import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from generation_task import generation_context, repeating_rows
from tiny_models import VOCABULARY, tiny_causal
from torch.nn import functional
from training_task import finetuning, fitting, plan_of
from transformers import PreTrainedTokenizerFast

from spaces.methods.cut import SelectLayers
from spaces.methods.distill import Distill
from spaces.methods.finetune import Lora
from spaces.plan import Plan
from spaces.stages import Chain
from trainers.batches import collate
from trainers.carry_out import carry_out
from trainers.causal_models import inspect_causal, load_causal
from trainers.compute import logits
from trainers.context import Context
from trainers.embeddings import train_used_rows, used_ids
from trainers.finetune import adapted_modules, add_adapters, gold_loss
from trainers.generation_rows import GenerationRows
from trainers.generation_tokens import ResponseTokens, tokenise_exchanges
from trainers.kinds import kind_of, split_tokens
from trainers.model_files import ModelError
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.responses import row_scores
from trainers.run_stage import run_plan
from trainers.teacher import teacher_outputs

END = VOCABULARY["[SEP]"]
BEGIN = VOCABULARY["[CLS]"]
TEACHER = Chain(base="base", stages=(finetuning(epochs=4),))
STUDENT = plan_of(
    SelectLayers(layers=(0,)),
    Distill(optimisation=fitting(epochs=2), teacher=TEACHER, temperature=2.0, alpha=0.5, alpha_end=0.5),
)


def silent(_: Progress) -> None:
    pass


def train(plan: Plan, context: Context) -> list[Progress]:
    told: list[Progress] = []
    run_plan(plan, context, ranks=solo(), report=told.append)
    return told


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return generation_context(tmp_path_factory.mktemp("generation"))


@pytest.fixture(scope="module")
def tokens(context: Context) -> ResponseTokens:
    found = split_tokens(context, base="base", split="train")
    assert isinstance(found, ResponseTokens)
    return found


# Tokens ---------------------------------------------------------------------------------------------------------


def tokenised(
    context: Context, *rows: tuple[str, str], max_tokens: int = 16, max_new_tokens: int = 4
) -> ResponseTokens:
    prompts, responses = zip(*rows, strict=True)
    found = GenerationRows(prompts=prompts, responses=responses, rationales=(None,) * len(rows))
    model = inspect_causal(context.models["base"])
    artifact = tokenise_exchanges(found, model, context.store, max_tokens=max_tokens, max_new_tokens=max_new_tokens)
    return ResponseTokens.of(artifact)


def pieces(*words: str) -> list[int]:
    return [VOCABULARY[word] for word in words]


def test_a_row_is_prompt_response_and_end(context: Context) -> None:
    found = tokenised(context, ("the red cat", "big dog"), ("the sun ", ""), ("", "moon"))
    assert found.ids(0).tolist() == [BEGIN, *pieces("the", "red", "cat", "big", "dog"), END]
    assert [found.prompt(row).tolist() for row in range(3)] == [
        [BEGIN, *pieces("the", "red", "cat")],
        [BEGIN, *pieces("the", "sun")],
        [BEGIN],
    ]
    assert found.ids(1).tolist() == [BEGIN, *pieces("the", "sun"), END]
    assert found.response_lengths.tolist() == [3, 1, 2]
    assert found.responses == ["big dog", "", "moon"]
    assert found.texts([found.ids(0), np.array([], dtype=np.int64)]) == ["the red cat big dog", ""]


def test_long_prompts_are_cut_from_the_left_and_counted(context: Context) -> None:
    long = " ".join(["sun", "moon"] * 20)
    model = inspect_causal(context.models["base"])
    rows = GenerationRows(prompts=(long, "a"), responses=("dog", "cat " * 9), rationales=(None, None))
    artifact = tokenise_exchanges(rows, model, context.store, max_tokens=16, max_new_tokens=4)
    assert artifact.about["notes"] == [
        "1 of 2 prompts longer than 12 tokens, cut from the left; raise task.max_tokens",
        "1 of 2 responses longer than 4 tokens, cut; raise task.max_new_tokens",
    ]
    found = ResponseTokens.of(artifact)
    assert found.prompt(0).tolist() == [BEGIN, *pieces("moon", *["sun", "moon"] * 5)]
    assert found.ids(1).tolist() == [BEGIN, *pieces("a", "cat", "cat", "cat", "cat")]
    assert (found.max_new_tokens, found.lengths.max()) == (4, 14)
    assert found.responses[1] == ("cat " * 9).strip()  # what it is compared with is whole


def test_responses_that_the_tokenizer_drops_are_counted_and_missing_ones_are_not(context: Context) -> None:
    model = inspect_causal(context.models["base"])
    rows = GenerationRows(prompts=("a", "the"), responses=("\u0001", ""), rationales=(None, None))
    artifact = tokenise_exchanges(rows, model, context.store, max_tokens=16, max_new_tokens=4)
    assert artifact.about["notes"] == ["1 of 2 empty responses, kept: the model learns to say nothing"]


def test_the_same_rows_are_found_and_others_are_not(context: Context) -> None:
    model, rows = inspect_causal(context.models["base"]), repeating_rows(5, seed=9)
    lengths = {"max_tokens": 16, "max_new_tokens": 4}
    first = tokenise_exchanges(rows, model, context.store, **lengths)
    assert tokenise_exchanges(rows, model, context.store, **lengths) == first
    for other in ({"max_new_tokens": 5}, {"max_tokens": 15}):
        assert tokenise_exchanges(rows, model, context.store, **lengths | other).fingerprint != first.fingerprint


def test_taken_rows_are_those_rows(tokens: ResponseTokens) -> None:
    some = tokens.take(np.array([7, 3]))
    assert [some.ids(row).tolist() for row in (0, 1)] == [tokens.ids(7).tolist(), tokens.ids(3).tolist()]
    assert some.responses == [tokens.responses[7], tokens.responses[3]]
    assert some.num_positions() == tokens.num_positions(np.array([7, 3]))


# Positions and losses -------------------------------------------------------------------------------------------


def reference_loss(model: torch.nn.Module, tokens: ResponseTokens, rows: list[int]) -> torch.Tensor:
    """transformers' own loss of each row by itself, prompts ignored: mean over all positions of the rows."""
    total, count = torch.zeros(()), 0
    for row in rows:
        ids = torch.from_numpy(tokens.ids(row))[None]
        labels = ids.clone()
        labels[:, : tokens.prompt_lengths[row]] = -100
        num = int(tokens.response_lengths[row])
        total, count = total + model(input_ids=ids, labels=labels).loss * num, count + num
    return total / count


def test_the_loss_is_that_of_the_responses_alone(context: Context, tokens: ResponseTokens) -> None:
    model = load_causal(Path(context.models["base"]))
    rows = [4, 9, 2, 17]
    batch = collate(tokens, rows, pad_id=0)
    found = gold_loss(model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL), batch, 0.0)
    torch.testing.assert_close(found, reference_loss(model, tokens, rows))
    assert batch.count == len(batch.labels_P) == tokens.response_lengths[rows].sum()
    for row in rows:
        starts = np.concatenate([[0], np.cumsum(tokens.response_lengths)])
        expected = np.arange(starts[row], starts[row + 1])
        assert np.isin(expected, batch.positions_P).all()


def test_workers_shares_add_up(context: Context, tokens: ResponseTokens) -> None:
    """Gradients of two halves, each divided by the positions of both, are those of the whole batch."""
    rows = np.array([4, 9, 2, 17, 30])
    gradients = []
    for shares in ([rows], [rows[::2], rows[1::2]]):
        model = load_causal(Path(context.models["base"]))
        for own in shares:
            batch = collate(tokens, own, pad_id=0, whole=rows)
            outputs = model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL)
            gold_loss(outputs, batch, 0.0).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for whole, added in zip(*gradients, strict=True):
        torch.testing.assert_close(added, whole, atol=1e-6, rtol=1e-4)


def test_logits_are_those_at_each_position(context: Context, tokens: ResponseTokens) -> None:
    model = load_causal(Path(context.models["base"]))
    found = logits(model, tokens, context=context, ranks=solo())
    assert found.shape == (tokens.num_positions(), len(VOCABULARY))
    start = int(tokens.response_lengths[:5].sum())
    with torch.no_grad():
        alone = model(torch.from_numpy(tokens.ids(5))[None]).logits[0, tokens.prompt_lengths[5] - 1 : -1]
    torch.testing.assert_close(found[start : start + len(alone)], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_used_rows_are_trained_alone_only_where_they_are_no_head(tmp_path: Path, tied: bool) -> None:
    context = generation_context(tmp_path)
    tokens = split_tokens(context, base="base", split="train")
    model = load_causal(tiny_causal(tmp_path / "other", tied=tied))
    dense = copy.deepcopy(model)
    batch = collate(tokens, range(8), pad_id=0)
    before = model.get_input_embeddings()
    with train_used_rows(model, used_ids(tokens, vocab_size=len(VOCABULARY), pad_id=0)):
        assert (model.get_input_embeddings() is before) is tied
        model.train()
        outputs = model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL)
        gold_loss(outputs, batch, 0.0).backward()
    gold_loss(dense(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL), batch, 0.0).backward()
    head, expected = (found.get_output_embeddings().weight.grad for found in (model, dense))
    torch.testing.assert_close(head, expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3", "opt"])
@pytest.mark.parametrize("target", ["all", "attention", "mlp"])
def test_adapters_start_as_nothing_and_merge(kind: str, target: str, tmp_path: Path) -> None:
    folder = tiny_causal(tmp_path, kind)
    model = load_causal(folder)
    names = adapted_modules(model, target)  # type: ignore[arg-type]
    ids = torch.randint(5, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    before = model(ids).logits
    adapted = add_adapters(model, Lora(rank=2, alpha=4, target=target)).eval()
    torch.testing.assert_close(adapted(ids).logits, before)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert names and len(trained) == 2 * len(names) and all("lora_" in name for name in trained)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data)
    unmerged = adapted(ids).logits
    assert (unmerged - before).abs().max() > 1e-3
    torch.testing.assert_close(adapted.merge_and_unload()(ids).logits, unmerged, atol=1e-4, rtol=1e-4)


# Scores ---------------------------------------------------------------------------------------------------------


def test_perplexity_is_that_of_the_loss(context: Context, tokens: ResponseTokens) -> None:
    model = load_causal(Path(context.models["base"]))
    scores = row_scores(model, tokens, metric="perplexity", ranks=solo())
    assert scores.counts_N.tolist() == tokens.response_lengths.tolist()
    expected = math.exp(reference_loss(model, tokens, list(range(len(tokens)))).item())
    assert scores.value() == pytest.approx(expected, rel=1e-4)


def test_exact_match_is_of_what_transformers_writes(context: Context) -> None:
    run_plan(plan_of(finetuning(epochs=12)), context, ranks=solo(), report=silent)
    trained = context.store.find(plan_of(finetuning(epochs=12)).fingerprint)
    assert trained is not None
    model, tokens = load_causal(trained.folder).train(), split_tokens(context, base="base", split="validation")
    assert isinstance(tokens, ResponseTokens)
    scores = row_scores(model, tokens, metric="exact_match", ranks=solo())
    assert model.training
    model.eval()
    right = []
    for row in range(len(tokens)):
        prompt = torch.from_numpy(tokens.prompt(row))[None]
        options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": END, "pad_token_id": 0}
        written = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0, prompt.shape[1] :]
        right.append(tokens.tokenizer.decode(written, skip_special_tokens=True) == tokens.responses[row])
    assert scores.totals_N.tolist() == [float(one) for one in right]
    assert sum(right) > 0


def test_what_is_written_does_not_depend_on_the_batch(
    context: Context, tokens: ResponseTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_causal(Path(context.models["base"]))
    found = []
    for rows in (1, 7, 32):
        monkeypatch.setattr("trainers.responses.ASKED_ROWS", rows)
        found.append(row_scores(model, tokens, metric="rouge_l", ranks=solo()).totals_N.tolist())
    assert found[0] == found[1] == found[2] and len(set(found[0])) > 1


def test_a_model_in_training_is_asked_some_rows_only(
    context: Context, tokens: ResponseTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.kinds.generation._ASKED_ROWS", 11)
    model = load_causal(Path(context.models["base"]))
    assert len(kind_of(context).ask(model, tokens, context=context, ranks=solo()).totals_N) == 11  # type: ignore[union-attr]


# Plans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_stage_learns(kind: str, tmp_path: Path) -> None:
    context = generation_context(tmp_path, kind=kind)
    for lora in (None, Lora(rank=4, alpha=8)):
        told = train(plan_of(finetuning(lora, epochs=2)), context)
        assert told[-1].train_loss < told[0].train_loss
        assert all(progress.quality is not None for progress in told)


def test_the_teachers_outputs_are_its_distributions_at_each_position(context: Context, tokens: ResponseTokens) -> None:
    teacher = plan_of(*TEACHER.stages)
    train(teacher, context)
    trained = context.store.find(teacher.fingerprint)
    assert trained is not None
    found = teacher_outputs(teacher, context).log_probs
    expected = functional.log_softmax(
        logits(load_causal(trained.folder), tokens, context=context, ranks=solo()), dim=-1
    )
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_teacher_outputs_that_do_not_fit_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = generation_context(tmp_path)
    train(plan_of(*TEACHER.stages), context)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=100_000))
    with pytest.raises(ModelError, match=r"positions × 151 classes take 0.1 MB, and 0.1 MB are free; .* task.limit"):
        run_plan(STUDENT, context, ranks=solo(), report=silent)


@pytest.mark.parametrize("metric", ["exact_match", "perplexity"])
def test_a_student_from_teacher_to_deployed_variants(metric: str, tmp_path: Path) -> None:
    context = dataclasses.replace(generation_context(tmp_path), metric=metric)
    result = carry_out(STUDENT, ["fp32", "bf16", "int8", "int4"], context, ranks=solo(), report=silent)
    assert result is not None
    assert [variant.precision for variant in result.variants] == ["fp32", "bf16", "int8", "int4"]
    assert all(variant.low <= variant.value <= variant.high for variant in result.variants)
    assert [fidelity for fidelity, _ in result.curve] == [0.5, 1.0]
    # Deployed at fp32 is the model as it was trained, to the last row.
    assert result.variants[0].value == pytest.approx(result.curve[-1][1], rel=1e-5)
    assert result.train_seconds > 0 and math.isfinite(result.overfit)
    again = carry_out(STUDENT, ["int8"], context, ranks=solo(), report=silent)
    assert again is not None and again.variants[0] == result.variants[2] and again.spent_seconds == 0


def test_the_tokenizer_travels_with_the_rows(context: Context, tokens: ResponseTokens) -> None:
    assert isinstance(tokens.tokenizer, PreTrainedTokenizerFast)
    assert tokens.tokenizer.eos_token_id == END
    artifact = context.store.find(context.tokens["base"]["train"])
    assert artifact is not None and (artifact.folder / "tokenizer.json").exists()
