"""One contract for every divergence, each against numpy in float64."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_tensors import random_logits, some_mask
from torch import Tensor
from torch.nn import functional

from trainers.losses import (
    SampledTargets,
    TopKTargets,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    sampled_forward_kl,
    skewed_kl,
    top_k_forward_kl,
)

SHAPES = st.sampled_from([(1, 4), (5, 6), (2, 4, 7)])
TEMPERATURES = st.sampled_from([0.5, 1.0, 2.0, 8.0])
brief = settings(max_examples=15)

K, DRAWS = 3, 40


def top_k(logits: Tensor, *, temperature: float) -> TopKTargets:
    log_probs = (logits.double() / temperature).log_softmax(-1)
    order = log_probs.argsort(dim=-1, descending=True)
    sorted_probs = log_probs.gather(-1, order)
    kept, tail = sorted_probs[..., :K], sorted_probs[..., K:].logsumexp(-1)
    return TopKTargets(order[..., :K], kept.to(logits.dtype), tail.to(logits.dtype), temperature)


def draw(p: np.ndarray) -> np.ndarray:
    """How often each class was drawn. Every position has the same luck, so that a part of them has it too."""
    luck = np.random.default_rng(0).random(DRAWS)
    below = (luck[:, None] < p.cumsum(-1)[..., None, :]).sum(-2)
    return np.diff(below, prepend=0, axis=-1)


def drawn(logits: Tensor, *, temperature: float) -> SampledTargets:
    """Counts of every class: filled up with those that were never drawn."""
    counts = torch.from_numpy(draw((logits.double() / temperature).softmax(-1).numpy()))
    return SampledTargets(torch.arange(logits.shape[-1]).expand(counts.shape), counts, temperature)


def by_top_k(student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float = 1.0, **options: Any) -> Tensor:
    return top_k_forward_kl(student, top_k(teacher, temperature=temperature), mask, **options)


def by_draws(student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float = 1.0, **options: Any) -> Tensor:
    return sampled_forward_kl(student, drawn(teacher, temperature=temperature), mask, **options)


def fixed(loss: Callable[..., Tensor], **fix: Any) -> Callable[..., Tensor]:
    return lambda student, teacher, mask, **options: loss(student, teacher, mask, **fix, **options)


# The references: float64, by probabilities, as the papers print them.
def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * np.log(a / b)).sum(-1)


def jsd(p: np.ndarray, q: np.ndarray, beta: float) -> np.ndarray:
    """As in TRL's ``GKDTrainer.generalized_jsd_loss``, whose KL divergences have the mixture as their target."""
    log_mixture = np.logaddexp(np.log(q) + np.log1p(-beta), np.log(p) + np.log(beta))
    to_p, to_q = (np.exp(np.log(x)) * (np.log(x) - log_mixture) for x in (p, q))
    return (beta * to_p + (1 - beta) * to_q).sum(-1)


def coarse_kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    order = np.argsort(-p, axis=-1)
    p, q = np.take_along_axis(p, order, -1), np.take_along_axis(q, order, -1)
    tails = [x[..., K:].sum(-1, keepdims=True) for x in (p, q)]
    return kl(np.concatenate([p[..., :K], tails[0]], -1), np.concatenate([q[..., :K], tails[1]], -1))


