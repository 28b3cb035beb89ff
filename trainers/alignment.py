"""Losses between what a student and its teacher compute inside. The teacher runs beside the student, batch by batch:
features of a data set are never kept, those of a batch only until its loss is known.

Shapes: B = batch, L = tokens, H = width, A = heads.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spaces.methods.features import Feature, FeatureKind
from spaces.plan import Plan
from trainers.batches import Batch
from trainers.compute import autocast, fast_attention, plain_attention
from trainers.context import Context
from trainers.kinds import split_tokens
from trainers.loop import Job
from trainers.losses import attention_mse, hidden_mse, relation_kl
from trainers.model_files import ModelError
from trainers.taps import last_layer_tap
from trainers.tokens import first_difference
from trainers.trained import trained_teacher
from trainers.vocabulary import kept_of

Shown = tuple[Tensor, ...]
"""What a model shows of one feature: hidden states or attention layer by layer, or queries, keys and values."""
View = Callable[[Any], Shown]
"""From a model's outputs, what it shows."""
Compare = Callable[[Shown, Shown, Batch], Tensor]
_OUTPUTS: dict[FeatureKind, tuple[str, ...]] = {
    "hidden": ("hidden_states",),
    "attention": ("attentions",),
    "relation": (),
}


class Alignment(nn.Module):
    """The loss of one feature: the student's, as ``view`` finds it in its outputs, against the teacher's.

    What ``compare`` has of parameters is trained beside the student.
    """

    def __init__(self, compare: Compare, *, view: View, teacher: Callable[[Batch], Shown], kind: FeatureKind) -> None:
        super().__init__()
        self._compare, self._view, self._teacher = compare, view, teacher
        self.outputs = _OUTPUTS[kind]
        """What a student has to return beside logits."""

    def forward(self, outputs: Any, batch: Batch, _share: float) -> Tensor:
        """Summed over the tokens at hand, divided by ``batch.num_tokens``."""
        return self._compare(self._view(outputs), self._teacher(batch), batch)


@contextlib.contextmanager
def alignment(student: Any, feature: Feature, teacher: Plan, job: Job) -> Iterator[Alignment]:
    """The loss between ``student`` and the trained plan ``teacher``; both show the feature inside the block alone.

    Raises:
        ModelError: the teacher is not trained, or reads other tokens than the student.
    """
    context = job.context
    if reason := unlike_tokens(context, base=job.plan.start, teacher=teacher.base):
        raise ModelError(f"teacher {teacher.fingerprint[:12]}… cannot be aligned with token by token: {reason}")
    expert = trained_teacher(teacher, context).requires_grad_(False)
    longest = int(split_tokens(context, base=job.plan.reader, split="train").lengths.max())
    with (
        fast_attention(expert, longest=longest, context=context),
        _showing(expert, feature.kind) as shown_by_teacher,
        _showing(student, feature.kind) as view,
    ):
        compare = _comparison(feature, student, expert, job)
        ask = _Teacher(expert, shown_by_teacher, feature.kind, job)
        yield Alignment(compare, view=view, teacher=ask, kind=feature.kind)


def unlike_tokens(context: Context, *, base: str, teacher: str) -> str | None:
    """Where the training rows are not the same tokens for a student of ``base`` and for ``teacher``; None: they are."""
    if context.tokens[base]["train"] == context.tokens[teacher]["train"]:
        return None
    mine, its = (split_tokens(context, base=name, split="train") for name in (base, teacher))
    if (row := first_difference(mine, its)) is None:
        return None
    one, other = (tokens.ids(row).tolist() for tokens in (mine, its))
    return f"training row {row} is {_say_ids(one)} for the student, {_say_ids(other)} for the teacher"


def _base_ids(student: Plan, context: Context) -> Tensor | None:
    """The id that each token of ``student`` has in the model it began at, and so the teacher's; None where it has kept
    them.
    """
    return None if student.reader == student.start else torch.from_numpy(kept_of(student.reader, context))


def _say_ids(ids: list[int]) -> str:
    return f"{len(ids)} tokens ({' '.join(map(str, ids[:8]))}{' …' if len(ids) > 8 else ''})"


class _Teacher:
    """A trained model that shows a feature of a batch, in the arithmetic of training."""

    def __init__(self, model: Any, view: View, kind: FeatureKind, job: Job) -> None:
        self._model, self._view, self._context = model, view, job.context
        self._asked = {f"output_{name}": True for name in _OUTPUTS[kind]}
        self._ids = _base_ids(job.plan, job.context)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Shown:
        ids_BL, mask_BL = batch.input_ids_BL, batch.attention_mask_BL
        if self._ids is not None:
            ids_BL = self._ids.to(ids_BL.device)[ids_BL]
        with autocast(self._context, ids_BL.device):
            # Without its head: a language model's would cost more than the rest.
            return self._view(self._model.base_model(input_ids=ids_BL, attention_mask=mask_BL, **self._asked))


