"""The losses of today's stages against torch's, and at the ends of their range."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_tensors import random_logits, some_mask
from torch.nn import functional

from trainers.losses import IGNORED, cross_entropy, forward_kl, soft_label_loss

SHAPES = st.sampled_from([(1, 2), (5, 3), (2, 4, 7)])
TEMPERATURES = st.sampled_from([0.5, 1.0, 2.0, 8.0])
brief = settings(max_examples=40)


@brief
@given(SHAPES, TEMPERATURES, st.integers(0, 99))
def test_forward_kl_is_torchs(shape: tuple[int, ...], temperature: float, seed: int) -> None:
    student, teacher = random_logits(shape, seed=seed), random_logits(shape, seed=seed + 100)
    mask = some_mask(shape, seed=seed)
    expected = functional.kl_div(
        (student[mask] / temperature).log_softmax(-1), (teacher[mask] / temperature).softmax(-1), reduction="batchmean"
    )
    torch.testing.assert_close(forward_kl(student, teacher, mask, temperature=temperature), expected)


@brief
@given(SHAPES, TEMPERATURES, st.integers(0, 99))
def test_forward_kl_is_zero_at_the_teacher_and_never_negative(
    shape: tuple[int, ...], temperature: float, seed: int
) -> None:
    logits, mask = random_logits(shape, seed=seed), some_mask(shape, seed=seed)
    shifted = logits + 1e-4 * random_logits(shape, seed=seed + 1)
    assert forward_kl(logits, logits, mask, temperature=temperature) == 0
    assert forward_kl(shifted, logits, mask, temperature=temperature) >= 0


@brief
@given(st.integers(0, 99), TEMPERATURES)
def test_log_probabilities_teach_like_logits(seed: int, temperature: float) -> None:
    student, teacher = random_logits((4, 5), seed=seed), random_logits((4, 5), seed=seed + 1)
    by_logits = forward_kl(student, teacher, torch.ones(4), temperature=temperature)
    by_log_probs = forward_kl(student, teacher.log_softmax(-1), torch.ones(4), temperature=temperature)
    torch.testing.assert_close(by_log_probs, by_logits)


@brief
@given(st.integers(0, 99))
def test_cross_entropy_is_torchs(seed: int) -> None:
    logits, labels = random_logits((6, 4), seed=seed), torch.tensor([0, 1, 2, 3, IGNORED, 1])
    torch.testing.assert_close(cross_entropy(logits, labels), functional.cross_entropy(logits, labels))


@brief
@given(st.integers(0, 99), TEMPERATURES, st.floats(0, 1))
def test_the_soft_label_loss_is_hintons(seed: int, temperature: float, alpha: float) -> None:
    student, teacher = random_logits((4, 3), seed=seed), random_logits((4, 3), seed=seed + 1)
    labels = torch.tensor([0, 2, IGNORED, 1])
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    soft = (p * (p / q).log()).sum(-1)[labels != IGNORED].mean()
    expected = alpha * temperature**2 * soft + (1 - alpha) * functional.cross_entropy(student, labels)
    found = soft_label_loss(student, teacher, labels, temperature=temperature, alpha=alpha)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@brief
@given(st.integers(1, 6), st.integers(0, 99))
def test_parts_of_a_batch_add_up(cut: int, seed: int) -> None:
    student, teacher = random_logits((7, 3), seed=seed), random_logits((7, 3), seed=seed + 1)
    labels = torch.tensor([0, 1, 2, IGNORED, 0, 2, 1])
    options = {"temperature": 2.0, "alpha": 0.4}
    parts = (
        soft_label_loss(student[rows], teacher[rows], labels[rows], **options, count=6)
        for rows in (slice(cut), slice(cut, None))
    )
    torch.testing.assert_close(sum(parts), soft_label_loss(student, teacher, labels, **options))


def test_gradients_are_right() -> None:
    student = random_logits((4, 3), seed=0, dtype=torch.float64).requires_grad_()
    teacher = random_logits((4, 3), seed=1, dtype=torch.float64).requires_grad_()
    labels, mask = torch.tensor([0, 2, IGNORED, 1]), torch.tensor([1, 0, 1, 1])
    assert torch.autograd.gradcheck(lambda s, t: forward_kl(s, t, mask, temperature=2.0), (student, teacher))
    assert torch.autograd.gradcheck(lambda s: cross_entropy(s, labels), (student,))
    assert torch.autograd.gradcheck(
        lambda s, t: soft_label_loss(s, t, labels, temperature=3.0, alpha=0.3), (student, teacher)
    )


def test_nothing_valid_is_zero_and_has_a_gradient_of_zero() -> None:
    student = random_logits((3, 4), seed=0).requires_grad_()
    labels = torch.full((3,), IGNORED)
    loss = soft_label_loss(student, random_logits((3, 4), seed=1), labels, temperature=2.0, alpha=0.5)
    loss.backward()
    assert loss == 0
    assert student.grad is not None and not student.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_huge_logits_stay_finite(dtype: torch.dtype) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, -1e4]], dtype=dtype)
    loss = soft_label_loss(student, teacher, torch.tensor([1, 0]), temperature=0.5, alpha=0.5)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert student.grad is not None and student.grad.isfinite().all()


@brief
@given(TEMPERATURES)
def test_a_class_that_the_teacher_excludes_counts_for_nothing(temperature: float) -> None:
    student = random_logits((2, 3), seed=0).requires_grad_()
    teacher = torch.tensor([[0.0, 1.0, -math.inf], [2.0, -math.inf, 0.0]])
    loss = forward_kl(student, teacher, torch.ones(2), temperature=temperature)
    loss.backward()
    assert 0 < loss < 100
    assert student.grad is not None and student.grad.isfinite().all()
