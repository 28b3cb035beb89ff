"""The sampler for users of plain Optuna, whose studies need no distune beside it."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.history import Outcome
from search.known_cost.beliefs import Question
from search.known_cost.gaussian_process import Vector
from search.known_cost.sampler import KnownCostSampler
from search.optuna_terms import asked_for
from spaces.canonical import canonical_json
from spaces.choosers import Chooser, Value
from spaces.draw import Draw

Suggests = Callable[[Any], object]
"""A function that asks a trial for everything that the objective will ask it for, conditions included."""
KnownCosts = Callable[[Mapping[str, Value]], Sequence[float | None]]
"""Parameters → a number for each objective, in their order; None where only the trial tells."""

_PROPOSED = "known_cost:params"
_LEAST_S = 1.0
"""Added to what a trial took: among shorter ones, time says more of the machine than of the parameters."""


class OptunaKnownCostSampler(optuna.samplers.BaseSampler):
    """The largest expected gain in hypervolume for a second of the objective, given costs that are known beforehand.

    For two to four objectives, of which one at least is not known. Trials that run side by side are told apart, pruned
    and failed ones count as had, and a constraint that was set on trials enters as the chance that it holds.

    Example:
        >>> def suggest(trial):
        ...     layers = trial.suggest_int("layers", 1, 12)
        ...     rate = trial.suggest_float("rate", 1e-5, 1e-2, log=True)
        ...     return layers, rate
        >>> def objective(trial):
        ...     layers, rate = suggest(trial)
        ...     return train(layers, rate), layers * 0.8  # accuracy, milliseconds
        >>> sampler = OptunaKnownCostSampler(suggest, lambda params: (None, params["layers"] * 0.8), seed=0)
        >>> optuna.create_study(directions=["maximize", "minimize"], sampler=sampler).optimize(objective, n_trials=50)
    """

    def __init__(
        self,
        space: Suggests,
        known_costs: KnownCosts,
        *,
        seed: int | None = None,
        reference: Sequence[float] | None = None,
    ) -> None:
        """``reference``: the corner from which hypervolume is counted; None: a tenth beyond the worst that is seen."""
        self._space, self._known_costs, self._reference = space, known_costs, reference
        self._seed = random.randrange(2**32) if seed is None else seed
        self._sampler: KnownCostSampler | None = None
        self._chance = optuna.samplers.RandomSampler(seed=self._seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The ranges of the parameters that are proposed for ``trial``; that is where the work is done."""
        found = self._propose(study, trial)
        if found is None:
            return {}
        study._storage.set_trial_system_attr(trial._trial_id, _PROPOSED, dict(found.params))
        return asked_for(self._draw, found) or {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters that were proposed for ``trial``."""
        if not search_space:
            return {}
        return dict(study._storage.get_trial(trial._trial_id).system_attrs[_PROPOSED])

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter that ``space`` did not ask for: by chance."""
        return self._chance.sample_independent(study, trial, param_name, param_distribution)

    def _propose(self, study: Study, trial: FrozenTrial) -> Draw | None:
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        # A trial that was asked for, and has not suggested anything yet, is nowhere.
        proposed = [other.system_attrs.get(_PROPOSED) for other in others if not other.state.is_finished()]
        running = [_of_params(params) for params in proposed if params is not None]
        outcomes = [_outcome(other) for other in others if other.state.is_finished()]
        return self._of(study)(outcomes, running, trial.number)

    def _of(self, study: Study) -> KnownCostSampler:
        if self._sampler is None:
            signs = np.array([1.0 if d == StudyDirection.MINIMIZE else -1.0 for d in study.directions])
            reference = None if self._reference is None else signs * np.asarray(self._reference)
            self._sampler = KnownCostSampler(
                draw=self._draw,
                foreknown=_Told(self._known_costs, signs),
                question=Question(signs=signs, metric=None, reference=reference),
                seed=self._seed,
            )
        return self._sampler

    def _draw(self, chooser: Chooser) -> Draw:
        asked = _Asked(chooser)
        self._space(asked)
        return _of_params(asked.params)


@dataclass(frozen=True, kw_only=True)
class _Configuration:
    """Parameters as a plan."""

    params: Mapping[str, Value]
    seed: int = 0

    @cached_property
    def fingerprint(self) -> str:
        return canonical_json(dict(self.params))

    @property
    def shape(self) -> str:
        return self.fingerprint

    def to_json(self) -> str:
        return self.fingerprint


def _of_params(params: Mapping[str, Value]) -> Draw:
    return Draw(strategy=str(params.get("strategy", "")), params=params, plan=_Configuration(params=params))


class _Asked:
    """Stands in for a trial: passes on to a chooser and keeps what was picked."""

    def __init__(self, chooser: Chooser) -> None:
        self._chooser = chooser
        self.params: dict[str, Value] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Value:
        return self._once(name, lambda: self._chooser.categorical(name, choices))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return int(self._once(name, lambda: self._chooser.integer(name, low, high, log=log)))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(self._once(name, lambda: self._chooser.real(name, low, high, log=log)))

    def _once(self, name: str, pick: Callable[[], Value]) -> Value:
        if name not in self.params:
            self.params[name] = pick()
        return self.params[name]


@dataclass(frozen=True)
class _Told:
    """What the user's function tells."""

    known_costs: KnownCosts
    signs: Vector
    variants: Sequence[str] = ("only",)

    def values(self, draws: Sequence[Draw]) -> Vector:
        told = [[np.nan if v is None else v for v in self.known_costs(found.params)] for found in draws]
        if any(len(row) != len(self.signs) for row in told):
            lengths = sorted({len(row) for row in told})
            raise ValueError(f"known_costs returned {lengths} numbers; the study has {len(self.signs)} objectives")
        return np.array(told, dtype=float).reshape(-1, 1, len(self.signs)) * self.signs

    def share_left(self, draws: Sequence[Draw]) -> Vector:
        return np.ones(len(draws))


def _outcome(trial: FrozenTrial) -> Outcome:
    complete = trial.state == TrialState.COMPLETE
    return Outcome(
        number=trial.number,
        draw=_of_params(trial.params),
        precision="only",
        values=tuple(trial.values) if complete else None,
        violations=dict(trial.constraints or {}),
        status="complete" if complete else "failed",
        train_seconds=_LEAST_S + trial.duration.total_seconds() if trial.duration else None,
        finished_at=trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0,
    )
