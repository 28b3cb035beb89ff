"""Plans that nobody trained: how their trainings would have gone, by what the outcomes of a search tell."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from search.foreknown import Works
from search.goals import Goals
from search.history import Outcome
from search.known_cost.observations import Observer, Rows, no_curve
from search.known_cost.surrogate import Fitted, Surrogate
from search.optuna_terms import Drawing, looked_over
from search.simulation.course import Course, Variant
from spaces.choosers import RandomChooser
from spaces.draw import Draw
from spaces.plan import Plan

_LOOKED_AT = 300
"""Draws that tell which parameters a space has, and within which ranges."""
_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """What a search tells of its space: surrogates of each objective that only training tells, and of seconds."""

    observer: Observer
    precisions: tuple[str, ...]
    goals: Goals
    by_axis: Mapping[int, Surrogate]
    """Minimised."""
    log_seconds: Surrogate
    """Of all stages of a plan, as if alone."""
    explained: float
    """Share of the variance of quality that is explained on plans that were left out; below 0: none of it."""

    @classmethod
    def of(
        cls, outcomes: Sequence[Outcome], *, drawing: Drawing, goals: Goals, precisions: tuple[str, ...]
    ) -> "Lessons":
        """Learn from the complete plans, eight at least: what was stopped tells nothing of its end."""
        complete = sorted(
            (outcome for outcome in outcomes if outcome.values is not None),
            key=lambda outcome: (outcome.number, outcome.precision),
        )
        _, asked = looked_over(drawing, RandomChooser(random.Random(0)), count=_LOOKED_AT)
        observer = Observer(asked, precisions)
        names = [name for name, _ in goals.axes]
        told = {
            axis: observer.of_axis(complete, axis=axis, sign=goals.signs[axis], curve_of=no_curve)
            for axis, name in enumerate(names)
            if not goals.columns[name].known
        }
        by_axis = {axis: _surrogate(rows) for axis, rows in told.items()}
        quality = names.index(goals.metric)
        return cls(
            observer=observer,
            precisions=precisions,
            goals=goals,
            by_axis=by_axis,
            log_seconds=_surrogate(observer.of_value(complete, number=_log_seconds)),
            explained=_explained(by_axis[quality], told[quality], [o.number for o in complete]),
        )

    def foretell(self, draw: Draw, luck: float) -> tuple[float, dict[str, NDArray[np.float64]]]:
        """Seconds of all stages of a plan, as if alone, and each objective that only training tells, at each precision.

        ``luck``: of the training, in standard deviations of the noise; the same at all precisions.
        """
        queries, found = self.observer.queries([draw]), {}
        for axis, surrogate in self.by_axis.items():
            prediction = surrogate.at(queries)
            lucky = prediction.warp.back(prediction.mean - luck * prediction.noise)
            found[self.goals.axes[axis][0]] = lucky * self.goals.signs[axis]
        return float(np.exp(self.log_seconds.at(queries[:1]).median()[0])), found


@dataclass
class LearnedPlans:
    """Plans that are carried out as lessons tell."""

    lessons: Lessons
    works: Works
    seed: int
    """Of the luck of trainings."""
    _courses: dict[str, Course] = field(default_factory=dict, init=False)

    def course(self, draw: Draw[Plan]) -> Course:
        """How the training of a draw's plan goes: beginnings take their share of its seconds, by their work."""
        if draw.fingerprint not in self._courses:
            self._courses[draw.fingerprint] = self._course(draw)
        return self._courses[draw.fingerprint]

    def _course(self, draw: Draw[Plan]) -> Course:
        own, beginnings = self.works(draw)
        luck = np.random.default_rng([self.seed, int(draw.fingerprint[:15], 16)]).normal()
        seconds, values = self.lessons.foretell(draw, float(luck))
        pace = seconds / (own + sum(beginnings.values()) or 1.0)
        qualities = values.pop(self.lessons.goals.metric)
        return Course(
            steps=(1,),
            qualities=(math.nan,),
            costs=(own * pace,),
            variants={
                name: Variant(quality=float(quality))
                for name, quality in zip(self.lessons.precisions, qualities, strict=True)
            },
            learned={name: float(found[0]) for name, found in values.items()},
            parts={name: work * pace for name, work in beginnings.items()},
        )


def _surrogate(rows: Rows) -> Surrogate:
    return Surrogate(rows.design, rows.values, Fitted.to(rows.design, rows.values))


def _log_seconds(outcome: Outcome) -> float | None:
    return math.log(outcome.train_seconds) if outcome.train_seconds else None


def _explained(surrogate: Surrogate, rows: Rows, numbers: Sequence[int]) -> float:
    """R² on plans, by ``numbers`` of the outcomes, of which surrogates with the same hyperparameters are not told."""
    of_row = np.array(numbers)[rows.complete]
    foretold = np.empty(len(rows.values))
    for fold in range(_FOLDS):
        out = np.isin(of_row, np.unique(of_row)[fold::_FOLDS])
        others = Surrogate(rows.design.at(np.flatnonzero(~out)), rows.values[~out], surrogate.fitted)
        foretold[out] = others.at(rows.design.x[out]).median()
    variance = float(np.var(rows.values))
    return 1.0 - float(np.mean((foretold - rows.values) ** 2)) / variance if variance else 0.0
