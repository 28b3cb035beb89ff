"""Meta-distillation: the teacher's gradient through a pilot of the student, and what is trained by it."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import KINDS
from torch import Tensor
from training_task import LABELS, finetuning, fitting, plan_of, tiny_context

from spaces.methods.cut import SelectLayers
from spaces.methods.meta import MetaDistill
from spaces.plan import Plan
from spaces.stages import Chain
from trainers.batches import Batch, collate
from trainers.compute import pad_id
from trainers.context import Context
from trainers.kinds import split_tokens
from trainers.loop import Job, TrainingError, Turn, fit
from trainers.losses import soft_label_loss
from trainers.meta import MetaTeacher, meta_distill, meta_gradient, quiz_split
from trainers.models import load_classifier, select_layers
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.run_stage import run_plan

EXPERT = finetuning()
CUT = SelectLayers(layers=(0,))


def silent(_: Progress) -> None:
    pass


def learning(rate: float = 1e-3, **settings: float) -> MetaDistill:
    return MetaDistill(
        optimisation=fitting(epochs=2),
        teacher=Chain(base="base", stages=(EXPERT,)),
        teacher_learning_rate=rate,
        **{"quiz_share": 0.2, "temperature": 2.0, "alpha": 0.7, **settings},
    )


def job_of(plan: Plan, context: Context) -> Job:
    return Job(plan=plan, context=context, ranks=solo(), report=silent)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A context in whose store the teacher is trained."""
    context = tiny_context(tmp_path_factory.mktemp("meta"))
    run_plan(plan_of(EXPERT), context, ranks=solo(), report=silent)
    return context


def expert_of(context: Context) -> torch.nn.Module:
    artifact = context.store.find(plan_of(EXPERT).fingerprint)
    assert artifact is not None
    return load_classifier(artifact.folder, labels=LABELS)


def student_of(context: Context) -> torch.nn.Module:
    return select_layers(load_classifier(Path(context.models["base"]), labels=LABELS), CUT.layers)


# The gradient ---------------------------------------------------------------------------------------------------

RATE = 0.05


def taught_loss(student_PC: Tensor, teacher_PC: Tensor, batch: Batch) -> Tensor:
    return soft_label_loss(student_PC, teacher_PC, batch.labels_P, temperature=2.0, alpha=0.7, count=batch.count)


def quiz_loss_of_a_pilot(student: torch.nn.Module, told_PC: Tensor, batch: Batch, quiz: Batch) -> float:
    """What the teacher's gradient is the gradient of, with everything done to a copy of the student."""
    pilot = copy.deepcopy(student)
    taught_loss(_logits(pilot, batch), told_PC, batch).backward()
    with torch.no_grad():
        for parameter in pilot.parameters():
            parameter -= 0 if parameter.grad is None else RATE * parameter.grad
        return float(torch.nn.functional.cross_entropy(_logits(pilot, quiz), quiz.labels_P))


def _logits(model: torch.nn.Module, batch: Batch) -> Tensor:
    return model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL).logits


@pytest.mark.parametrize("kind", KINDS)
def test_the_teachers_gradient_is_that_of_the_pilots_quiz_by_finite_differences(kind: str, tmp_path: Path) -> None:
    context = tiny_context(tmp_path, kind=kind)
    student = load_classifier(Path(context.models["base"]), labels=LABELS).double()
    tokens = split_tokens(context, base="base", split="train")
    batch, quiz = (collate(tokens, rows, pad_id=pad_id(student)) for rows in ([1, 5, 9, 30], [2, 3, 40]))
    told_PC = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = copy.deepcopy(student.state_dict())
    turn = Turn(batch=batch, weight=1.0, step=0, rate_share=1.0)
    job = job_of(plan_of(learning()), context)
    found = meta_gradient(student, told_PC.clone(), turn, (quiz, 1.0), taught=taught_loss, rate=RATE, job=job)
    expected, step = torch.zeros_like(told_PC), 1e-4
    for place in np.ndindex(*told_PC.shape):
        for sign in (1, -1):
            moved = told_PC.clone()
            moved[place] += sign * step
            expected[place] += sign * quiz_loss_of_a_pilot(student, moved, batch, quiz) / (2 * step)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)
    assert float(expected.abs().max()) > 1e-6
    for name, weights in student.state_dict().items():
        assert torch.equal(weights, before[name])


