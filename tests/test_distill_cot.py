"""Chain of thought: what rows become, what is minimised, how the trained model is asked, whose rationales are kept."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generation_task import generation_context, repeating_rows
from ledgers import make_space
from tiny_models import VOCABULARY
from torch.nn import functional
from training_task import finetuning, fitting, plan_of

from search.spec import SpecError, load_spec
from search.words import say_shape
from spaces.catalogue import CATALOGUE
from spaces.draw import restrict
from spaces.methods.distill_cot import COT_MODE, DistillCot, Written
from spaces.plan import Plan
from spaces.shape import Shape
from spaces.stages import Chain
from trainers import distill_cot as method
from trainers import generation_cost
from trainers import rationales as rationales_module
from trainers.batches import collate
from trainers.carry_out import carry_out
from trainers.causal_models import inspect_causal, load_causal
from trainers.context import Context
from trainers.cost import read_cost_table, write_cost_table
from trainers.distill_cot import multitask_loss, reasoned_rows, two_tasks
from trainers.finetune import gold_loss
from trainers.generate import drawn, likeliest
from trainers.generation_rows import GenerationRows
from trainers.generation_tokens import ResponseTokens, tokenise_exchanges
from trainers.kinds import asked_tokens, kind_of, split_tokens
from trainers.loop import TrainingError
from trainers.model_files import ModelError
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.rationales import data_rationales, right_rationale
from trainers.run_stage import run_plan
from trainers.storage import Storage

GENERATE = DistillCot(mode="generate", optimisation=fitting(epochs=1))
MULTITASK = DistillCot(mode="multitask", alpha=0.3, optimisation=fitting(epochs=1))
WRITTEN = Written(teacher=Chain(base="base", stages=(GENERATE,)), num_samples=2)


def silent(_: Progress) -> None:
    pass


def explained(rows: GenerationRows, *, every: int = 3) -> GenerationRows:
    """A rationale for all rows but each ``every``-th: the whole prompt again."""
    rationales = [None if index % every == 0 else prompt for index, prompt in enumerate(rows.prompts)]
    return dataclasses.replace(rows, rationales=tuple(rationales))


def with_train(context: Context, rows: GenerationRows, *, max_tokens: int = 40) -> Context:
    """``context`` with other rows to train and to validate on, longer ones."""
    model = inspect_causal(context.models["base"])
    splits = {"train": rows, "validation": explained(repeating_rows(20, seed=1))}
    tokens = {
        name: tokenise_exchanges(found, model, context.store, max_tokens=max_tokens, max_new_tokens=4).fingerprint
        for name, found in splits.items()
    }
    return dataclasses.replace(context, tokens={"base": tokens})


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return with_train(generation_context(tmp_path_factory.mktemp("cot"), rows=4), explained(repeating_rows(24, seed=0)))


@pytest.fixture(scope="module")
def rows(context: Context) -> ResponseTokens:
    found = split_tokens(context, base="base", split="train")
    assert isinstance(found, ResponseTokens)
    return found


def text_of(tokens: ResponseTokens, row: int) -> tuple[str, str]:
    """Prompt and target of a row, as text with all special tokens."""
    ids, prompt = tokens.ids(row), int(tokens.prompt_lengths[row])
    return tokens.tokenizer.decode(ids[:prompt]), tokens.tokenizer.decode(ids[prompt:])


# Rows -----------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    return text.replace(" ", "").removeprefix("[CLS]")


def test_generate_rows_are_prompt_rationale_mark_response(rows: ResponseTokens) -> None:
    found = reasoned_rows(rows, data_rationales(rows))
    wanted = repeating_rows(24, seed=0)
    assert len(found) == 24
    for row in range(24):
        prompt, target = (plain(text) for text in text_of(found, row))
        index = wanted.prompts.index(next(p for p in wanted.prompts if plain(p) == prompt))
        rationale = "" if index % 3 == 0 else f"{wanted.prompts[index]}####"
        assert target == plain(f"{rationale}{wanted.responses[index]}[SEP]")
    # The prompt is no position of the loss.
    assert found.num_positions() == sum(len(found.ids(row)) - len(found.prompt(row)) for row in range(24))


def test_the_two_tasks_are_told_apart_by_their_prefixes(rows: ResponseTokens) -> None:
    found, wanted = two_tasks(rows, data_rationales(rows)), repeating_rows(24, seed=0)
    assert len(found) == 24 + 16
    for row in range(24):
        prompt, target = (plain(text) for text in text_of(found, row))
        assert (prompt, target) == (plain(f"predict:{wanted.prompts[row]}"), plain(f"{wanted.responses[row]}[SEP]"))
    for number, row in enumerate(row for row in range(24) if row % 3):
        prompt, target = (plain(text) for text in text_of(found, 24 + number))
        assert (prompt, target) == (plain(f"explain:{wanted.prompts[row]}"), plain(f"{wanted.prompts[row]}[SEP]"))


def test_a_prompt_that_is_cut_keeps_its_prefix(context: Context) -> None:
    long = GenerationRows(prompts=("sun " * 50 + "moon",), responses=("dog",), rationales=("cat",))
    few = with_train(context, long, max_tokens=24)
    tokens = asked_tokens(plan_of(MULTITASK), few, split="train")
    assert isinstance(tokens, ResponseTokens)
    prompt = tokens.tokenizer.decode(tokens.prompt(0)).replace(" ", "")
    assert prompt.startswith("[CLS]predict:sunsun") and prompt.endswith("sunmoon") and len(tokens.prompt(0)) == 20
    with pytest.raises(ModelError, match=r"no room behind 'predict:'; raise task.max_tokens"):
        asked_tokens(plan_of(MULTITASK), with_train(context, long, max_tokens=8), split="train")


# The loss -------------------------------------------------------------------------------------------------------


def test_the_loss_over_an_epoch_is_that_of_both_tasks(context: Context, rows: ResponseTokens) -> None:
    """Batches of one task alone, mixed and of different sizes, on two workers: alpha L + (1 - alpha) L."""
    found, model = two_tasks(rows, data_rationales(rows)), load_causal(Path(context.models["base"]))
    num_responses = found.num_positions(np.arange(24))
    weights = {"num_rows": 40, "num_responses": num_responses, "num_rationales": found.num_positions() - num_responses}
    batches = [np.arange(10), np.array([*range(10, 24), 30, 31]), np.array([*range(24, 30), *range(32, 40)])]
    total = 0.0
    for whole in batches:
        for own in (whole[::2], whole[1::2]):
            batch = collate(found, own, pad_id=0, whole=whole)
            with torch.no_grad():
                outputs = model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL)
            total += float(multitask_loss(outputs, batch, 0.0, alpha=0.3, **weights)) * len(whole) / 40
    assert total == pytest.approx(0.3 * mean_nll(model, found, range(24)) + 0.7 * mean_nll(model, found, range(24, 40)))


def mean_nll(model: Any, tokens: ResponseTokens, rows: range) -> float:
    """Mean -log q of all targets' tokens, each row alone, by torch in float64."""
    nll = []
    for row in rows:
        ids, prompt = torch.from_numpy(tokens.ids(row)), int(tokens.prompt_lengths[row])
        with torch.no_grad():
            logits = model(ids[None]).logits[0].double()
        nll += functional.cross_entropy(logits[prompt - 1 : -1], ids[prompt:], reduction="none").tolist()
    return float(np.mean(nll))


