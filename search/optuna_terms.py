"""Draws in Optuna's words: ranges as distributions, plans as trials."""

from collections.abc import Callable, Sequence
from typing import cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from spaces.choosers import Chooser, FixedChooser, Value
from spaces.draw import Draw

DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}

Drawing = Callable[[Chooser], Draw]
"""A space to draw from: asks the chooser for what the plan needs, and nothing else."""


class TrialChooser:
    """Asks an Optuna trial."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial

    def categorical(self, name: str, choices: Sequence[Value]) -> Value:
        return cast(Value, self._trial.suggest_categorical(name, tuple(choices)))

    def integer(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return self._trial.suggest_int(name, low, high, log=log)

    def real(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return self._trial.suggest_float(name, low, high, log=log)


class DistributionChooser:
    """Passes on to ``inner`` and keeps the range of everything asked for."""

    def __init__(self, inner: Chooser) -> None:
        self._inner = inner
        self.asked: dict[str, BaseDistribution] = {}

    def categorical(self, name: str, choices: Sequence[Value]) -> Value:
        self.asked[name] = CategoricalDistribution(tuple(choices))
        return self._inner.categorical(name, choices)

    def integer(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        self.asked[name] = IntDistribution(low, high, log=log)
        return self._inner.integer(name, low, high, log=log)

    def real(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.asked[name] = FloatDistribution(low, high, log=log)
        return self._inner.real(name, low, high, log=log)


def looked_over(draw: Drawing, chance: Chooser, *, count: int) -> tuple[list[Draw], dict[str, BaseDistribution]]:
    """``count`` draws, and the range of everything that was asked for any of them."""
    drawn, asked = [], dict[str, BaseDistribution]()
    for _ in range(count):
        chooser = DistributionChooser(chance)
        drawn.append(draw(chooser))
        asked |= chooser.asked
    return drawn, asked


def settings_of(found: Draw) -> dict[str, Value]:
    """Everything that was picked for a draw, its strategy first."""
    return {"strategy": found.strategy, **found.params}


def asked_for(draw: Drawing, found: Draw) -> dict[str, BaseDistribution] | None:
    """The range of everything that was picked for ``found``; None where it is not of the space that ``draw`` is of."""
    chooser = DistributionChooser(FixedChooser(settings_of(found)))
    try:
        draw(chooser)
    except ValueError:
        return None
    return chooser.asked


def frozen_trial(
    draw: Drawing,
    found: Draw,
    state: TrialState,
    *,
    values: Sequence[float] | None = None,
    constraints: dict[str, float] | None = None,
) -> FrozenTrial | None:
    """``found`` as a trial; None where it is not of the space, such as a baseline that is not searched."""
    distributions, params = asked_for(draw, found), settings_of(found)
    if distributions is None:
        return None
    return optuna.trial.create_trial(
        state=state,
        values=values,
        # In the order of the draw: a ledger that was read again has another one.
        params={name: params[name] for name in distributions},
        distributions=distributions,
        constraints=constraints or None,
    )
