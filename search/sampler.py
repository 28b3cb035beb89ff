"""Which plan to try next. A pure function of the outcomes so far, the plans under way, the seed and the number.

The study is Optuna's and is laid anew for every proposal, so a search that was interrupted proposes what it would have
proposed, and the order in which workers finished does not matter. Every variant of a trained plan is told to it:
complete ones with their values, all others as failed; a value from half-way is never passed off as a result.
"""

import hashlib
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from search.foreknown import question_of
from search.goals import Goals
from search.history import Outcome, plans_of
from search.known_cost.batches import Batched
from search.known_cost.candidates import Settle
from search.known_cost.foreknown import Foreknown
from search.known_cost.sampler import KnownCostSampler
from search.optuna_terms import DIRECTIONS, Drawing, TrialChooser, frozen_trial
from spaces.choosers import RandomChooser
from spaces.draw import Draw
from spaces.objectives import Direction

optuna.logging.set_verbosity(optuna.logging.WARNING)

_ATTEMPTS = 25
"""Guided draws that meet only plans which were had, before chance takes over."""
_RANDOM_ATTEMPTS = 5_000
"""Random draws that meet only plans which were had, before the space is taken for exhausted."""
_STARTUP = 8
"""Plans with a result before a model guides the draws; the opening counts."""

Propose = Callable[[Sequence[Outcome], Sequence[Draw], int], Draw | None]
"""(outcomes, plans under way by number, number) → a plan that is new, or None when the space has no more."""


@dataclass(frozen=True, kw_only=True)
class TpeSampler:
    """Multi-objective TPE, multivariate and grouped, so that it follows the conditions of the space. [Ozaki2022]"""

    draw: Drawing
    directions: tuple[Direction, ...]
    seed: int

    def __call__(self, outcomes: Sequence[Outcome], running: Sequence[Draw], number: int) -> Draw | None:
        """The plan of proposal ``number``."""
        in_order = sorted(outcomes, key=lambda outcome: (outcome.number, outcome.precision))
        past = [*self._told(in_order), *self._under_way(sorted(running, key=lambda d: d.plan.fingerprint))]
        finished, under_way = plans_of(outcomes), {found.fingerprint for found in running}
        variants = max(1, len({outcome.precision for outcome in outcomes}))
        for attempt in range(_ATTEMPTS):
            sampler = _tpe(_seed(self.seed, number, attempt), startup=_STARTUP * variants)
            study = optuna.create_study(directions=[DIRECTIONS[d] for d in self.directions], sampler=sampler)
            study.add_trials(past)
            found = self.draw(TrialChooser(study.ask()))
            if found.fingerprint not in finished and found.fingerprint not in under_way:
                return found
        return RandomSampler(draw=self.draw, seed=self.seed)(outcomes, running, number)

    def _told(self, outcomes: Sequence[Outcome]) -> list[FrozenTrial]:
        told = (
            frozen_trial(
                self.draw,
                outcome.draw,
                TrialState.FAIL if outcome.values is None else TrialState.COMPLETE,
                values=outcome.values,
                constraints=dict(outcome.violations),
            )
            for outcome in outcomes
        )
        return [trial for trial in told if trial is not None]

    def _under_way(self, running: Sequence[Draw]) -> list[FrozenTrial]:
        told = (frozen_trial(self.draw, found, TrialState.RUNNING) for found in running)
        return [trial for trial in told if trial is not None]


@dataclass(frozen=True, kw_only=True)
class RandomSampler:
    """Draws from the space without looking at results."""

    draw: Drawing
    seed: int

    def __call__(self, outcomes: Sequence[Outcome], running: Sequence[Draw], number: int) -> Draw | None:
        """The plan of proposal ``number``."""
        finished, under_way = plans_of(outcomes), {found.fingerprint for found in running}
        for attempt in range(_RANDOM_ATTEMPTS):
            found = self.draw(RandomChooser(random.Random(_seed(self.seed, number, attempt))))
            if found.fingerprint not in finished and found.fingerprint not in under_way:
                return found
        return None


def make_sampler(
    name: str,
    *,
    draw: Drawing,
    goals: Goals,
    seed: int,
    foreknown: Foreknown,
    reference: NDArray[np.float64] | None = None,
    settle: Settle | None = None,
    workers: int = 1,
) -> Propose:
    """The sampler called ``name``: ``known_cost``, ``tpe`` or ``random``.

    Args:
        foreknown: what is known of plans; others than ``known_cost`` do not look at it.
        reference: the corner from which hypervolume is counted, as minimised, where there is a fixed one.
        settle: what becomes of candidates if they are proposed; None: what they are.
        workers: plans that may be under way; of many, ``known_cost`` makes its proposals in batches.
    """
    if name == "random":
        return RandomSampler(draw=draw, seed=seed)
    if name == "tpe":
        return TpeSampler(draw=draw, directions=goals.directions, seed=seed)
    question = question_of(goals, reference=reference)
    sampler = KnownCostSampler(draw=draw, foreknown=foreknown, question=question, seed=seed, settle=settle or list)
    batched = Batched(sampler, workers)
    return batched if batched.size > 1 else sampler


def _tpe(seed: int, *, startup: int) -> optuna.samplers.TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True
        )


def _seed(seed: int, number: int, attempt: int) -> int:
    digest = hashlib.sha256(f"{seed}/{number}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
