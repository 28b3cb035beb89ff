"""In-context tuning: which rows stand before which, what is minimised, who reads what, labels that are never seen."""

import csv
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generation_task import generation_context
from ledgers import make_space
from tiny_models import VOCABULARY, WORDS
from training_task import finetuning, fitting, plan_of

from search.export import _prompt
from search.words import say_shape
from spaces.catalogue import CATALOGUE
from spaces.draw import restrict
from spaces.methods.distill_cot import DistillCot
from spaces.methods.distill_in_context import (
    IN_CONTEXT_MODE,
    NUM_DEMONSTRATIONS,
    DistillInContext,
    Episodes,
    TuneInContext,
)
from spaces.plan import Plan
from spaces.shape import Shape
from spaces.stages import Chain
from spaces.task import Task
from trainers import distill_in_context as method
from trainers import generation_cost
from trainers.batches import collate
from trainers.carry_out import carry_out
from trainers.causal_models import inspect_causal, load_causal
from trainers.context import Context
from trainers.cost import read_cost_table, write_cost_table
from trainers.demonstrations import Demonstrations
from trainers.distill_in_context import Weights, taught_loss, tell
from trainers.episodes import NoEpisodes, any_rows, few_labels, numbered, split_labels, varied_rows
from trainers.generation_tokens import ResponseTokens
from trainers.kinds import asked_tokens, kind_of, split_tokens
from trainers.loop import Job, TrainingError
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.run_stage import run_plan
from trainers.storage import Storage
from trainers.trained import trained_part

LABELS = ("cat", "dog", "sun", "moon", "red", "blue")
ANY = Episodes(mode="multitask", num_demonstrations=2)
FEW = Episodes(mode="meta", num_demonstrations=2, unseen_labels=0.3)


def silent(_: Progress) -> None:
    pass


def tuning(episodes: Episodes, **settings: Any) -> TuneInContext:
    return TuneInContext(episodes=episodes, optimisation=fitting(epochs=1), **settings)


def distilling(episodes: Episodes, **settings: Any) -> DistillInContext:
    teacher = Chain(base="base", stages=(tuning(episodes, **settings),))
    shared = {"teacher": teacher, "temperature": 2.0, "alpha": 0.7, "optimisation": fitting(epochs=1)}
    return DistillInContext(episodes=episodes, **shared, **settings)