def test_a_worker_without_rows_adds_nothing_to_the_gradient(taught: Context) -> None:
    student = student_of(taught)
    tokens = split_tokens(taught, base="base", split="train")
    batch, quiz = (collate(tokens, rows, pad_id=0) for rows in ([1, 5], [2, 3]))
    job = job_of(plan_of(CUT, learning()), taught)
    turn = Turn(batch=batch, weight=0.0, step=0, rate_share=1.0)
    found = meta_gradient(student, torch.randn(2, 3), turn, (quiz, 1.0), taught=taught_loss, rate=RATE, job=job)
    assert not found.any()


# The quiz -------------------------------------------------------------------------------------------------------


def test_the_quiz_is_a_seeded_share_of_the_training_rows() -> None:
    lessons, quiz = quiz_split(50, 0.1, seed=3)
    assert len(quiz) == 5 and sorted([*lessons, *quiz]) == list(range(50))
    assert quiz_split(50, 0.1, seed=3)[1].tolist() == quiz.tolist() != quiz_split(50, 0.1, seed=4)[1].tolist()
    with pytest.raises(TrainingError, match="1 training rows leave none beside a quiz of 1"):
        quiz_split(1, 0.1, seed=0)


def test_every_quiz_row_has_its_turn(taught: Context) -> None:
    tokens = split_tokens(taught, base="base", split="train")
    job = job_of(plan_of(CUT, learning()), taught)
    teacher = MetaTeacher(expert_of(taught), job, lessons=tokens, quiz=tokens.take(np.arange(20)))
    turns = [teacher._quiz(teacher.teacher, step)[0].rows.tolist() for step in range(6)]
    for first in (0, 3):
        assert sorted(np.concatenate(turns[first : first + 3])) == list(range(20))
    assert turns[:3] != turns[3:]


# The stage ------------------------------------------------------------------------------------------------------


def carried_out(stage: MetaDistill, context: Context) -> tuple[torch.nn.Module, MetaTeacher]:
    """Student and teacher after the stage, put together from its parts."""
    tokens = split_tokens(context, base="base", split="train")
    lessons, quiz = (tokens.take(rows) for rows in quiz_split(len(tokens), stage.quiz_share, seed=0))
    job = job_of(plan_of(CUT, stage), context)
    student, teacher = student_of(context), MetaTeacher(expert_of(context), job, lessons=lessons, quiz=quiz)
    fit(student, teacher.loss, job, tokens=lessons, companion=teacher)
    return student, teacher


def test_the_teacher_learns_and_its_student_with_it(taught: Context) -> None:
    fixed, moving = (carried_out(learning(rate), taught) for rate in (0.0, 1e-3))
    expert = dict(expert_of(taught).named_parameters())
    for name, parameter in fixed[1].parameters.items():
        assert torch.equal(parameter, expert[name])
    assert sum(not torch.equal(p, expert[name]) for name, p in moving[1].parameters.items()) > len(expert) / 2
    student, _ = meta_distill(student_of(taught), job_of(plan_of(CUT, learning(1e-3)), taught))
    for one, other in zip(student.parameters(), moving[0].parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(student.classifier.weight, fixed[0].classifier.weight)


def test_a_teacher_that_does_not_move_is_plain_distillation(taught: Context) -> None:
    stage = learning(0.0)
    student, _ = carried_out(stage, taught)
    tokens = split_tokens(taught, base="base", split="train")
    lessons = tokens.take(quiz_split(len(tokens), stage.quiz_share, seed=0)[0])
    expert, plain = expert_of(taught), student_of(taught)

    def online(outputs: object, batch: Batch, _share: float) -> Tensor:
        with torch.no_grad():
            told_PC = _logits(expert, batch)
        return taught_loss(outputs.logits, told_PC, batch)

    fit(plain, online, job_of(plan_of(CUT, stage), taught), tokens=lessons)
    for (name, one), other in zip(student.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_encoder_can_be_taught_so(kind: str, tmp_path: Path) -> None:
    context = tiny_context(tmp_path, kind=kind, rows=16)
    plan = plan_of(CUT, learning())
    told: list[Progress] = []
    artifact = run_plan(plan, context, ranks=solo(), report=told.append)
    assert [progress.kind for progress in told] == ["finetune"] * 3 + ["meta_distill"] * 2
    assert artifact.about["peak_memory_mb"] > 0 and artifact.about["seconds"] > 0