@pytest.mark.parametrize(("stage", "count"), [(GENERATE, 24), (MULTITASK, 40)])
def test_what_a_stage_trains_on(
    stage: DistillCot, count: int, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ResponseTokens]] = []
    fit = method.fit

    def spy(model: Any, loss: Any, job: Any, *, tokens: Any) -> Any:
        seen.append((loss, tokens))
        return fit(model, loss, job, tokens=tokens)

    monkeypatch.setattr(method, "fit", spy)
    plan = Plan(base="base", stages=(stage,), data="seen", seed=3)
    artifact = run_plan(plan, context, ranks=solo(), report=silent)
    ((loss, tokens),) = seen
    assert len(tokens) == count and (loss is gold_loss) is (stage is GENERATE)
    notes = artifact.about["notes"]
    assert (notes["rationales"], notes["rows_explained"]) == (16, pytest.approx(2 / 3))
    assert notes["output_tokens"] == np.median(tokens.response_lengths[:24]) > (3 if stage is GENERATE else 2)


# How it is asked ------------------------------------------------------------------------------------------------


def test_only_the_response_is_asked_of_a_multitask_model(context: Context, rows: ResponseTokens) -> None:
    asked = asked_tokens(plan_of(MULTITASK), context, split="validation")
    assert isinstance(asked, ResponseTokens)
    validation = repeating_rows(20, seed=1)
    assert [plain(text_of(asked, row)[0]) for row in range(20)] == [plain(f"predict:{p}") for p in validation.prompts]
    assert (asked.max_new_tokens, asked.reasons) == (rows.max_new_tokens, False)