def labelled_csv(folder: Path, *, rows: int = 60) -> Task:
    """A file of texts that hold a word, and that word as their label."""
    rng = np.random.default_rng(0)
    others = [word for word in WORDS if word not in LABELS]
    with (folder / "labelled.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["utterance", "intent"])
        for number in range(rows):
            words = [*rng.choice(others, size=1 + number % 4), LABELS[number % len(LABELS)], f"{number // 6}"]
            writer.writerow([" ".join(rng.permutation(words)), words[-2]])
    return Task(
        kind="generation", train="labelled.csv", validation=0.25, prompt="utterance", response="intent", max_tokens=48
    )


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """Labelled rows of a file as a generation task, the way a user has them."""
    folder = tmp_path_factory.mktemp("labelled")
    return labelled(generation_context(folder, rows=4), folder)


def labelled(plain: Context, folder: Path, *, max_tokens: int = 48) -> Context:
    kind, model = kind_of(plain), inspect_causal(plain.models["base"])
    found = kind.load_rows(labelled_csv(folder), seed=0, folder=folder).splits
    tokens = {
        split: kind.tokenise(rows, model, plain, max_tokens=max_tokens).fingerprint for split, rows in found.items()
    }
    return dataclasses.replace(plain, tokens={"base": tokens})


@pytest.fixture(scope="module")
def train(context: Context) -> ResponseTokens:
    found = split_tokens(context, base="base", split="train")
    assert isinstance(found, ResponseTokens)
    return found


def job_of(stage: Any, context: Context, *, seed: int = 0) -> Job:
    return Job(plan=plan_of(stage, seed=seed), context=context, ranks=solo(), report=silent)


# Which rows -----------------------------------------------------------------------------------------------------


def test_demonstrations_are_any_rows_with_other_prompts() -> None:
    prompts = np.array([0, 1, 1, 2, 3, 4])
    shown = any_rows(prompts, num_demonstrations=3, num_episodes=40, rng=np.random.default_rng(0))
    assert shown.rows.tolist() == 40 * list(range(6))
    for row, before in zip(shown.rows, shown.before, strict=True):
        assert len(set(before.tolist())) == 3 and prompts[row] not in prompts[before]
    # All others come, and not always the same ones.
    assert {found for row, before in zip(shown.rows, shown.before, strict=True) if row == 1 for found in before} == {
        0, 3, 4, 5,
    }  # fmt: skip
    with pytest.raises(NoEpisodes, match="5 demonstrations need as many rows with other prompts, but got 4"):
        any_rows(prompts, num_demonstrations=5, num_episodes=1, rng=np.random.default_rng(0))


@pytest.mark.parametrize(("num_demonstrations", "num_labels"), [(2, (2, 5)), (3, (3, 3)), (7, (2, 3))])
def test_an_episode_is_a_task_of_few_labels(num_demonstrations: int, num_labels: tuple[int, int]) -> None:
    """With more demonstrations than labels (the last case) labels are shown again, none in the place of another."""
    labels, prompts = np.arange(48) % 6, np.arange(48)
    shown = few_labels(
        prompts,
        labels,
        np.array([0, 1, 2, 4, 5]),
        num_labels=num_labels,
        num_demonstrations=num_demonstrations,
        num_episodes=5,
        rng=np.random.default_rng(1),
    )
    assert sorted(shown.rows.tolist()) == sorted(5 * [row for row in range(48) if row % 6 != 3])
    found = set()
    for row, before in zip(shown.rows, shown.before, strict=True):
        counts = np.bincount(labels[before], minlength=6)
        assert len(set(before.tolist())) == num_demonstrations and row not in before and counts[3] == 0
        assert counts[counts > 0].max() - counts[counts > 0].min() <= 1 and (counts > 0).sum() <= num_labels[1]
        if num_labels[1] <= num_demonstrations:
            assert labels[row] in labels[before]
        found.add(labels[row] in labels[before])
    assert (False in found) is (num_labels[1] > num_demonstrations)


def test_labels_that_are_kept_from_all_episodes() -> None:
    labels = np.repeat(np.arange(10), 4)
    seen, unseen = split_labels(labels, unseen=0.3, rng=np.random.default_rng(0))
    assert len(unseen) == 3 and sorted([*seen, *unseen]) == list(range(10))
    assert len(split_labels(labels, unseen=0.01, rng=np.random.default_rng(0))[1]) == 2
    assert len(split_labels(labels, unseen=1.0, rng=np.random.default_rng(0))[0]) == 2
    assert len(split_labels(labels, unseen=0.0, rng=np.random.default_rng(0))[1]) == 0
    with pytest.raises(NoEpisodes, match="there are 3 distinct responses; tasks of a few of them need 4 or more"):
        split_labels(np.repeat(np.arange(3), 9), unseen=0.2, rng=np.random.default_rng(0))
    with pytest.raises(NoEpisodes, match="20 of 40 responses are distinct; a label has 4 rows or more, on average"):
        split_labels(np.repeat(np.arange(20), 2), unseen=0.2, rng=np.random.default_rng(0))


def test_rows_that_are_served_are_of_as_many_labels_as_there_can_be() -> None:
    labels = np.array([0] * 90 + [1, 2, 2])
    found = varied_rows(labels, num_demonstrations=4, rng=np.random.default_rng(0))
    assert sorted(set(labels[found])) == [0, 1, 2] and len(set(found.tolist())) == 4
    assert numbered(["b", "a", "b"]).tolist() == [1, 0, 1]


# What a model reads ---------------------------------------------------------------------------------------------


def plain(tokens: ResponseTokens, ids: np.ndarray) -> str:
    """As text without white space, which the tiny tokenizer does not keep."""
    return str(tokens.tokenizer.decode(ids)).replace(" ", "")


def test_an_episode_is_demonstrations_and_then_the_prompt(context: Context, train: ResponseTokens) -> None:
    settings = ANY.model_copy(update={"num_episodes": 3})
    told = tell(job_of(tuning(settings), context))
    assert len(told.tokens) == 3 * len(train)
    assert told.notes == {"demonstrations_shown": 2.0, "episodes_shortened": 0.0} and told.unseen is None
    shown = method.draw_episodes(Demonstrations(train), settings, seed=0)[0]
    for index, (row, before) in enumerate(zip(shown.rows, shown.before, strict=True)):
        opening = "".join(f"{train.prompts[one]} {train.responses[one]}" for one in before)
        whole = f"[CLS]{opening}{train.prompts[row]}".replace(" ", "")
        assert plain(told.tokens, told.tokens.prompt(index)) == whole
        response = told.tokens.ids(index)[told.tokens.prompt_lengths[index] :]
        assert plain(told.tokens, response) == f"{train.responses[row]}[SEP]"
        assert train.prompts[row] not in {train.prompts[one] for one in before}
    assert tell(job_of(tuning(settings), context)).tokens.ids(7).tolist() == told.tokens.ids(7).tolist()
    assert tell(job_of(tuning(settings), context, seed=1)).tokens.ids(7).tolist() != told.tokens.ids(7).tolist()


def test_the_first_demonstrations_give_way_where_not_all_fit(context: Context, tmp_path: Path) -> None:
    short = labelled(context, tmp_path, max_tokens=22)
    told, rows = tell(job_of(tuning(ANY), short)), split_tokens(short, base="base", split="train")
    assert isinstance(rows, ResponseTokens)
    assert 0 < told.notes["demonstrations_shown"] < 2 and 0 < told.notes["episodes_shortened"] < 1
    shown = method.draw_episodes(Demonstrations(rows), ANY, seed=0)[0]
    for index, (row, before) in enumerate(zip(shown.rows, shown.before, strict=True)):
        prompt = plain(told.tokens, told.tokens.prompt(index))
        pieces = [f"{rows.prompts[one]} {rows.responses[one]}".replace(" ", "") for one in before]
        ends = [f"[CLS]{''.join(pieces[left:])}{rows.prompts[row]}".replace(" ", "") for left in range(3)]
        assert prompt in ends and len(told.tokens.prompt(index)) <= rows.max_prompt_tokens
    with pytest.raises(TrainingError, match=r"no demonstration fits before a prompt within 6 tokens; raise task.max_t"):
        tell(job_of(tuning(ANY), labelled(context, tmp_path, max_tokens=10)))


def test_rows_that_give_no_such_episodes_fail_the_plan_with_a_way_out(context: Context, tmp_path: Path) -> None:
    bare = generation_context(tmp_path, rows=20, max_tokens=40)
    with pytest.raises(
        TrainingError, match=r"tune_in_context: .* distinct; .*; set search.space.in_context_mode: multi"
    ):
        run_plan(plan_of(tuning(FEW)), bare, ranks=solo(), report=silent)
    base = inspect_causal(bare.models["base"])
    # A search hears of it before, and goes without the mode.
    known = dataclasses.replace(bare, tokens={base.fingerprint: bare.tokens["base"]})
    lacking = kind_of(known).lacking(known, base=base, teacher=None, students=())
    assert "responses are distinct" in lacking["labels"] and not IN_CONTEXT_MODE.serves("meta", lacking)
    many = ANY.model_copy(update={"num_demonstrations": 90})
    with pytest.raises(
        TrainingError, match=r"90 demonstrations need as many .* but got 44; set search.space.num_demonst"
    ):
        run_plan(plan_of(tuning(many)), context, ranks=solo(), report=silent)


# The loss -------------------------------------------------------------------------------------------------------


def log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(axis=-1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


@pytest.mark.parametrize("prompt_weight", [0.0, 0.3])
def test_the_loss_over_an_epoch_is_that_of_the_paper(prompt_weight: float, context: Context) -> None:
    """Against float64 numpy, whole rows one by one; batches of different sizes, each on two workers."""
    stage = distilling(ANY, prompt_weight=prompt_weight)
    told, model = tell(job_of(stage, context)), load_causal(Path(context.models["base"]))
    tokens, rng = told.tokens, np.random.default_rng(0)
    teacher_PC = log_softmax(rng.normal(size=(tokens.num_positions(), model.config.vocab_size))).astype(np.float32)
    loss, batches = partial(taught_loss, stage, told.weights), np.split(rng.permutation(len(tokens)), [20, 27])
    total = 0.0
    for whole in batches:
        for own in (whole[::2], whole[1::2]):
            batch = collate(tokens, own, pad_id=0, whole=whole)
            with torch.no_grad():
                outputs = model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL)
            found = float(
                loss(batch.at_positions(outputs.logits), torch.from_numpy(teacher_PC[batch.positions_P]), batch, 0.0)
            )
            total += found * (len(whole) / len(tokens) if prompt_weight else batch.count / tokens.num_positions())
    assert total == pytest.approx(reference(model, context, teacher_PC, prompt_weight=prompt_weight), rel=1e-5)


def reference(model: Any, context: Context, teacher_PC: np.ndarray, *, prompt_weight: float) -> float:
    """L_response + beta L_prompt, each 0.7 · 2² · KL(p ‖ q at T = 2) + 0.3 · CE, over rows as the model reads them."""
    rows, sums, counts, at = tell(job_of(tuning(ANY), context)).tokens, np.zeros(2), np.zeros(2), 0
    for row in range(len(rows)):
        ids, prompt = rows.ids(row), int(rows.prompt_lengths[row])
        with torch.no_grad():
            logits = model(torch.from_numpy(ids)[None]).logits[0].double().numpy()
        for place in range(0 if prompt_weight else prompt - 1, len(ids) - 1):
            p = log_softmax(teacher_PC[at].astype(np.float64) / 2)
            q = log_softmax(logits[place] / 2)
            soft, hard = (np.exp(p) * (p - q)).sum(), -log_softmax(logits[place])[ids[place + 1]]
            is_prompt = int(place < prompt - 1)
            sums[is_prompt] += 0.7 * 4 * soft + 0.3 * hard
            counts[is_prompt] += 1
            at += 1
    assert at == len(teacher_PC)
    means = sums / np.maximum(counts, 1)
    return float(means[0] + prompt_weight * means[1])


def test_nothing_but_the_gold_loss_is_left_without_a_teacher(context: Context) -> None:
    told, logits_PC = tell(job_of(tuning(ANY), context)), torch.randn(500, 20, dtype=torch.float64)
    batch = collate(told.tokens, np.arange(9), pad_id=0)
    batch = dataclasses.replace(batch, labels_P=batch.labels_P % 20, places_P=None)
    count = len(batch.labels_P)
    outputs = type("Outputs", (), {"logits": logits_PC[:count]})
    wanted = torch.nn.functional.cross_entropy(logits_PC[:count], batch.labels_P)
    assert float(method._gold_loss(Weights(0.0, 1, np.zeros(0)), outputs, batch, 0.0)) == pytest.approx(float(wanted))


# Teacher and student --------------------------------------------------------------------------------------------


def test_teacher_and_student_read_the_same_prompts(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[ResponseTokens] = []
    answered: list[tuple[ResponseTokens, np.ndarray]] = []
    fit, outputs_on = method.fit, method.outputs_on

    def spy_fit(model: Any, loss: Any, job: Any, *, tokens: ResponseTokens) -> Any:
        learnt.append(tokens)
        return fit(model, loss, job, tokens=tokens)

    def spy_outputs(tokens: ResponseTokens, *others: Any, **settings: Any) -> Any:
        found = outputs_on(tokens, *others, **settings)
        answered.append((tokens, found.log_probs))
        return found

    monkeypatch.setattr(method, "fit", spy_fit)
    monkeypatch.setattr(method, "outputs_on", spy_outputs)
    plan = plan_of(distilling(FEW))
    artifact = run_plan(plan, context, ranks=solo(), report=silent)
    (teachers, students), ((asked, log_probs),) = learnt, answered
    every = range(len(students))
    assert [teachers.ids(row).tolist() for row in every] == [students.ids(row).tolist() for row in every]
    assert [asked.ids(row).tolist() for row in every] == [students.ids(row).tolist() for row in every]
    teacher = load_causal(trained_part(plan.on_same_data(plan.stages[-1].teachers[0]), context).folder)
    ids, prompt = torch.from_numpy(asked.ids(3)), int(asked.prompt_lengths[3])
    with torch.no_grad():
        wanted = log_softmax(teacher(ids[None]).logits[0, prompt - 1 : -1].double().numpy())
    np.testing.assert_allclose(log_probs[asked.num_positions(np.arange(3)) :][: len(wanted)], wanted, atol=1e-4)
    assert artifact.about["notes"]["unseen_labels"] == 2


def test_draws_of_a_teacher_teach_what_it_answers(context: Context) -> None:
    """Of a large vocabulary they are what is kept; prompts are foretold as well, so that a row has many positions."""
    stage = distilling(ANY, prompt_weight=0.3)
    run_plan(Plan(base="base", stages=stage.teacher.stages, data="rows"), context, ranks=solo(), report=silent)
    losses, job = [], job_of(stage, context)
    told, batch_rows = tell(job), np.array([31, 2, 17, 5])
    batch = collate(told.tokens, batch_rows, pad_id=0)
    student_PC = torch.randn(len(batch.labels_P), len(VOCABULARY), generator=torch.Generator().manual_seed(0))
    for num_draws in (None, 20_000):
        drawing = job_of(stage.model_copy(update={"num_draws": num_draws}), context)
        taught = method.taught_episodes(told, drawing)
        assert taught.kept.num_positions == told.tokens.num_positions()
        losses.append(float(taught_loss(drawing.stage, told.weights, student_PC, taught.at(batch), batch, 0.0)))
    # Some (classes - 1) / 2 draws nats too much, which no gradient has.
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_a_teacher_of_other_episodes_is_refused() -> None:
    with pytest.raises(ValueError, match="the teacher must be tuned on the student's episodes"):
        DistillInContext.model_validate(distilling(FEW).model_dump() | {"episodes": ANY.model_dump()})
    with pytest.raises(ValueError, match="mode meta shows two labels or more"):
        Episodes(mode="meta", num_demonstrations=1)
    with pytest.raises(ValueError, match="mode meta alone keeps labels unseen"):
        Episodes(mode="multitask", num_demonstrations=1, unseen_labels=0.2)


# Labels that are never seen -------------------------------------------------------------------------------------


def test_labels_of_the_unseen_test_are_in_no_episode(context: Context, train: ResponseTokens) -> None:
    told = tell(job_of(tuning(FEW), context))
    assert told.unseen is not None
    unseen = set(told.unseen.responses)
    assert len(unseen) == 2 and set(told.tokens.responses) == set(LABELS) - unseen
    learnt = {
        word for row in range(len(told.tokens)) for word in told.tokens.tokenizer.decode(told.tokens.ids(row)).split()
    }
    assert not learnt & unseen
    for row in range(len(told.unseen)):
        # Both are shown, so that the right one can be found.
        assert unseen <= set(told.unseen.tokenizer.decode(told.unseen.prompt(row)).split())
    assert len(told.unseen) == sum(response in unseen for response in train.responses)


def test_the_share_of_right_answers_to_unseen_labels_is_noted(context: Context) -> None:
    """As transformers itself writes, prompt by prompt."""
    plan = plan_of(tuning(FEW))
    artifact, told = run_plan(plan, context, ranks=solo(), report=silent), tell(job_of(plan.stages[-1], context))
    model, unseen = load_causal(artifact.folder), told.unseen
    assert unseen is not None
    right = 0
    for row in range(len(unseen)):
        ids = torch.from_numpy(unseen.prompt(row))[None]
        end = unseen.tokenizer.eos_token_id
        written = model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=0,
        )
        text = unseen.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        right += text.strip() == unseen.responses[row]
    assert artifact.about["notes"]["unseen_accuracy"] == pytest.approx(right / len(unseen))


# How it is asked ------------------------------------------------------------------------------------------------


def test_a_model_is_asked_behind_the_text_that_is_handed_over(context: Context, train: ResponseTokens) -> None:
    plan = plan_of(distilling(ANY), seed=4)
    asked, rows = (
        asked_tokens(plan, context, split="validation"),
        split_tokens(context, base="base", split="validation"),
    )
    assert isinstance(asked, ResponseTokens) and isinstance(rows, ResponseTokens)
    opening = kind_of(context).opening(plan, context)
    first, second, nothing = opening.split("\n\n")
    assert nothing == "" and {first, second} <= set(train.solved) and first.split()[-1] != second.split()[-1]
    for row in range(len(rows)):
        # As a program would ask: the text, then the prompt.
        assert asked.prompt(row).tolist() == rows.tokenizer(f"{opening}{rows.prompts[row]}")["input_ids"]
    assert kind_of(context).opening(plan_of(finetuning()), context) == ""
    assert "2 rows of train with their responses" in _prompt(plan)
    multitask = plan_of(DistillCot(mode="multitask", alpha=0.5, optimisation=fitting()))
    assert kind_of(context).opening(multitask, context) == "predict: "


def test_a_row_is_never_shown_before_itself(context: Context, train: ResponseTokens) -> None:
    plan = plan_of(distilling(ANY), seed=4)
    asked = asked_tokens(plan, context, split="train")
    assert isinstance(asked, ResponseTokens)
    for row in Demonstrations(train).served(2, seed=4).tolist():
        assert plain(asked, asked.prompt(row)).count(train.prompts[row].replace(" ", "")) == 1


def test_labelled_rows_are_learnt_as_text_and_measured_as_served(context: Context) -> None:
    result = carry_out(plan_of(distilling(FEW), seed=2), ["fp32"], context, ranks=solo(), report=silent)
    assert result is not None and result.variants[0].value == pytest.approx(result.curve[-1][1])
    assert set(result.notes) == {"demonstrations_shown", "episodes_shortened", "unseen_accuracy", "unseen_labels"}


# What it costs --------------------------------------------------------------------------------------------------


def test_a_request_is_measured_with_its_demonstrations(
    context: Context, train: ResponseTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_cost, "_answer", lambda _, asked: (asked.prompt_tokens + asked.output_tokens, 5.0))
    known = dataclasses.replace(context, output_tokens=3)
    each = int(np.median([len(train.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in train.solved]))
    costs = []
    for shots in (0, 2, 4, 40):
        shape = Shape(base="base", num_shots=shots)
        costs.append(kind_of(known).probe(shape, "fp32", known, reference=Shape(base="base"), sequence_length=5))
        fitting_ones = min(shots, (train.max_prompt_tokens - 5) // each)
        assert costs[-1].sequence_length == 5 + fitting_ones * each
        assert costs[-1].latency_ratio == (8 + fitting_ones * each) / 8 and costs[-1].reference_ms == 8
    assert costs[0].flops < costs[1].flops < costs[2].flops
    assert (say_shape(costs[0].shape), say_shape(costs[1].shape)) == ("all layers", "all layers + 2-shot")
    storage = Storage(context.artifacts)
    write_cost_table(costs, storage, "costs.parquet")
    assert read_cost_table(storage, "costs.parquet") == costs


def test_numbers_of_demonstrations_that_are_too_slow_are_taken_out() -> None:
    space = dataclasses.replace(make_space(), strategies=("distill_in_context",))
    assert {shape.num_shots for shape in CATALOGUE["distill_in_context"].ends_in(space)} == {2, 4}
    left = restrict(space, lambda shape: shape.num_shots < 4)
    assert (left.strategies, left.options(NUM_DEMONSTRATIONS)) == (("distill_in_context",), (2,))
