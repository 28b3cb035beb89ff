"""Distillation: the teacher's outputs on disk, the moving weight, and what is reused between plans."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_task import LABELS, finetuning, fitting, plan_of, tiny_context
from transformers.modeling_outputs import SequenceClassifierOutput

from spaces.canonical import fingerprint
from spaces.methods.cut import SelectLayers
from spaces.methods.distill import Distill
from spaces.methods.distill_reverse_kl import DistillDivergence
from spaces.stages import Chain
from trainers.batches import collate
from trainers.context import Context
from trainers.distill import against, soft_loss
from trainers.distill_divergence import divergence_loss
from trainers.kinds import split_tokens
from trainers.losses import soft_label_loss
from trainers.models import ModelError, load_classifier
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.run_stage import missing_prefixes, plan_seconds, run_plan
from trainers.teacher import Full, Sampled, TopK, outputs_fingerprint, teacher_outputs

EXPERT = finetuning()
TEACHER = plan_of(EXPERT)
CUT = SelectLayers(layers=(0,))


def distilling(**settings: float) -> Distill:
    options = {"temperature": 2.0, "alpha": 0.5, "alpha_end": 0.5, **settings}
    return Distill(optimisation=fitting(epochs=1), teacher=Chain(base="base", stages=(EXPERT,)), **options)


def silent(_: Progress) -> None:
    pass


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A context in whose store the teacher is trained."""
    context = tiny_context(tmp_path_factory.mktemp("taught"))
    run_plan(TEACHER, context, ranks=solo(), report=silent)
    return context


def test_the_outputs_are_the_teachers_log_probabilities_row_by_row(taught: Context) -> None:
    found = teacher_outputs(TEACHER, taught)
    tokens = split_tokens(taught, base="base", split="train")
    trained = taught.store.find(TEACHER.fingerprint)
    assert trained is not None
    model = load_classifier(trained.folder, labels=LABELS)
    with torch.no_grad():
        rows = [model(torch.from_numpy(tokens.ids(row))[None]).logits.log_softmax(-1) for row in range(len(tokens))]
    assert found.log_probs.dtype == np.float32 and found.log_probs.shape == (len(tokens), len(LABELS))
    np.testing.assert_allclose(found.log_probs, torch.cat(rows).numpy(), atol=1e-5)
    assert not found.log_probs.flags.owndata  # mapped from the file, not read into memory


def test_the_outputs_are_computed_once(taught: Context) -> None:
    first = teacher_outputs(TEACHER, taught)
    artifact = taught.store.find(outputs_fingerprint(TEACHER, taught))
    assert artifact is not None
    written = (artifact.folder / "teacher.arrow").stat().st_mtime_ns
    assert teacher_outputs(TEACHER, taught).seconds == first.seconds
    assert (artifact.folder / "teacher.arrow").stat().st_mtime_ns == written


def test_other_rows_have_other_outputs(taught: Context) -> None:
    other = dataclasses.replace(taught, tokens={"base": {"train": taught.tokens["base"]["validation"]}})
    assert outputs_fingerprint(TEACHER, other) != outputs_fingerprint(TEACHER, taught)


def test_outputs_kept_in_full_have_the_name_they_always_had(taught: Context) -> None:
    tokens = taught.tokens["base"]["train"]
    identity = {"kind": "teacher_outputs", "teacher": TEACHER.fingerprint, "tokens": tokens, "version": 1}
    forms = (None, TopK(k=2), Sampled(num_draws=50), Sampled(num_draws=50, seed=1))
    names = [outputs_fingerprint(TEACHER, taught, form=form) for form in forms]
    assert names[0] == fingerprint(identity) == outputs_fingerprint(TEACHER, taught, form=Full())
    assert len(set(names)) == len(names)


def test_an_untrained_teacher_is_an_error(taught: Context) -> None:
    with pytest.raises(ModelError, match="train it first"):
        teacher_outputs(plan_of(EXPERT, seed=9), taught)


def test_the_weight_of_the_soft_loss_moves_linearly(taught: Context) -> None:
    outputs = teacher_outputs(TEACHER, taught)
    batch = collate(split_tokens(taught, base="base", split="train"), [3, 0, 7], pad_id=0)
    logits = torch.randn(3, len(LABELS), generator=torch.Generator().manual_seed(0))
    answer = SequenceClassifierOutput(logits=logits)
    loss = against(outputs.at, partial(soft_loss, distilling(alpha=0.9, alpha_end=0.1)))
    for share, alpha in ((0.0, 0.9), (0.5, 0.5), (1.0, 0.1)):
        teacher = torch.from_numpy(outputs.log_probs[[3, 0, 7]])
        expected = soft_label_loss(logits, teacher, batch.labels_P, temperature=2.0, alpha=alpha)
        torch.testing.assert_close(loss(answer, batch, share), expected)