def test_a_generating_model_has_room_for_its_rationale_and_is_read_behind_it(
    context: Context, rows: ResponseTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asked_tokens(plan_of(GENERATE), context, split="validation")
    assert isinstance(asked, ResponseTokens)
    longest = max(len(prompt.split()) for prompt in repeating_rows(24, seed=0).prompts)
    assert rows.max_new_tokens == 4
    # The words of the prompt, four signs, two words, an end.
    assert asked.max_new_tokens == longest + 4 + 2 + 1
    assert asked.prompt(3).tolist() == split_tokens(context, base="base", split="validation").prompt(3).tolist()  # type: ignore[attr-defined]
    words = np.array([VOCABULARY[word] for word in ("red", "cat", "#", "#", "#", "#", "big", "dog")])
    monkeypatch.setattr("trainers.generation_metrics.RATIONALE_END", "# # # #")
    assert asked.take(np.arange(2)).answers([words, words[:2]]) == ["big dog", "red cat"]
    assert rows.answers([words]) == ["red cat # # # # big dog"]


def test_a_plan_that_goes_on_without_rationales_is_asked_plainly(context: Context) -> None:
    plain_tokens = split_tokens(context, base="base", split="validation")
    asked = asked_tokens(plan_of(MULTITASK, finetuning()), context, split="validation")
    assert asked.ids(0).tolist() == plain_tokens.ids(0).tolist()


@pytest.mark.parametrize("stage", [MULTITASK, GENERATE])
def test_what_is_deployed_is_measured_as_it_was_trained(stage: DistillCot, context: Context) -> None:
    result = carry_out(plan_of(stage), ["fp32"], context, ranks=solo(), report=silent)
    assert result is not None and result.variants[0].value == pytest.approx(result.curve[-1][1])


# What it costs --------------------------------------------------------------------------------------------------


def test_a_request_to_a_generating_model_is_measured_with_its_rationale(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A millisecond a token, read or written: what is told of a request does not depend on the machine.
    monkeypatch.setattr(generation_cost, "_answer", lambda _, asked: (asked.prompt_tokens + asked.output_tokens, 5.0))
    known = dataclasses.replace(context, output_tokens=3)
    lengths = [len(prompt.split()) + 4 + 2 + 1 for i, prompt in enumerate(repeating_rows(24, seed=0).prompts) if i % 3]
    costs = []
    for stage, wanted in ((MULTITASK, 3), (GENERATE, int(np.median(lengths)))):
        shape = plan_of(stage).shape
        costs.append(kind_of(known).probe(shape, "fp32", known, reference=Shape(base="base"), sequence_length=5))
        assert (costs[-1].shape.reasons, costs[-1].output_tokens) == (stage is GENERATE, wanted)
        # The reference is asked for no rationale, or the rationale's cost would cancel.
        assert (costs[-1].latency_ratio, costs[-1].reference_ms) == ((5 + wanted) / 8, 8)
    assert costs[1].flops > costs[0].flops
    assert (say_shape(costs[0].shape), say_shape(costs[1].shape)) == ("all layers", "all layers + rationale")
    storage = Storage(context.artifacts)
    write_cost_table(costs, storage, "costs.parquet")
    assert read_cost_table(storage, "costs.parquet") == costs


def test_a_mode_that_is_too_slow_is_taken_out() -> None:
    space = dataclasses.replace(make_space(), strategies=("distill_cot",))
    assert {shape.reasons for shape in CATALOGUE["distill_cot"].ends_in(space)} == {False, True}
    left = restrict(space, lambda shape: not shape.reasons)
    assert (left.strategies, left.options(COT_MODE)) == (("distill_cot",), ("multitask",))


# A teacher's rationales -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("3 + 4 = 7. #### 7", "3 + 4 = 7."),
        ("3 + 4 = 8. #### 8", None),
        ("3 + 4 = 7.", None),
        (" #### 7", None),
        ("half #### 7 #### 7", "half"),
    ],
)
def test_a_rationale_is_kept_when_it_leads_to_the_right_answer(text: str, kept: str | None) -> None:
    assert right_rationale(text, "7") == kept