@contextlib.contextmanager
def _showing(model: Any, kind: FeatureKind) -> Iterator[View]:
    if kind == "relation":
        with last_layer_tap(model) as tap:
            yield lambda _: tap.take()
    elif kind == "attention":
        with plain_attention(model):
            yield lambda outputs: outputs.attentions
    else:
        yield lambda outputs: outputs.hidden_states


def _comparison(feature: Feature, student: Any, teacher: Any, job: Job) -> Compare:
    causal = is_causal(student)
    if feature.num_relation_heads is not None:
        return partial(compare_relations, num_relation_heads=feature.num_relation_heads, causal=causal)
    if feature.kind == "attention":
        return partial(compare_attention, causal=causal)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed("projection"))
        return HiddenComparison(student.config.hidden_size, teacher.config.hidden_size)


class HiddenComparison(nn.Module):
    """Mean squared difference of hidden states, embeddings and layers, summed over the student's. [Jiao2020] Eqs. 8, 9.

    The student's are projected: embeddings by one matrix, all layers by another. Differs from the paper: the matrices
    start as the identity where the widths are the same.
    """

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.embeddings, self.layers = (nn.Linear(student_width, teacher_width, bias=False) for _ in range(2))
        if student_width == teacher_width:
            nn.init.eye_(self.embeddings.weight)
            nn.init.eye_(self.layers.weight)

    def forward(self, student: Shown, teacher: Shown, batch: Batch) -> Tensor:
        """``student`` and ``teacher``: states B × L × H of the embeddings, then of every layer."""
        places = uniform_map(len(student) - 1, len(teacher) - 1)
        projected = [self.embeddings(student[0].float()), *(self.layers(states.float()) for states in student[1:])]
        return _sum(
            hidden_mse(states_BLH, teacher[place], batch.attention_mask_BL, count=batch.num_tokens)
            for states_BLH, place in zip(projected, (0, *places), strict=True)
        )


def compare_attention(student: Shown, teacher: Shown, batch: Batch, *, causal: bool = False) -> Tensor:
    """Mean squared difference of attention, B × A × L × L for each layer, summed over the student's layers.

    Differs from [Jiao2020] Eq. 7: probabilities, not scores before the softmax, which transformers does not return;
    where the numbers of heads differ, their means over heads are compared.
    """
    places, seen = uniform_map(len(student), len(teacher)), _seen(batch, causal)
    return _sum(
        attention_mse(*_same_heads(own, teacher[place - 1]), seen, count=batch.num_tokens)
        for own, place in zip(student, places, strict=True)
    )


def compare_relations(
    student: Shown, teacher: Shown, batch: Batch, *, num_relation_heads: int, causal: bool = False
) -> Tensor:
    """Divergence of how queries, keys and values, B × L × H each, relate, summed over the three. [Wang2021] Eq. 5.

    ``causal``: a token relates to itself and those before it.
    """
    seen = _seen(batch, causal)
    return _sum(
        relation_kl(
            own,
            its,
            seen,
            num_relation_heads=common_heads(num_relation_heads, own.shape[-1], its.shape[-1]),
            count=batch.num_tokens,
        )
        for own, its in zip(student, teacher, strict=True)
    )


def uniform_map(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """The teacher's layer for each of the student's, counted from 1; of 12 for 4: 3 6 9 12. [Jiao2020]"""
    layers = range(1, student_layers + 1)
    # Halves go up; of a teacher with fewer layers one serves several.
    return tuple(max(1, (2 * layer * teacher_layers + student_layers) // (2 * student_layers)) for layer in layers)


def common_heads(wanted: int, *widths: int) -> int:
    """The largest number of heads, at most ``wanted``, that divides all ``widths``."""
    return next(heads for heads in range(wanted, 0, -1) if not any(width % heads for width in widths))


def is_causal(model: Any) -> bool:
    """Whether its tokens see only those before them: a language model's, which has an output embedding."""
    return model.get_output_embeddings() is not None


def _seen(batch: Batch, causal: bool) -> Tensor:
    """Which tokens see which, B × L × L, query before key; B × L where all see all."""
    mask_BL = batch.attention_mask_BL.bool()
    if not causal:
        return mask_BL
    return (mask_BL[:, :, None] & mask_BL[:, None, :]).tril()


def _same_heads(student_BALL: Tensor, teacher_BALL: Tensor) -> tuple[Tensor, Tensor]:
    if student_BALL.shape[1] == teacher_BALL.shape[1]:
        return student_BALL, teacher_BALL
    return student_BALL.mean(dim=1, keepdim=True), teacher_BALL.mean(dim=1, keepdim=True)


def _sum(losses: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(losses)).sum()
