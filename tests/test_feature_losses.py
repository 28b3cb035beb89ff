"""Losses between hidden states, attention and relations, against numpy in float64."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from random_tensors import random_logits
from torch import Tensor

from trainers.losses import attention_mse, hidden_mse, relation_kl

LENGTHS = (5, 2, 4)
MASK = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
HEADS = 4


def states(*, seed: int, width: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    return random_logits((3, 5, width), seed=seed, dtype=dtype)


def attention(*, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return random_logits((3, 2, 5, 5), seed=seed, dtype=dtype)


def relations(student: Tensor, teacher: Tensor, mask: Tensor, *, count: float | None = None) -> Tensor:
    return relation_kl(student, teacher, mask, num_relation_heads=HEADS, count=count)


# The references go row by row, token by token, over what is valid alone.
def hidden_reference(student: np.ndarray, teacher: np.ndarray) -> float:
    tokens = [(b, i) for b, length in enumerate(LENGTHS) for i in range(length)]
    return float(np.mean([((student[b, i] - teacher[b, i]) ** 2).mean() for b, i in tokens]))


def attention_reference(student: np.ndarray, teacher: np.ndarray) -> float:
    squares = [(student[b, :, i, :n] - teacher[b, :, i, :n]) ** 2 for b, n in enumerate(LENGTHS) for i in range(n)]
    return float(np.mean([square.mean() for square in squares]))


def related(row: np.ndarray, head: int) -> np.ndarray:
    width = row.shape[1] // HEADS
    part = row[:, head * width : (head + 1) * width]
    share = np.exp(part @ part.T / math.sqrt(width))
    return share / share.sum(-1, keepdims=True)


def relation_reference(student: np.ndarray, teacher: np.ndarray) -> float:
    found = []
    for b, length in enumerate(LENGTHS):
        for head in range(HEADS):
            p, q = related(teacher[b, :length], head), related(student[b, :length], head)
            found += list((p * np.log(p / q)).sum(-1))
    return float(np.mean(found))


LOSSES = {
    "hidden": (hidden_mse, states, hidden_reference),
    "attention": (attention_mse, attention, attention_reference),
    "relation": (relations, states, relation_reference),
}
each = pytest.mark.parametrize(("loss", "made", "reference"), LOSSES.values(), ids=LOSSES)
Loss = Callable[..., Tensor]
Made = Callable[..., Tensor]
Reference = Callable[[np.ndarray, np.ndarray], float]


@each
@pytest.mark.parametrize("seed", range(5))
def test_it_is_what_is_defined(loss: Loss, made: Made, reference: Reference, seed: int) -> None:
    student, teacher = made(seed=seed) / 2, made(seed=seed + 100) / 2
    expected = reference(student.double().numpy(), teacher.double().numpy())
    assert float(loss(student, teacher, MASK)) == pytest.approx(expected, rel=1e-4)


@each
def test_padding_changes_neither_value_nor_gradient(loss: Loss, made: Made, reference: Reference) -> None:
    del reference
    student, teacher = made(seed=0), made(seed=1)
    other = student.clone()
    if made is attention:
        other[1, :, 2:, :], other[1, :, :, 2:] = 7.0, 7.0
    else:
        other[1, 2:] = 7.0
    gradients = []
    for leaf in (student.requires_grad_(), other.requires_grad_()):
        gradients += torch.autograd.grad(loss(leaf, teacher, MASK), leaf)
    assert loss(student, teacher, MASK) == loss(other, teacher, MASK)
    torch.testing.assert_close(gradients[0], gradients[1])


@each
def test_it_is_zero_at_the_teacher_and_positive_elsewhere(loss: Loss, made: Made, reference: Reference) -> None:
    del reference
    teacher = made(seed=0)
    assert loss(teacher, teacher, MASK) == 0
    assert loss(teacher + 0.1 * made(seed=1), teacher, MASK) > 0


@each
def test_its_gradient_is_right(loss: Loss, made: Made, reference: Reference) -> None:
    del reference
    student, teacher = (made(seed=seed, dtype=torch.float64) / 3 for seed in (0, 1))
    mask = MASK & torch.tensor([[1], [1], [0]])  # and a row without any token
    both = (student.requires_grad_(), teacher.requires_grad_())
    assert torch.autograd.gradcheck(lambda s, t: loss(s, t, mask), both)


@each
@pytest.mark.parametrize("cut", [1, 2])
def test_parts_of_a_batch_add_up(loss: Loss, made: Made, reference: Reference, cut: int) -> None:
    del reference
    student, teacher = made(seed=0), made(seed=1)
    parts = (
        loss(student[rows], teacher[rows], MASK[rows], count=sum(LENGTHS)) for rows in (slice(cut), slice(cut, None))
    )
    torch.testing.assert_close(sum(parts), loss(student, teacher, MASK))


@each
def test_nothing_valid_is_zero_and_has_a_gradient_of_zero(loss: Loss, made: Made, reference: Reference) -> None:
    del reference
    student = made(seed=0).requires_grad_()
    found = loss(student, made(seed=1), torch.zeros_like(MASK))
    found.backward()
    assert found == 0
    assert student.grad is not None and not student.grad.any()


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_huge_values_stay_finite(loss: Loss, made: Made, reference: Reference, dtype: torch.dtype) -> None:
    del reference
    student, teacher = (1e4 * made(seed=seed).sign().to(dtype) for seed in (0, 1))
    found = loss(student.requires_grad_(), teacher, MASK)
    found.backward()
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.isfinite() and found > 0
    assert student.grad is not None and student.grad.isfinite().all()


@each
def test_without_a_mask_every_token_counts(loss: Loss, made: Made, reference: Reference) -> None:
    del reference
    student, teacher = made(seed=0), made(seed=1)
    assert loss(student, teacher, None) == loss(student, teacher, torch.ones_like(MASK))


def test_hidden_mse_is_torchs() -> None:
    student, teacher = states(seed=0), states(seed=1)
    torch.testing.assert_close(hidden_mse(student, teacher), torch.nn.functional.mse_loss(student, teacher))


def test_scores_of_a_causal_model_may_be_minus_infinity_where_nothing_is_seen() -> None:
    earlier = torch.ones(5, 5, dtype=torch.bool).tril()
    seen = earlier & MASK[:, :, None] & MASK[:, None, :]
    student, teacher = (attention(seed=seed).masked_fill(~earlier, -math.inf) for seed in (0, 1))
    found = attention_mse(student.requires_grad_(), teacher, seen)
    found.backward()
    tokens = [(b, i) for b, length in enumerate(LENGTHS) for i in range(length)]
    kept = [(student[b, :, i, : i + 1] - teacher[b, :, i, : i + 1]).square().mean() for b, i in tokens]
    torch.testing.assert_close(found, torch.stack(kept).mean())
    assert student.grad is not None and student.grad.isfinite().all()


def test_relations_of_other_widths_and_heads_are_compared() -> None:
    student, teacher = states(seed=0, width=8), states(seed=1, width=24)
    found = relations(student, teacher, MASK)
    assert float(found) == pytest.approx(
        relation_reference(student.double().numpy(), teacher.double().numpy()), rel=1e-4
    )
    # A rotation within every head leaves all relations as they are.
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    turned = (teacher.double().unflatten(-1, (HEADS, 6)) @ turn).flatten(-2)
    assert float(relations(turned, teacher.double(), MASK)) == pytest.approx(0, abs=1e-12)


def test_relations_are_float32_under_autocast() -> None:
    student, teacher = states(seed=0).bfloat16(), states(seed=1).bfloat16()
    expected = relations(student.float(), teacher.float(), MASK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relations(student, teacher, MASK) == expected


def test_shapes_that_cannot_be_compared_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(3, 5, 8\).*\(3, 5, 16\); project"):
        hidden_mse(states(seed=0), states(seed=1, width=16))
    with pytest.raises(ValueError, match=r"\(3, 2, 5, 5\).*\(3, 4, 5, 5\).*relation_kl"):
        attention_mse(attention(seed=0), torch.zeros(3, 4, 5, 5))
    with pytest.raises(ValueError, match="width 8 must be a multiple of num_relation_heads, but got 3"):
        relation_kl(states(seed=0), states(seed=1), num_relation_heads=3)