def test_right_rationales_of_a_teacher_are_learnt_from(
    context: Context, rows: ResponseTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher writes what the test says: on even rows a right rationale, then another; on odd ones wrong ones."""
    turns: dict[int, int] = {}

    def write(_model: Any, _tokens: ResponseTokens, asked: np.ndarray, **_: Any) -> list[np.ndarray]:
        found = []
        for row in asked.tolist():
            turn = turns[row] = turns.get(row, -1) + 1
            answer = rows.responses[row] if row % 2 == 0 else "red"
            text = f"{('sun', 'moon')[turn % 2]} #### {answer}"
            found.append(np.array(rows.tokenizer(text, add_special_tokens=False)["input_ids"]))
        return found

    monkeypatch.setattr(rationales_module, "written_ids", write)
    monkeypatch.setattr(rationales_module, "RATIONALE_END", "# # # #")
    monkeypatch.setattr("trainers.generation_metrics.RATIONALE_END", "# # # #")
    plan = plan_of(GENERATE.model_copy(update={"written": WRITTEN}))
    notes = run_plan(plan, context, ranks=solo(), report=silent).about["notes"]
    assert notes["rationales_kept"] == 0.5
    assert (notes["rationales"], notes["rows_explained"]) == (24, 0.5)


def test_a_teacher_that_is_never_right_fails_the_plan(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rationales_module, "right_rationale", lambda *_: None)
    stage = MULTITASK.model_copy(update={"written": WRITTEN.model_copy(update={"num_samples": 1})})
    with pytest.raises(TrainingError, match=r"none of the 24 rationales .* set search.space.rationales: data"):
        run_plan(plan_of(stage), context, ranks=solo(), report=silent)


def test_draws_follow_the_softened_distribution() -> None:
    logits_BV = torch.tensor([[0.0, 1.0, 2.0]]).expand(20_000, 3)
    generator = torch.Generator().manual_seed(0)
    prompts_B = torch.arange(20_000)
    counts = drawn(logits_BV, prompts_B, temperature=0.7, generator=generator).bincount(minlength=3) / 20_000
    wanted = np.exp(np.arange(3) / 0.7) / np.exp(np.arange(3) / 0.7).sum()
    np.testing.assert_allclose(counts.numpy(), wanted, atol=0.015)
    assert likeliest(logits_BV, prompts_B).unique().tolist() == [2]


# Bad input ------------------------------------------------------------------------------------------------------


def test_rows_without_rationales_or_with_too_long_ones_fail_the_plan(context: Context) -> None:
    bare = with_train(context, repeating_rows(8, seed=2))
    with pytest.raises(TrainingError, match=r"no row of train has a rationale to learn from: name their column"):
        run_plan(plan_of(GENERATE, seed=9), bare, ranks=solo(), report=silent)
    long = dataclasses.replace(repeating_rows(8, seed=2), rationales=("the sun " * 20,) * 8)
    with pytest.raises(TrainingError, match=r"all are too long; raise task.max_tokens"):
        run_plan(plan_of(GENERATE, seed=5), with_train(context, long), ranks=solo(), report=silent)


def test_perplexity_of_a_generating_model_is_refused(context: Context) -> None:
    other = dataclasses.replace(context, metric="perplexity")
    with pytest.raises(TrainingError, match="cot_mode: multitask, or measure exact_match"):
        run_plan(plan_of(GENERATE, seed=7), other, ranks=solo(), report=silent)


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="mode multitask alone takes alpha"):
        DistillCot(mode="multitask", optimisation=fitting())
    with pytest.raises(ValueError, match="must have learnt to write rationales"):
        Written(teacher=Chain(base="base", stages=(MULTITASK,)), num_samples=1)


def spec_file(folder: Path, *, strategies: str, **task: str) -> Path:
    lines = [f"  {key}: {value}" for key, value in {"kind": "generation", **task}.items()]
    text = ["name: cot", "task:", *lines, "model: {base: m}", f"search: {{strategies: {strategies}}}"]
    path = folder / "spec.yaml"
    path.write_text("\n".join([*text, "budget: {trials: 1}"]) + "\n")
    return path


def test_without_rationales_it_is_left_out_with_the_reason_or_an_error_where_it_is_named(tmp_path: Path) -> None:
    left_out = load_spec(spec_file(tmp_path, strategies="all", train="rows.jsonl")).left_out
    assert left_out["distill_cot"] == "needs rationales, but task.rationale names no column"
    with pytest.raises(SpecError, match=r"distill_cot needs rationales, but task\.rationale names no column"):
        load_spec(spec_file(tmp_path, strategies="[distill_cot]", train="rows.jsonl"))
    for task in ({"train": "rows.jsonl", "rationale": "why"}, {"train": '"builtin:arithmetic"'}):
        assert "distill_cot" in load_spec(spec_file(tmp_path, strategies="all", **task)).strategies
    assert CATALOGUE["distill_cot"].kinds == ("generation",)
