"""Training behind demonstrations: on gold responses, and on what a teacher answers to the same prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from spaces.canonical import fingerprint
from spaces.methods.distill_in_context import DistillInContext, Episodes, InContext
from trainers.batches import Batch
from trainers.compute import pick_device
from trainers.demonstrations import EPISODES, LABELS, UNSEEN, Demonstrations
from trainers.distill import against, kept_form
from trainers.episodes import NoEpisodes, Shown, any_rows, few_labels, split_labels
from trainers.generation_tokens import ResponseTokens
from trainers.kinds import split_tokens
from trainers.loop import Fitted, Job, TrainingError, fit
from trainers.losses import IGNORED, Targets, cross_entropy, soft_label_loss
from trainers.ranks import Ranks
from trainers.responses import row_scores
from trainers.teacher import TeacherOutputs, outputs_on
from trainers.teacher.forms import form_note

_VERSION = 1
_UNSEEN_ROWS = 200
"""Most rows of the unseen test: writing takes long."""


def tune_in_context(model: Any, job: Job) -> tuple[Any, Fitted]:
    """Carry out a ``TuneInContext`` stage on ``model``. Raises as ``distill_in_context``."""
    told = tell(job)
    fitted = fit(model, partial(_gold_loss, told.weights), job, tokens=told.tokens)
    return model, _noted(model, fitted, told, job)


def distill_in_context(model: Any, job: Job) -> tuple[Any, Fitted]:
    """Carry out a ``DistillInContext`` stage on the student ``model``. The time that the teacher took to answer counts.

    Raises:
        TrainingError: the rows do not make such episodes, or no demonstration fits before a prompt.
        ModelError: the teacher has not been trained, or its answers do not fit in memory.
    """
    told = tell(job)
    taught = taught_episodes(told, job)
    loss = against(taught.at, partial(taught_loss, job.stage, told.weights))
    fitted = fit(model, loss, job, tokens=told.tokens)
    return model, _noted(model, Fitted(fitted.seconds + taught.seconds, fitted.history), told, job)


class Part(Protocol):
    """A loss at the positions whose label is not ``IGNORED``, their sum over ``count``."""

    def __call__(self, labels_P: Tensor, *, count: float) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Weights:
    """How much the positions of responses and those of prompts count. P = all positions of all episodes."""

    prompt_weight: float
    num_rows: int
    is_response_P: np.ndarray

    def __call__(self, part: Part, batch: Batch) -> Tensor:
        """L_response + beta L_prompt, each the mean over its positions in all episodes.

        A batch's positions are scaled by its share of all rows: how many are of which kind, a worker does not know.
        """
        if not self.prompt_weight:
            return part(batch.labels_P, count=batch.count)
        share, is_response = batch.num_rows / self.num_rows, self.is_response_P[batch.positions_P]
        chosen = torch.from_numpy(is_response).to(batch.labels_P.device)
        responses, prompts = (batch.labels_P.where(which, IGNORED) for which in (chosen, ~chosen))
        num_responses = int(self.is_response_P.sum())
        num_prompts = len(self.is_response_P) - num_responses
        of_prompts = self.prompt_weight * part(prompts, count=num_prompts * share)
        return part(responses, count=num_responses * share) + of_prompts


@dataclass(frozen=True, eq=False)
class Told:
    """The episodes of a stage, as the model reads them."""

    tokens: ResponseTokens
    weights: Weights
    unseen: ResponseTokens | None
    """Episodes of labels that the others do not have; None where none are kept."""
    notes: Mapping[str, float]


def tell(job: Job) -> Told:
    """The episodes of the job's stage, by settings, rows and the plan's seed alone: a teacher's are its students'.

    Raises:
        TrainingError: the rows do not make them, or no demonstration fits before a prompt.
    """
    stage: InContext = job.stage
    train = split_tokens(job.context, base=job.plan.reader, split="train")
    assert isinstance(train, ResponseTokens)
    demonstrations = Demonstrations(train)
    try:
        shown, unseen = draw_episodes(demonstrations, stage.episodes, seed=job.plan.seed)
    except NoEpisodes as error:
        in_place = {"meta": "in_context_mode: multitask", "multitask": "num_demonstrations: 2, or name more rows"}
        remedy = f"set search.space.{in_place[stage.episodes.mode]}"
        raise TrainingError(f"{stage.kind}: {error}; {remedy}") from error
    tokens, counts_N = demonstrations.before(train, shown)
    if not counts_N.any():
        raise TrainingError(
            f"{stage.kind}: no demonstration fits before a prompt within {train.max_prompt_tokens} tokens; raise "
            "task.max_tokens"
        )
    notes = {
        "demonstrations_shown": float(counts_N.mean()),
        "episodes_shortened": float(np.mean(counts_N < [len(rows) for rows in shown.before])),
    }
    weights = Weights(stage.prompt_weight, len(tokens), _responses_of(tokens))
    return Told(
        tokens=tokens.every_token() if stage.prompt_weight else tokens,
        weights=weights,
        unseen=demonstrations.before(train, unseen)[0] if unseen else None,
        notes=notes,
    )


def draw_episodes(demonstrations: Demonstrations, settings: Episodes, *, seed: int) -> tuple[Shown, Shown | None]:
    """The episodes to train on, and those of labels that are kept from them, where some are. Raises ``NoEpisodes``."""
    count = {"num_demonstrations": settings.num_demonstrations}
    drawing, parting, testing = (np.random.default_rng([seed, what]) for what in (EPISODES, LABELS, UNSEEN))
    prompts, labels = demonstrations.prompts, demonstrations.labels
    if settings.mode == "multitask":
        return any_rows(prompts, **count, num_episodes=settings.num_episodes, rng=drawing), None
    seen, unseen = split_labels(labels, unseen=settings.unseen_labels, rng=parting)
    sizes = (2, len(seen))
    learnt = few_labels(
        prompts, labels, seen, num_labels=sizes, **count, num_episodes=settings.num_episodes, rng=drawing
    )
    if not len(unseen):
        return learnt, None
    # No more labels than can be shown: what is asked for is then always there to be found.
    shown = min(settings.num_demonstrations, len(unseen))
    tested = few_labels(prompts, labels, unseen, num_labels=(shown, shown), **count, num_episodes=1, rng=testing)
    some = np.sort(testing.permutation(len(tested.rows))[:_UNSEEN_ROWS])
    return learnt, Shown(tested.rows[some], [tested.before[index] for index in some.tolist()])


def taught_episodes(told: Told, job: Job) -> TeacherOutputs:
    """What the stage's teacher answers to the episodes, word for word the student's; kept for every other student."""
    stage: DistillInContext = job.stage
    teacher, context = job.plan.on_same_data(stage.teacher), job.context
    form = kept_form(stage, job.plan)
    identity = {"kind": "teacher_outputs", "teacher": teacher.fingerprint, "episodes": stage.episodes}
    rows = {"tokens": context.tokens[job.plan.reader]["train"], "every_token": stage.prompt_weight > 0}
    name = fingerprint(identity | rows | form_note(form) | {"version": _VERSION})
    return outputs_on(told.tokens, teacher, context, name=name, form=form, ranks=job.ranks)


def taught_loss(
    stage: DistillInContext, weights: Weights, student_PC: Tensor, teacher: Targets, batch: Batch, _share: float
) -> Tensor:
    """Soft and gold labels, of responses and of prompts."""
    part = partial(soft_label_loss, student_PC, teacher, temperature=stage.temperature, alpha=stage.alpha)
    return weights(part, batch)


def unseen_accuracy(model: Any, unseen: ResponseTokens, *, ranks: Ranks) -> float:
    """Share of right responses among episodes of labels that ``model`` has never been trained on."""
    model.to(pick_device())
    found = row_scores(model, unseen, metric="exact_match", ranks=ranks).value()
    model.to("cpu")
    return found


def _gold_loss(weights: Weights, outputs: Any, batch: Batch, _share: float) -> Tensor:
    return weights(partial(cross_entropy, batch.at_positions(outputs.logits)), batch)


def _responses_of(tokens: ResponseTokens) -> np.ndarray:
    """Which of the tokens, but the first of each row, belong to responses."""
    lengths = zip(tokens.prompt_lengths.tolist(), tokens.lengths.tolist(), strict=True)
    return np.concatenate([np.arange(1, whole) >= prompt for prompt, whole in lengths])


def _noted(model: Any, fitted: Fitted, told: Told, job: Job) -> Fitted:
    notes = dict(told.notes)
    if told.unseen is not None:
        notes["unseen_accuracy"] = unseen_accuracy(model, told.unseen, ranks=job.ranks)
        notes["unseen_labels"] = float(len(set(told.unseen.responses)))
    return Fitted(fitted.seconds, fitted.history, notes)
