"""What is believed at one moment of a search: of every objective, of training time, of the front.

c = candidates, v = variants, m = objectives, all minimised.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from search.history import Outcome
from search.known_cost.features import Matrix
from search.known_cost.foreknown import Foreknown
from search.known_cost.gain import expected_gain
from search.known_cost.gaussian_process import Design, Vector
from search.known_cost.learner import Learner
from search.known_cost.observations import Rows, metric_curve, no_curve, time_curve
from search.known_cost.surrogate import Surrogate
from search.pareto import free_boxes, non_dominated
from spaces.draw import Draw

_MAX_BELIEVED = 100
"""Plans under way that surrogates are told of; all of them count for the front."""
_CONTENDERS = 8
"""Candidates that are looked at for each plan of a batch."""
_LEAST_SHARE = 0.05
"""Of a plan's time is taken even where all of it is there already: it is still deployed and evaluated."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a search is after."""

    signs: Vector
    """m: 1 for an objective that is minimised, -1 for one that is maximised."""
    metric: int | None
    """The objective that curves are of; None where it is none of them."""
    time: int | None = None
    """The objective that is the time of training; None where it is none of them."""
    reference: Vector | None
    """m, as minimised: the corner from which hypervolume is counted; None: a tenth beyond the worst that is seen."""
    per_second: bool = True
    """Whether a gain is divided by the time that it takes; else all plans take as long."""


