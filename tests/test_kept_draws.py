"""Students of which the teacher's answers are kept as draws."""

import dataclasses
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from generation_task import generation_context
from torch import Tensor
from training_task import finetuning, fitting, plan_of

from spaces.methods.cut import SelectLayers
from spaces.methods.distill import Distill
from spaces.plan import Plan
from spaces.stages import Chain
from trainers.batches import collate
from trainers.causal_models import inspect_causal, load_causal
from trainers.context import Context
from trainers.distill import against, kept_form, soft_loss
from trainers.kinds import named_kind, split_tokens
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.run_stage import run_plan
from trainers.teacher import Form, Full, Sampled, outputs_fingerprint, teacher_outputs

EXPERT = finetuning(epochs=2)
TEACHER = plan_of(EXPERT)


def silent(_: Progress) -> None:
    pass


def student(*, num_draws: int | None, temperature: float = 2.0, seed: int = 0) -> Plan:
    stage = Distill(
        optimisation=fitting(epochs=2),
        teacher=Chain(base="base", stages=(EXPERT,)),
        temperature=temperature,
        alpha=0.5,
        alpha_end=0.5,
        num_draws=num_draws,
    )
    return plan_of(SelectLayers(layers=(0,)), stage, seed=seed)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Context:
    context = generation_context(tmp_path_factory.mktemp("taught"), rows=40)
    run_plan(TEACHER, context, ranks=solo(), report=silent)
    return context


def gradient(form: Form, context: Context) -> Tensor:
    """By the base's head, of the soft loss on a batch whose rows are not in order."""
    taught = teacher_outputs(TEACHER, context, form=form)
    batch = collate(split_tokens(context, base="base", split="train"), [31, 2, 17, 5], pad_id=0)
    model = load_causal(Path(context.models["base"]))
    stage = student(num_draws=None).stages[-1].model_copy(update={"alpha": 1.0, "alpha_end": 1.0})
    outputs = model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL)
    against(taught.at, partial(soft_loss, stage))(outputs, batch, 0.0).backward()
    head: Tensor = model.get_output_embeddings().weight.grad
    return head


def test_many_draws_teach_what_the_whole_does(taught: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several blocks, of rows in the order of their lengths.
    monkeypatch.setattr("trainers.compute._ASKED_ROWS", 7)
    whole, drawn = (gradient(form, taught) for form in (Full(), Sampled(num_draws=60_000, temperature=2.0)))
    few = gradient(Sampled(num_draws=5, temperature=2.0), taught)
    assert (drawn - whole).norm() < 0.02 * whole.norm() < 0.1 * (few - whole).norm()


def test_a_student_is_trained_on_draws_that_the_next_one_finds_again(taught: Context) -> None:
    plan, other = student(num_draws=50), student(num_draws=50, temperature=4.0)
    run_plan(plan, taught, ranks=solo(), report=silent)
    form = kept_form(plan.stages[-1], plan)
    assert form == Sampled(num_draws=50, temperature=2.0, seed=0)
    artifact = taught.store.find(outputs_fingerprint(TEACHER, taught, form=form))
    assert artifact is not None
    num_positions = split_tokens(taught, base="base", split="train").num_positions()
    assert teacher_outputs(TEACHER, taught, form=form).kept.num_positions == num_positions
    names = {outputs_fingerprint(TEACHER, taught, form=kept_form(p.stages[-1], p)) for p in (plan, other)}
    assert len(names) == 2
    assert kept_form(student(num_draws=None).stages[-1], plan) == Full()


def test_draws_of_another_temperature_are_refused(taught: Context) -> None:
    outputs = teacher_outputs(TEACHER, taught, form=Sampled(num_draws=50, temperature=2.0))
    batch = collate(split_tokens(taught, base="base", split="train"), [3], pad_id=0)
    stage = student(num_draws=50, temperature=4.0).stages[-1]
    logits = torch.zeros(*batch.input_ids_BL.shape, 151)
    with pytest.raises(ValueError, match=r"kept at temperature 2 and cannot teach at 4; distil at 2, or keep"):
        against(outputs.at, partial(soft_loss, stage))(SimpleNamespace(logits=logits), batch, 0.0)


def test_draws_need_no_room_for_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = generation_context(tmp_path, rows=12)
    run_plan(TEACHER, context, ranks=solo(), report=silent)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    run_plan(student(num_draws=50), context, ranks=solo(), report=silent)


@pytest.mark.parametrize(("vocab_size", "num_draws"), [(512, None), (513, 50), (32_000, 50)])
def test_large_vocabularies_are_kept_as_draws(vocab_size: int, num_draws: int | None, taught: Context) -> None:
    base = dataclasses.replace(inspect_causal(taught.models["base"]), vocab_size=vocab_size)
    assert named_kind("generation").num_draws(base) == num_draws
    assert named_kind("classification").num_draws(base) is None