def kl_to_draws(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    share = draw(p) / DRAWS
    return np.where(share > 0, share * np.log(np.where(share > 0, share, 1) / q), 0).sum(-1)


PLAIN = {
    "forward": (forward_kl, kl),
    "reverse": (reverse_kl, lambda p, q: kl(q, p)),
    "jsd 0": (fixed(generalized_jsd, beta=0.0), kl),
    "jsd 0.1": (fixed(generalized_jsd, beta=0.1), lambda p, q: jsd(p, q, 0.1)),
    "jsd 0.5": (fixed(generalized_jsd, beta=0.5), lambda p, q: jsd(p, q, 0.5)),
    "jsd 0.9": (fixed(generalized_jsd, beta=0.9), lambda p, q: jsd(p, q, 0.9)),
    "jsd 1": (fixed(generalized_jsd, beta=1.0), lambda p, q: kl(q, p)),
    "skewed 0": (fixed(skewed_kl, alpha=0.0), kl),
    "skewed 0.1": (fixed(skewed_kl, alpha=0.1), lambda p, q: kl(p, 0.1 * p + 0.9 * q)),
    "reverse skewed 0": (fixed(skewed_kl, alpha=0.0, reverse=True), lambda p, q: kl(q, p)),
    "reverse skewed 0.1": (fixed(skewed_kl, alpha=0.1, reverse=True), lambda p, q: kl(q, 0.9 * p + 0.1 * q)),
}
ALL = {**PLAIN, "top k": (by_top_k, coarse_kl), "drawn": (by_draws, kl_to_draws)}
each = pytest.mark.parametrize(("loss", "reference"), ALL.values(), ids=ALL)
each_exact = pytest.mark.parametrize(
    "loss", [loss for name, (loss, _) in ALL.items() if name != "drawn"], ids=[name for name in ALL if name != "drawn"]
)


@each
@brief
@given(SHAPES, TEMPERATURES, st.integers(0, 99))
def test_it_is_what_is_defined(loss, reference, shape, temperature, seed) -> None:
    student, teacher = random_logits(shape, seed=seed), random_logits(shape, seed=seed + 100)
    mask = some_mask(shape, seed=seed)
    p, q = ((logits.double() / temperature).softmax(-1).numpy() for logits in (teacher, student))
    expected = reference(p, q)[mask.numpy()].mean()
    assert float(loss(student, teacher, mask, temperature=temperature)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@each_exact
@brief
@given(SHAPES, TEMPERATURES, st.integers(0, 99))
def test_it_is_zero_at_the_teacher_and_never_negative(loss, shape, temperature, seed) -> None:
    logits, mask = random_logits(shape, seed=seed), some_mask(shape, seed=seed)
    assert 0 <= float(loss(logits, logits, mask, temperature=temperature)) < 1e-6
    shifted = logits + 1e-4 * random_logits(shape, seed=seed + 1)
    assert float(loss(shifted, logits, mask, temperature=temperature)) >= 0


@each
def test_its_gradient_is_right(loss, reference) -> None:
    del reference
    student = random_logits((4, 6), seed=0, dtype=torch.float64).requires_grad_()
    teacher, mask = random_logits((4, 6), seed=1, dtype=torch.float64), torch.tensor([1, 0, 1, 1])
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, mask, temperature=2.0), (student,))


@pytest.mark.parametrize("loss", [loss for loss, _ in PLAIN.values()], ids=PLAIN)
def test_a_teacher_can_learn_too(loss) -> None:
    student = random_logits((4, 6), seed=0, dtype=torch.float64)
    teacher = random_logits((4, 6), seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: loss(student, t, torch.tensor([1, 0, 1, 1])), (teacher,))


@each
@brief
@given(st.integers(1, 6), st.integers(0, 99))
def test_parts_of_a_batch_add_up(loss, reference, cut, seed) -> None:
    del reference
    student, teacher = random_logits((7, 5), seed=seed), random_logits((7, 5), seed=seed + 1)
    mask = torch.tensor([1, 1, 0, 1, 1, 0, 1])
    parts = (
        loss(student[rows], teacher[rows], mask[rows], temperature=2.0, count=5)
        for rows in (slice(cut), slice(cut, None))
    )
    torch.testing.assert_close(sum(parts), loss(student, teacher, mask, temperature=2.0))


@each
def test_nothing_valid_is_zero_and_has_a_gradient_of_zero(loss, reference) -> None:
    del reference
    student = random_logits((3, 4), seed=0).requires_grad_()
    found = loss(student, random_logits((3, 4), seed=1), torch.zeros(3))
    found.backward()
    assert found == 0
    assert student.grad is not None and not student.grad.any()


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_huge_logits_stay_finite(loss, reference, dtype) -> None:
    del reference
    student = torch.tensor([[1e4, -1e4, 0.0, 3.0], [-1e4, 1e4, 1e4, -1e4]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0, 2.0], [1e4, -1e4, -1e4, 1e4]], dtype=dtype)
    found = loss(student, teacher, torch.ones(2), temperature=0.5)
    found.backward()
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.isfinite() and found > 0
    assert student.grad is not None and student.grad.isfinite().all()