class Beliefs:
    """Built from outcomes and plans under way; weighs candidates."""

    def __init__(
        self,
        question: Question,
        foreknown: Foreknown,
        *,
        outcomes: Sequence[Outcome],
        running: Sequence[Draw],
        learned: list[int],
        known_worst: Vector,
        learner: Learner,
    ) -> None:
        """``learned``: the objectives that only training tells; ``known_worst``: m, of the others, over the space."""
        self._observer, self._foreknown, self._learner = learner.observer, foreknown, learner
        self._seconds = self._of_seconds(outcomes) if question.per_second else None
        rows, alone = {}, {}
        for axis in learned:
            curve_of = {question.metric: metric_curve, question.time: time_curve}.get(axis, no_curve)
            rows_of = partial(self._observer.of_axis, axis=axis, sign=question.signs[axis], curve_of=curve_of)
            alone[axis], rows[axis] = learner.learn(f"axis {axis}", outcomes, rows_of)
        queries = self._observer.queries(running)
        expected = {axis: alone[axis].at(queries).median() for axis in learned}
        told = slice(-_MAX_BELIEVED * len(foreknown.variants), None)
        self._learned = {
            axis: self._believing(alone[axis], rows[axis], queries[told], expected[axis][told]) for axis in learned
        }
        points = _points(question, outcomes, alone, rows)
        everything = np.vstack([points, self._under_way(running, expected, num_axes=len(question.signs))])
        front = everything[non_dominated(everything)]
        self._boxes = free_boxes(front, _reference(question, points, known_worst, learned))
        self._constraints = self._of_constraints(outcomes)
        draws = [outcome.draw for outcome in outcomes if outcome.values is not None]
        self.parents = [found for found, best in zip(draws, non_dominated(points), strict=True) if best]
        """Plans with a variant on the front, those under way left aside."""

    def score(self, draws: Sequence[Draw]) -> Vector:
        """Expected gain in hypervolume for a second of training, summed over variants: c."""
        if not draws:
            return np.zeros(0)
        known = self._foreknown.values(draws)
        queries = self._observer.queries(draws)
        flat = known.reshape(-1, known.shape[-1])
        learned = {axis: surrogate.at(queries) for axis, surrogate in self._learned.items()}
        gain = expected_gain(self._boxes, known=flat, learned=learned)
        if learned:
            gain = gain * np.max([prediction.novelty() for prediction in learned.values()], axis=0)
        for constraint in self._constraints:
            gain = gain * constraint.at(queries).below_zero()
        return self._for_a_second(gain.reshape(known.shape[:2]).sum(axis=1), draws, queries)

    def best_together(self, draws: Sequence[Draw], scores: Vector, *, count: int) -> list[int]:
        """Which of ``draws`` to take, the best first, if ``count`` are taken before any of them has come to its end.

        A score counts for what the plans taken before leave to be learned: 1 - ρ² of the variance, where ρ is the
        prior's correlation with the nearest of them [Rasmussen2006, eq. 2.26], at the objective where that is most.
        """
        order = np.argsort(-scores, kind="stable")
        if count == 1 or not self._learned:
            return order.tolist()
        near = order[: _CONTENDERS * count]
        queries = self._observer.queries([draws[index] for index in near])[:: len(self._foreknown.variants)]
        alike = np.min([surrogate.correlation(queries) for surrogate in self._learned.values()], axis=0)
        left, taken = scores[near].copy(), []
        for _ in range(min(count, len(near))):
            taken.append(best := int(np.argmax(left)))
            left *= 1.0 - alike[best] ** 2
            left[best] = -np.inf
        return [int(near[index]) for index in taken]

    def _for_a_second(self, gain: Vector, draws: Sequence[Draw], queries: Matrix) -> Vector:
        """``gain`` divided by the seconds of training that are left to do."""
        found = gain
        if self._seconds is not None:
            found = gain / np.exp(self._seconds.at(queries[:: len(self._foreknown.variants)]).median())
        # What is there already takes a while to look up. It makes nothing better than the best that is behind so far.
        contenders = np.flatnonzero(found >= _LEAST_SHARE * found.max())
        share = self._foreknown.share_left([draws[int(index)] for index in contenders])
        found[contenders] /= np.maximum(share, _LEAST_SHARE)
        return found

    def _believing(self, alone: Surrogate, rows: Rows, told: Matrix, expected: Vector) -> Surrogate:
        """Told of plans under way as if they came out as expected [Ginsbourger2010]: near them little is to be had."""
        if not len(told):
            return alone
        # Each a training of its own, by numbers that no proposal has.
        theirs = -1 - np.arange(len(told)) // len(self._foreknown.variants)
        design = Design(
            x=np.vstack([rows.design.x, told]),
            groups=rows.design.groups,
            trainings=np.concatenate([rows.design.trainings, theirs]),
        )
        return Surrogate(design, np.concatenate([rows.values, expected]), alone.fitted)

    def _of_seconds(self, outcomes: Sequence[Outcome]) -> Surrogate | None:
        if len({outcome.train_seconds for outcome in outcomes if outcome.values is not None}) < 3:
            return None
        rows_of = partial(self._observer.of_value, number=self._log_seconds)
        return self._learner.learn("seconds", outcomes, rows_of)[0]

    def _log_seconds(self, outcome: Outcome) -> float | None:
        """Of a complete plan, told of its first variant alone."""
        if outcome.values is None or not outcome.train_seconds or outcome.precision != self._foreknown.variants[0]:
            return None
        return math.log(outcome.train_seconds)

    def _of_constraints(self, outcomes: Sequence[Outcome]) -> list[Surrogate]:
        """By how much plans miss the constraints that only training decides, of those that were missed."""
        missed = sorted({text for outcome in outcomes for text, miss in outcome.violations.items() if miss > 0})
        rows_of = [partial(self._observer.of_value, number=partial(_miss, text=text)) for text in missed]
        return [self._learner.learn(text, outcomes, of)[0] for text, of in zip(missed, rows_of, strict=True)]

    def _under_way(self, running: Sequence[Draw], expected: dict[int, Vector], *, num_axes: int) -> Matrix:
        """Points of the variants of plans under way, as they are expected to come out."""
        if not running:
            return np.zeros((0, num_axes))
        points = self._foreknown.values(running).reshape(-1, num_axes).copy()
        for axis, values in expected.items():
            points[:, axis] = np.where(np.isinf(points[:, axis]), np.inf, values)
        return points


def _points(
    question: Question, outcomes: Sequence[Outcome], alone: dict[int, Surrogate], rows: dict[int, Rows]
) -> Matrix:
    """Complete variants, as they are believed to be; inf for one that breaks a constraint."""
    complete = [place for place, outcome in enumerate(outcomes) if outcome.values is not None]
    at = {place: index for index, place in enumerate(complete)}
    points = np.array([np.asarray(outcomes[place].values) * question.signs for place in complete])
    for axis, surrogate in alone.items():
        for place, value in zip(rows[axis].complete, surrogate.smoothed, strict=True):
            if place >= 0:
                points[at[int(place)], axis] = value
    broken = [any(miss > 0 for miss in outcomes[place].violations.values()) for place in complete]
    points[np.array(broken, dtype=bool)] = np.inf
    return points


def _reference(question: Question, points: Matrix, known_worst: Vector, learned: list[int]) -> Vector:
    if question.reference is not None:
        return question.reference
    finite = points[np.isfinite(points).all(axis=1)]
    if not len(finite):
        finite = np.zeros((1, len(known_worst)))
    worst = known_worst.copy()
    worst[learned] = finite[:, learned].max(axis=0)
    return worst + 0.1 * np.maximum(worst - finite.min(axis=0), 1e-12)


def _miss(outcome: Outcome, *, text: str) -> float | None:
    return outcome.violations.get(text)