def _divergence(**settings: Any) -> DistillDivergence:
    options = {"divergence": "jsd", "mix": 0.5, "temperature": 2.0, "alpha": 0.5, **settings}
    return DistillDivergence(optimisation=fitting(epochs=1), teacher=Chain(base="base", stages=(EXPERT,)), **options)


@pytest.mark.parametrize("divergence", ["jsd", "skewed_kl", "skewed_reverse_kl"])
def test_a_divergence_is_weighed_against_the_gold_labels(divergence: str, taught: Context) -> None:
    outputs = teacher_outputs(TEACHER, taught)
    batch = collate(split_tokens(taught, base="base", split="train"), [3, 0, 7], pad_id=0)
    logits = torch.randn(3, len(LABELS), generator=torch.Generator().manual_seed(0))
    p = torch.softmax(torch.from_numpy(outputs.log_probs[[3, 0, 7]]).double() / 2, dim=-1)
    q = torch.softmax(logits.double() / 2, dim=-1)

    def kl(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a * (a / b).log()).sum(-1).mean())

    mixed = 0.3 * p + 0.7 * q
    soft = {
        "jsd": 0.3 * kl(p, mixed) + 0.7 * kl(q, mixed),
        "skewed_kl": kl(p, mixed),
        "skewed_reverse_kl": kl(q, 0.7 * p + 0.3 * q),
    }[divergence]
    hard = float(torch.nn.functional.cross_entropy(logits, batch.labels_P))
    loss = against(outputs.at, partial(divergence_loss, _divergence(divergence=divergence, mix=0.3, alpha=0.8)))
    found = float(loss(SequenceClassifierOutput(logits=logits), batch, 0.0))
    assert found == pytest.approx(0.8 * 4 * soft + 0.2 * hard, rel=1e-5)


def test_a_student_is_trained_by_a_divergence_and_recorded(taught: Context) -> None:
    told: list[Progress] = []
    artifact = run_plan(plan_of(CUT, _divergence(mix=1.0)), taught, ranks=solo(), report=told.append)
    assert [p.kind for p in told] == ["distill_divergence"]
    assert plan_seconds(plan_of(CUT, _divergence(mix=1.0)), taught.store) > artifact.about["seconds"]


def test_one_teacher_serves_two_plans(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    plans = [plan_of(EXPERT, CUT, distilling()), plan_of(CUT, distilling(temperature=4.0))]
    told: list[Progress] = []
    artifacts = [run_plan(plan, context, ranks=solo(), report=told.append) for plan in plans]
    assert [p.kind for p in told] == ["finetune"] * 3 + ["distill"] * 2
    assert [p.final for p in told] == [False] * 3 + [True] * 2
    assert [(p.stage, p.num_stages) for p in told] == [(0, 2)] * 3 + [(1, 2), (0, 1)]
    # As if alone: both have to answer for the teacher, and for its outputs.
    teacher = plan_seconds(TEACHER, context.store)
    outputs = teacher_outputs(TEACHER, context).seconds
    for plan, artifact, own in zip(plans, artifacts, told[-2:], strict=True):
        assert plan_seconds(plan, context.store) == pytest.approx(teacher + artifact.about["seconds"])
        assert artifact.about["seconds"] == pytest.approx(own.seconds + outputs)


def test_a_student_cut_from_the_expert_inherits_its_head(taught: Context) -> None:
    told: list[Progress] = []
    stage = Distill(
        optimisation=fitting(epochs=1, learning_rate=1e-12),
        teacher=Chain(base="base", stages=(EXPERT,)),
        temperature=1.0,
        alpha=1.0,
        alpha_end=1.0,
    )
    student = run_plan(plan_of(EXPERT, CUT, stage), taught, ranks=solo(), report=told.append)
    expert = taught.store.find(TEACHER.fingerprint)
    assert expert is not None and len(told) == 1
    heads = [load_classifier(a.folder, labels=LABELS).classifier.weight for a in (student, expert)]
    torch.testing.assert_close(*heads, atol=1e-6, rtol=0)
    assert load_classifier(student.folder, labels=LABELS).config.num_hidden_layers == 1


def test_what_is_missing_shrinks_to_what_the_end_needs(taught: Context) -> None:
    plan = plan_of(CUT, distilling(), finetuning(epochs=1))
    assert [p.fingerprint for p in missing_prefixes(plan, taught.store)] == [
        plan.prefix(2).fingerprint,
        plan.fingerprint,
    ]
    other = plan_of(*plan.stages, seed=5)
    assert [p.stages[-1].kind for p in missing_prefixes(other, taught.store)] == ["finetune", "distill", "finetune"]
    assert missing_prefixes(TEACHER, taught.store) == []


def test_a_plan_must_end_in_training(taught: Context) -> None:
    with pytest.raises(ValueError, match="must end in a stage that trains"):
        run_plan(plan_of(CUT), taught, ranks=solo(), report=silent)
