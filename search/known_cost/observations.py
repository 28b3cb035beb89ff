"""What the records say of each objective that is learned, as rows for a surrogate.

A row is a variant at a share of its training: half-way values inform at their own fidelity, and never count as
complete.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from search.history import Outcome
from search.known_cost.features import Encoder, Matrix, Settings
from search.known_cost.gaussian_process import Design, Vector
from search.optuna_terms import settings_of
from search.records import Curve
from spaces.draw import Draw

VARIANT = "variant"
FIDELITY = "fidelity"
_LEAST_FIDELITY = 1e-3
_RUNGS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of training at which a curve is looked at, beside its last point."""
_MAX_KEPT = 50_000
"""Encoded draws that are kept."""
MAX_ROWS = 450
"""Of a surrogate: its time rises with the cube."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """n observations of one objective."""

    design: Design
    values: Vector
    """n, minimised."""
    complete: NDArray[np.int64]
    """Position, among the outcomes, of those rows that stand for a complete variant; -1 for all others: n."""


class Observer:
    """Turns outcomes and candidates into rows of one and the same form."""

    def __init__(self, distributions: Mapping[str, BaseDistribution], variants: Sequence[str]) -> None:
        place: dict[str, BaseDistribution] = {FIDELITY: FloatDistribution(_LEAST_FIDELITY, 1.0, log=True)}
        if len(variants) > 1:
            place[VARIANT] = CategoricalDistribution(tuple(variants))
        self._settings, self._place = Encoder(distributions), Encoder(place)
        self._variants = tuple(variants)
        self._encoded: dict[Hashable, Vector] = {}

    @property
    def groups(self) -> NDArray[np.int64]:
        """The parameter of each column."""
        of_place = self._place.groups + len(self._settings.distributions)
        return np.concatenate([self._settings.groups, of_place])

    def queries(self, draws: Sequence[Draw]) -> Matrix:
        """Complete variants of ``draws``: (draws · variants) × d, the variants of a draw together."""
        places = self._place([{FIDELITY: 1.0, VARIANT: variant} for variant in self._variants])
        rows = np.repeat(self._settings_of(draws), len(self._variants), axis=0)
        return np.hstack([rows, np.tile(places, (len(draws), 1))])

    def _settings_of(self, draws: Sequence[Draw]) -> Matrix:
        """Draws × columns. Candidates come again, and encoding them is most of what weighing them takes."""
        fresh = {draw.key: draw for draw in draws if draw.key not in self._encoded}
        if len(self._encoded) + len(fresh) > _MAX_KEPT:
            self._encoded.clear()
            fresh = {draw.key: draw for draw in draws}
        encoded = self._settings([settings_of(draw) for draw in fresh.values()])
        self._encoded.update(zip(fresh, encoded, strict=True))
        found = np.array([self._encoded[draw.key] for draw in draws])
        return found.reshape(-1, len(self._settings.groups))

    def of_axis(
        self, outcomes: Sequence[Outcome], *, axis: int, sign: float, curve_of: Callable[[Outcome], Curve]
    ) -> Rows:
        """What outcomes say of objective ``axis``, half-way as ``curve_of`` an outcome tells it."""
        found = [
            (place if fidelity == 1.0 else -1, outcome, fidelity, sign * value)
            for place, outcome in enumerate(outcomes)
            for fidelity, value in _points(outcome, axis, curve_of(outcome) if self._stands_for_all(outcome) else ())
        ]
        return self._rows(_fewer(found))

    def of_value(self, outcomes: Sequence[Outcome], *, number: Callable[[Outcome], float | None]) -> Rows:
        """Another ``number`` of each outcome, where there is one."""
        found = [(place, outcome, 1.0, number(outcome)) for place, outcome in enumerate(outcomes)]
        return self._rows(_fewer([(place, o, fidelity, v) for place, o, fidelity, v in found if v is not None]))

    def _stands_for_all(self, outcome: Outcome) -> bool:
        """Whether what all variants of a plan share is told of this one."""
        return outcome.precision == self._variants[0]

    def _rows(self, found: Sequence[tuple[int, Outcome, float, float]]) -> Rows:
        places: list[Settings] = [
            {FIDELITY: max(fidelity, _LEAST_FIDELITY), VARIANT: outcome.precision} for _, outcome, fidelity, _ in found
        ]
        settings = self._settings_of([outcome.draw for _, outcome, _, _ in found])
        design = Design(
            x=np.hstack([settings, self._place(places)]),
            groups=self.groups,
            trainings=np.array([outcome.number for _, outcome, _, _ in found], dtype=np.int64),
        )
        return Rows(
            design=design,
            values=np.array([value for _, _, _, value in found], dtype=float),
            complete=np.array([place for place, _, _, _ in found], dtype=np.int64),
        )


def metric_curve(outcome: Outcome) -> Curve:
    """The task's metric half-way."""
    return outcome.curve


def time_curve(outcome: Outcome) -> Curve:
    """What the whole training would take at the pace so far."""
    if not outcome.curve_seconds or outcome.train_seconds is None:
        return ()
    before = max(0.0, outcome.train_seconds - outcome.curve_seconds[-1])
    points = zip(outcome.curve, outcome.curve_seconds, strict=True)
    return [(fidelity, before + seconds / fidelity) for (fidelity, _), seconds in points]


def no_curve(outcome: Outcome) -> Curve:  # noqa: ARG001
    """Of what shows at the end alone."""
    return ()


def _points(outcome: Outcome, axis: int, curve: Curve) -> list[tuple[float, float]]:
    """(fidelity, value) of one variant; of a curve, which all variants share and the first stands for, some points."""
    complete = [(1.0, outcome.values[axis])] if outcome.values is not None else []
    if not curve or outcome.status == "failed":
        return complete
    partial = {next((p for p in curve if p[0] >= rung), curve[-1]) for rung in _RUNGS}
    early = sorted(point for point in partial | {curve[-1]} if point[0] < 1.0 and math.isfinite(point[1]))
    return [*early, *complete]


def _fewer(found: list[tuple[int, Outcome, float, float]]) -> list[tuple[int, Outcome, float, float]]:
    """At most ``MAX_ROWS``: first the half-way points go, then those that are neither among the best nor recent."""
    if len(found) <= MAX_ROWS:
        return found
    by_worth = sorted(range(len(found)), key=lambda i: (found[i][0] < 0, found[i][3]))
    best = by_worth[: MAX_ROWS // 2]
    others = sorted(set(range(len(found))) - set(best), key=lambda i: (found[i][0] < 0, -i))
    return [found[i] for i in sorted([*best, *others[: MAX_ROWS - len(best)]])]