@each
@brief
@given(TEMPERATURES)
def test_a_class_that_the_teacher_excludes_leaves_it_finite(loss, reference, temperature) -> None:
    del reference
    student = random_logits((3, 4), seed=0)
    student[2, 3] = -math.inf  # excluded by both
    student.requires_grad_()
    teacher = torch.tensor([[0.0, 1.0, -math.inf, 0.5], [2.0, -math.inf, 0.0, -math.inf], [1.0, 3.0, 2.0, -math.inf]])
    found = loss(student, teacher, torch.ones(3), temperature=temperature)
    found.backward()
    assert 0 < found <= 1e5
    assert student.grad is not None and student.grad.isfinite().all()


def test_reverse_kl_is_torchs_with_the_two_exchanged() -> None:
    student, teacher = random_logits((5, 6), seed=0), random_logits((5, 6), seed=1)
    expected = functional.kl_div(teacher.log_softmax(-1), student.log_softmax(-1), log_target=True, reduction="sum") / 5
    torch.testing.assert_close(reverse_kl(student, teacher, torch.ones(5)), expected)


def test_the_ends_of_jsd_and_of_skewed_kl_are_the_two_kls_to_the_last_bit() -> None:
    arguments = random_logits((5, 6), seed=0), random_logits((5, 6), seed=1), some_mask((5, 6), seed=2)
    forward, reverse = forward_kl(*arguments, temperature=2.0), reverse_kl(*arguments, temperature=2.0)
    assert generalized_jsd(*arguments, beta=0.0, temperature=2.0) == forward
    assert generalized_jsd(*arguments, beta=1.0, temperature=2.0) == reverse
    assert skewed_kl(*arguments, alpha=0.0, temperature=2.0) == forward
    assert skewed_kl(*arguments, alpha=0.0, reverse=True, temperature=2.0) == reverse


def test_near_its_ends_jsd_is_the_two_kls_in_small() -> None:
    student, teacher = (random_logits((5, 6), seed=seed, dtype=torch.float64) for seed in (0, 1))
    arguments = student, teacher, torch.ones(5)
    near = generalized_jsd(*arguments, beta=1e-5), generalized_jsd(*arguments, beta=1 - 1e-5)
    torch.testing.assert_close(near[0] / 1e-5, forward_kl(*arguments), rtol=1e-2, atol=0)
    torch.testing.assert_close(near[1] / 1e-5, reverse_kl(*arguments), rtol=1e-2, atol=0)


@pytest.mark.parametrize("reverse", [False, True])
def test_skewed_kl_is_bounded_where_the_plain_one_is_not(reverse: bool) -> None:
    student, teacher = torch.tensor([[500.0, -500.0]]), torch.tensor([[-500.0, 500.0]])
    found = skewed_kl(student, teacher, torch.ones(1), alpha=0.1, reverse=reverse)
    assert float(found) == pytest.approx(-math.log(0.1))


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_beta_has_its_range(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must be 0"):
        generalized_jsd(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), beta=beta)


@pytest.mark.parametrize("alpha", [-0.1, 1.0, math.nan])
def test_alpha_has_its_range(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be 0"):
        skewed_kl(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), alpha=alpha)


def test_draws_are_matched_by_a_student_that_answers_as_they_fell() -> None:
    counts = torch.tensor([[3, 1, 6, 0], [5, 5, 0, 0]])
    targets = SampledTargets(torch.tensor([[0, 2, 3, 0], [1, 4, 0, 0]]), counts, 1.0)
    dense = torch.zeros(2, 5).scatter_add(-1, targets.ids_PN, counts.float())
    assert 0 <= float(sampled_forward_kl(dense.log(), targets, torch.ones(2))) < 1e-6


def test_top_k_of_all_classes_is_the_forward_kl() -> None:
    student, teacher = random_logits((5, K), seed=0).requires_grad_(), random_logits((5, K), seed=1)
    found = by_top_k(student, teacher, torch.ones(5))
    torch.testing.assert_close(found, forward_kl(student, teacher, torch.ones(5)))
    found.backward()
    assert student.grad is not None and student.grad.isfinite().all()
