"""The samplers that a simulation compares, by name: ours, and Optuna's as their users have them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import TrialState

from search.foreknown import CostTableForeknown
from search.history import Outcome
from search.optuna_terms import DIRECTIONS, Drawing, TrialChooser, asked_for, settings_of
from search.sampler import Propose, make_sampler
from search.simulation.simulate import Given, Maker
from spaces.draw import Draw
from spaces.objectives import Direction


def known_cost(given: Given) -> Propose:
    """Ours, with the table's known costs and shared beginnings."""
    return _ours("known_cost", given)


def tpe(given: Given) -> Propose:
    """Ours: multivariate, grouped, told of every variant."""
    return _ours("tpe", given)


def random(given: Given) -> Propose:
    """Chance."""
    return _ours("random", given)


def optuna_default(given: Given) -> Propose:
    """What Ray Tune's OptunaSearch takes where its user names no sampler."""
    return _asking(given, TPESampler(seed=given.seed))


def nsga2(given: Given) -> Propose:
    """Optuna's, with its own population of 50."""
    return _asking(given, NSGAIISampler(seed=given.seed))


def gp(given: Given) -> Propose:
    """Optuna's Gaussian processes, one for each objective."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _asking(given, GPSampler(seed=given.seed, warn_independent_sampling=False))


SAMPLERS: dict[str, Maker] = {
    "known_cost": known_cost,
    "tpe": tpe,
    "random": random,
    "optuna_default": optuna_default,
    "nsga2": nsga2,
    "gp": gp,
}
"""A benchmark may have more."""


def _ours(name: str, given: Given) -> Propose:
    goals, reference = given.goals, given.table.problem.reference
    corner = np.array([reference[name] for name in goals.objectives]) * goals.signs if reference else None
    foreknown = CostTableForeknown(
        goals,
        given.costs,
        given.table.variants,
        share_left=given.recordings.share_left,
    )
    return make_sampler(
        name,
        draw=given.table.draw,
        goals=goals,
        seed=given.seed,
        foreknown=foreknown,
        reference=corner,
        settle=given.answers.settle,
        workers=given.workers,
    )


def _asking(given: Given, sampler: BaseSampler) -> "AskAndTell":
    return AskAndTell(given.table.draw, given.goals.directions, sampler)


@dataclass
class AskAndTell:
    """A sampler of Optuna's in a study of its own, which is asked and told."""

    draw: Drawing
    directions: Sequence[Direction]
    sampler: BaseSampler
    _study: optuna.Study = field(init=False)
    _asked: dict[int, optuna.Trial] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        directions = [DIRECTIONS[direction] for direction in self.directions]
        self._study = optuna.create_study(directions=directions, sampler=self.sampler)

    def __call__(self, outcomes: Sequence[Outcome], running: Sequence[Draw], number: int) -> Draw:  # noqa: ARG002
        """What the study asks for."""
        for of, told in groupby((o for o in outcomes if o.number in self._asked), key=attrgetter("number")):
            self._tell(self._asked.pop(of), list(told))
        self._asked[number] = self._study.ask()
        return self.draw(TrialChooser(self._asked[number]))

    def _tell(self, trial: optuna.Trial, outcomes: Sequence[Outcome]) -> None:
        """What was trained is the answer's configuration, not the one asked for: that one fails, and this one is told.

        It keeps the other's notes, in which a genetic algorithm finds its generation. Of a training that was stopped or
        failed nothing is told.
        """
        asked = self._study.tell(trial, state=TrialState.FAIL)
        for outcome in outcomes:
            distributions, params = asked_for(self.draw, outcome.draw), settings_of(outcome.draw)
            assert distributions is not None, outcome.draw
            if outcome.values is not None:
                told = optuna.trial.create_trial(
                    values=outcome.values,
                    params={name: params[name] for name in distributions},
                    distributions=distributions,
                    system_attrs=asked.system_attrs,
                )
                self._study.add_trial(told)
